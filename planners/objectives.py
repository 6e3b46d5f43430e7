"""Objectives: costs of imagined trajectories, lower is better.

A distance is taken at every step and averaged over the horizon with weights that sum to one, so a cost keeps the
unit of its distance whatever the horizon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

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
        return self.weights.reduce(_per_step("StateCost: cost(readout(trajectory))", per_step, actions))


@runtime_checkable
class Distance(Protocol):
    """A learned distance between states, such as the number of steps from one to the other."""

    def __call__(self, states: Float[Tensor, "S H *state"], goal: Float[Tensor, "*state"], /) -> Float[Tensor, "S H"]:
        """Return the distance from each state to the goal."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TemporalDistance:
    """Cost of being many steps away from a goal, by a learned distance (as in Hartikainen et al., arXiv 1907.08225).

    Unlike a distance of latents it knows what is in the way, and costs of far goals still differ.

    Attributes:
        distance: Tells steps to the goal; differentiable where gradients are planned with.
        goal: Goal state, of the shape of one trajectory step.
        weights: How much each step counts.
    """

    distance: Distance
    goal: Tensor
    weights: StepWeights = field(default_factory=StepWeights)

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S]."""
        steps = self.distance(trajectory, self.goal)
        return self.weights.reduce(_per_step("TemporalDistance: distance", steps, actions))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reward:
    """Cost of little reward: minus the weighted mean of the reward of each step.

    Attributes:
        reward: (states after each action [S, H, ...], actions [S, H, A]) to the reward of each step [S, H].
        weights: How much each step counts; the last state's value can be its reward there, with a terminal weight.
    """

    reward: Callable[[Tensor, Tensor], Tensor]
    weights: StepWeights = field(default_factory=lambda: StepWeights(terminal=0.0))

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S]."""
        return -self.weights.reduce(_per_step("Reward: reward", self.reward(trajectory, actions), actions))


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
        """Return costs [S], where and of the type that the first term gives them."""
        costs = [weight * objective(trajectory, actions) for weight, objective in self.terms]
        return torch.stack([cost.to(costs[0]) for cost in costs]).sum(0)


def _per_step(what: str, values: Tensor, actions: Tensor) -> Tensor:
    """Return values; raise PlannerError unless there is one for each step of each candidate."""
    if values.shape != actions.shape[:2]:
        raise PlannerError(
            f"{what} has shape {tuple(values.shape)}; expected {tuple(actions.shape[:2])} (candidates, horizon)."
        )
    return values
