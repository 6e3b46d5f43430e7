"""Objectives: costs of imagined trajectories, lower is better.

A distance is taken at every step and averaged over the horizon with weights that sum to one, so a cost keeps the
unit of its distance whatever the horizon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from planners.base import Objective, PlannerError


@dataclass(frozen=True, kw_only=True)
class StepWeights:
    """Say how much each imagined step counts.

    Attributes:
        running: Weight of every step.
        terminal: Weight of the last step, beside its running weight.
        discount: Factor per step on the running weight; below 1 prefers to be near the goal early.
    """

    running: float = 1.0
    terminal: float = 1.0
    discount: float = 1.0

    def __post_init__(self) -> None:
        """Raise PlannerError for negative weights or weights that sum to nothing."""
        if min(self.running, self.terminal) < 0 or self.running + self.terminal <= 0 or not 0 < self.discount <= 1:
            raise PlannerError(
                f"StepWeights: got running={self.running}, terminal={self.terminal}, discount={self.discount}; "
                "expected running and terminal >= 0 and not both 0, and discount in (0, 1]."
            )

    def reduce(self, distance: Float[Tensor, "S H"]) -> Float[Tensor, " S"]:
        """Return the weighted mean over the horizon."""
        steps = torch.arange(distance.shape[1], dtype=distance.dtype, device=distance.device)
        weights = self.running * torch.pow(torch.full_like(steps, self.discount), steps)
        weights[-1] += self.terminal
        return distance @ (weights / weights.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class GoalDistance:
    """Cost of being far from a goal in the trajectory's own (latent) space.

    Attributes:
        goal: Goal state, of the shape of one trajectory step.
        weights: How much each step counts.
        metric: "squared" is the mean squared difference per dimension; "euclidean" its root.
    """

    goal: Tensor
    weights: StepWeights = field(default_factory=StepWeights)
    metric: Literal["squared", "euclidean"] = "squared"

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S] of trajectories [S, H, *goal's shape]."""
        if trajectory.shape[2:] != self.goal.shape:
            raise PlannerError(
                f"GoalDistance: one step of the trajectory has shape {tuple(trajectory.shape[2:])}, the goal "
                f"{tuple(self.goal.shape)}; encode the goal with the model that imagines."
            )
        squared = (trajectory - self.goal).square().flatten(2).mean(2)
        return self.weights.reduce(squared if self.metric == "squared" else squared.sqrt())


@dataclass(frozen=True, kw_only=True)
class StateCost:
    """Cost of physical quantities that are read from the trajectory.

    Attributes:
        readout: Trajectory [S, H, ...] to quantities [S, H, Q].
        cost: Quantities [S, H, Q] to cost per step [S, H], such as a distance to the goal in metres.
        weights: How much each step counts.
    """

    readout: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor], Tensor]
    weights: StepWeights = field(default_factory=StepWeights)

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S]."""
        per_step = self.cost(self.readout(trajectory))
        if per_step.shape != actions.shape[:2]:
            raise PlannerError(
                f"StateCost: cost(readout(trajectory)) has shape {tuple(per_step.shape)}; expected "
                f"{tuple(actions.shape[:2])} (candidates, horizon)."
            )
        return self.weights.reduce(per_step)


@dataclass(frozen=True, kw_only=True)
class ActionPenalty:
    """Cost of effort (mean squared action) and of change (mean squared difference of neighbouring actions)."""

    effort: float = 0.0
    change: float = 0.0

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S]."""
        cost = self.effort * actions.square().mean((1, 2))
        if self.change and actions.shape[1] > 1:
            cost = cost + self.change * actions.diff(dim=1).square().mean((1, 2))
        return cost


@dataclass(frozen=True)
class WeightedSum:
    """Sum of objectives, each with a weight: WeightedSum([(1.0, distance), (0.01, penalty)])."""

    terms: Sequence[tuple[float, Objective]]

    def __post_init__(self) -> None:
        """Raise PlannerError when there is nothing to sum."""
        if not self.terms:
            raise PlannerError("WeightedSum: got no terms; expected at least one (weight, objective).")

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S]."""
        return torch.stack([weight * objective(trajectory, actions) for weight, objective in self.terms]).sum(0)
