"""Protocols and results shared by all planners, and the checks at their border.

A planner is a function of (dynamics, context, objective, warm start, generator): it keeps no state between calls.
Letters in shapes: S candidates, H horizon, A action size, N recorded candidates, I iterations.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from planners.deadline import Deadline


class PlannerError(ValueError):
    """Say that a planner was given something that it cannot plan with."""


@runtime_checkable
class Dynamics(Protocol):
    """Predict what action sequences lead to; `context` is whatever the model knows about the present."""

    @property
    def action_size(self) -> int:
        """Return A."""
        ...

    @property
    def action_low(self) -> Float[Tensor, " A"]:
        """Return the smallest allowed action."""
        ...

    @property
    def action_high(self) -> Float[Tensor, " A"]:
        """Return the largest allowed action."""
        ...

    def imagine(self, context: Any, actions: Float[Tensor, "S H A"]) -> Float[Tensor, "S H *state"]:
        """Return the state after every action, [S, H, ...], for S sequences that start from one context."""
        ...


@runtime_checkable
class Objective(Protocol):
    """Give every imagined trajectory a cost; lower is better."""

    def __call__(
        self, trajectory: Float[Tensor, "S H *state"], actions: Float[Tensor, "S H A"], /
    ) -> Float[Tensor, " S"]:
        """Return one finite cost per candidate."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Hold the chosen action sequence and what the planner compared to find it.

    Attributes:
        actions: Chosen actions [H, A], within the dynamics' bounds.
        cost: Imagined cost of `actions`.
        candidates: Candidates that were really compared [N, H, A]; an even sample over iterations when there were more.
        candidate_costs: Their imagined costs [N].
        candidate_iterations: The iteration in which each was compared [N], counted from 0.
        iteration_best_costs: Lowest cost of each iteration.
        iteration_mean_costs: Mean cost of each iteration.
        num_imagined: Number of action sequences that were imagined.
        iteration_cost_stds: Standard deviation of the costs of each iteration: how much there was to choose from.
    """

    actions: Float[Tensor, "H A"]
    cost: float
    candidates: Float[Tensor, "N H A"]
    candidate_costs: Float[Tensor, " N"]
    candidate_iterations: Int64[Tensor, " N"]
    iteration_best_costs: tuple[float, ...]
    iteration_mean_costs: tuple[float, ...]
    num_imagined: int
    iteration_cost_stds: tuple[float, ...] = ()

    def without_candidates(self) -> "Plan":
        """Return the plan without its record of candidates, to keep many."""
        return replace(
            self,
            candidates=self.candidates[:0],
            candidate_costs=self.candidate_costs[:0],
            candidate_iterations=self.candidate_iterations[:0],
        )


@runtime_checkable
class Planner(Protocol):
    """Search for actions of low cost; the same arguments and generator state give the same plan, bit for bit."""

    @property
    def horizon(self) -> int:
        """Return H, the number of planned steps."""
        ...

    def plan(
        self,
        dynamics: Dynamics,
        context: Any,
        objective: Objective,
        *,
        warm_start: Float[Tensor, "H A"] | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Return the best action sequence found; raise PlannerError on bad dynamics, warm start or costs.

        The search stops early where the deadline says so (loop over `planners.deadline.iterations`, which raises
        OutOfTime where there is no time for one iteration).
        """
        ...


def action_bounds(planner: str, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Return the dynamics' checked (low, high), each [A]."""
    low, high = dynamics.action_low, dynamics.action_high
    expected = (dynamics.action_size,)
    if tuple(low.shape) != expected or tuple(high.shape) != expected:
        raise PlannerError(
            f"{planner}: action bounds have shapes {tuple(low.shape)} and {tuple(high.shape)}; "
            f"expected {expected} for dynamics with action_size={dynamics.action_size}."
        )
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
        raise PlannerError(
            f"{planner}: action bounds must be finite with low < high in every dimension; got low={low}, "
            f"high={high}. Give finite bounds (normalise unbounded actions first)."
        )
    return low, high


def check_warm_start(planner: str, warm_start: Tensor, horizon: int, action_size: int) -> None:
    """Raise PlannerError unless the warm start is finite and of shape [H, A]."""
    if tuple(warm_start.shape) != (horizon, action_size):
        raise PlannerError(
            f"{planner}: warm start has shape {tuple(warm_start.shape)}; expected {(horizon, action_size)} "
            "(horizon, action size). Shift the previous plan and fill its end (planners.mpc does)."
        )
    if not bool(torch.isfinite(warm_start).all()):
        raise PlannerError(f"{planner}: warm start holds NaN or infinity; pass None to start from nothing.")


def candidate_costs(
    planner: str, iteration: int, dynamics: Dynamics, context: Any, objective: Objective, actions: Tensor
) -> Tensor:
    """Imagine candidates [S, H, A] and return their checked costs [S]."""
    costs = objective(dynamics.imagine(context, actions), actions)
    if tuple(costs.shape) != (actions.shape[0],):
        raise PlannerError(
            f"{planner}, iteration {iteration}: the objective returned costs of shape {tuple(costs.shape)}; "
            f"expected {(actions.shape[0],)}, one per candidate. Reduce over time and state inside the objective."
        )
    finite = torch.isfinite(costs)
    if not bool(finite.all()):
        candidate = int((~finite).nonzero()[0])
        raise PlannerError(
            f"{planner}, iteration {iteration}, candidate {candidate}: cost is {float(costs[candidate])} "
            f"({int((~finite).sum())} of {len(costs)} candidates are not finite); expected finite costs. "
            "Check the dynamics' output and the objective for this candidate."
        )
    return costs


class CandidateLog:
    """Collect what one plan() call compares and build the Plan from it."""

    def __init__(self) -> None:
        """Start empty."""
        self._actions: list[Tensor] = []
        self._costs: list[Tensor] = []

    def add(self, actions: Tensor, costs: Tensor) -> None:
        """Remember one iteration's candidates [S, H, A] and costs [S]."""
        self._actions.append(actions)
        self._costs.append(costs)

    def best(self) -> tuple[Tensor, float]:
        """Return the cheapest candidate [H, A] of all iterations and its cost."""
        costs = torch.cat(self._costs)
        index = int(costs.argmin())
        return torch.cat(self._actions)[index], float(costs[index])

    def plan(self, actions: Tensor, cost: float, *, num_recorded: int, num_extra: int = 0) -> Plan:
        """Return a Plan that records at most `num_recorded` candidates, evenly over all that were compared.

        `num_extra` counts sequences that were imagined but not compared.
        """
        every = torch.cat(self._actions)
        costs = torch.cat(self._costs)
        iterations = torch.cat([torch.full((len(c),), i) for i, c in enumerate(self._costs)])
        count = min(num_recorded, len(costs))
        kept = torch.arange(count) * len(costs) // max(count, 1)
        return Plan(
            actions=actions.clone(),
            cost=cost,
            candidates=every[kept.to(every.device)],
            candidate_costs=costs[kept.to(costs.device)],
            candidate_iterations=iterations[kept],
            iteration_best_costs=tuple(float(c.min()) for c in self._costs),
            iteration_mean_costs=tuple(float(c.mean()) for c in self._costs),
            num_imagined=len(costs) + num_extra,
            iteration_cost_stds=tuple(float(c.std(correction=0)) for c in self._costs),
        )
