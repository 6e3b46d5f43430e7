"""MuJoCo behind the planners' `Dynamics` protocol (the oracle), and the costs that judge and plan with a task.

The oracle's "latents" are the task's physical quantities, [S, H, Q]; its context is a physics state.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from planners.base import Objective
from planners.objectives import StateCost, StepWeights
from sim.branch import Brancher
from sim.tasks.base import Task


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


def task_cost(task: Task, goal_quantities: Tensor | np.ndarray) -> Callable[[Tensor], Tensor]:
    """Return what turns quantities [..., Q] into the cost that planning on them minimises, [...], in metres."""
    goal = np.asarray(goal_quantities, dtype=np.float64)

    def cost(quantities: Tensor) -> Tensor:
        return torch.from_numpy(task.planning_cost(quantities.detach().cpu().numpy(), goal))

    return cost


def oracle_objective(task: Task, goal_physics: np.ndarray, weights: StepWeights) -> Objective:
    """Return the objective of the oracle: distance to the goal in metres, from true quantities."""
    goal = task.state_quantities(goal_physics)
    return StateCost(readout=lambda states: states, cost=task_cost(task, goal), weights=weights)
