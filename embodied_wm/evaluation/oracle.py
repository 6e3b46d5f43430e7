"""MuJoCo behind the planners' `Dynamics` protocol (the oracle), and the objectives that judge and plan with a task.

The oracle's "latents" are the task's physical quantities, [S, H, Q]; its context is a physics state.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from embodied_wm.world_model import WorldModel
from planners.base import Objective
from planners.objectives import GoalDistance, StateCost, StepWeights
from sim.branch import Brancher
from sim.tasks.base import Task

ObjectiveKind = Literal["latent", "state"]
QUANTITIES = "sim.quantities"


class OracleDynamics:
    """Roll out candidates in MuJoCo: what planning could reach with a perfect model."""

    def __init__(self, task: Task, *, num_threads: int = 2) -> None:
        self.brancher = Brancher(task, num_threads=num_threads)
        self.action_size = task.action_size
        self.action_low = -torch.ones(task.action_size)
        self.action_high = torch.ones(task.action_size)

    def imagine(self, context: np.ndarray, actions: Tensor) -> Tensor:
        """Return quantities [S, H, Q] that follow from a physics state."""
        return torch.from_numpy(self.brancher(context, actions.numpy()).quantities)


def task_cost(task: Task, quantities: Tensor, goal_quantities: Tensor) -> Tensor:
    """Return the task's distance to the goal in metres, [...], of quantities [..., Q]; the torch twin of `Task.cost`."""
    index = list(task.goal_indices)
    return (quantities[..., index] - goal_quantities[..., index]).square().sum(-1).sqrt()


def oracle_objective(task: Task, goal_physics: np.ndarray, weights: StepWeights) -> Objective:
    """Return the objective of the oracle: distance to the goal in metres, from true quantities."""
    goal = torch.from_numpy(task.state_quantities(goal_physics))
    return StateCost(readout=lambda states: states, cost=lambda q: task_cost(task, q, goal), weights=weights)


def model_objective(
    kind: ObjectiveKind, world_model: WorldModel, task: Task, goal_frame: np.ndarray, weights: StepWeights
) -> Objective:
    """Return the objective that a world model plans with, from a goal image alone.

    Args:
        kind: "latent" is the Euclidean distance of latents; "state" reads the task's quantities from imagined latents and
            from the goal's latents, and takes their distance in metres.
        world_model: Encodes the goal.
        task: Says which quantities the goal is about.
        goal_frame: uint8 [height, width, 3].
        weights: How much each imagined step counts.

    Raises:
        ValueError: If the kind is unknown, or the model lacks the readout.
    """
    goal = world_model.encode(torch.from_numpy(goal_frame))
    if kind == "latent":
        return GoalDistance(goal=goal, weights=weights, metric="euclidean")
    if kind == "state":
        readout = world_model.readout(QUANTITIES)
        with torch.no_grad():
            goal_quantities = readout(goal)
        return StateCost(readout=_no_grad(readout), cost=lambda q: task_cost(task, q, goal_quantities), weights=weights)
    raise ValueError(f"unknown objective {kind!r}; choose one of: latent, state")


def _no_grad(readout: torch.nn.Module):
    def read(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return readout(latents)

    return read
