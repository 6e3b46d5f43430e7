"""MuJoCo behind the planners' `Dynamics` protocol (the oracle), and the costs that judge and plan with a task.

The oracle's "latents" are the task's physical quantities, [S, H, Q]; its context is a physics state.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
        return torch.from_numpy(self.brancher(context, actions.detach().cpu().numpy()).quantities)

    def imagine_batch(self, contexts: Sequence[np.ndarray], actions: Tensor) -> Tensor:
        """Return quantities [B, S, H, Q] that follow from each of B physics states, rolled out together."""
        states = np.repeat(np.stack(list(contexts)), actions.shape[1], axis=0)
        return self.imagine(states, actions.flatten(0, 1)).unflatten(0, actions.shape[:2])


def task_cost(task: Task, goal_quantities: Tensor | np.ndarray) -> Callable[[Tensor], Tensor]:
    """Return what turns quantities [..., Q] into the cost that planning on them minimises, [...], in metres.

    Gradients flow back to the quantities, by central differences: tasks compute their costs with numpy.
    """
    goal = np.asarray(goal_quantities, dtype=np.float64)

    def of_numbers(quantities: np.ndarray) -> np.ndarray:
        return task.planning_cost(quantities, goal)

    return lambda quantities: _Numeric.apply(quantities, of_numbers)


class _Numeric(torch.autograd.Function):
    """A cost that numpy computes; its gradient by central differences, one quantity after the other."""

    STEP = 1e-4

    @staticmethod
    def forward(ctx: Any, quantities: Tensor, cost: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        ctx.quantities, ctx.cost = quantities.detach(), cost
        return torch.from_numpy(cost(ctx.quantities.cpu().numpy()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        at = ctx.quantities.double().cpu().numpy()
        steps = _Numeric.STEP * np.eye(at.shape[-1])
        slopes = [(ctx.cost(at + step) - ctx.cost(at - step)) / (2 * _Numeric.STEP) for step in steps]
        slope = gradients[0][..., None] * torch.from_numpy(np.stack(slopes, axis=-1))
        return slope.to(ctx.quantities), None


def oracle_objective(task: Task, goal_physics: np.ndarray, weights: StepWeights) -> Objective:
    """Return the objective of the oracle: distance to the goal in metres, from true quantities."""
    goal = task.state_quantities(goal_physics)
    return StateCost(readout=lambda states: states, cost=task_cost(task, goal), weights=weights)
