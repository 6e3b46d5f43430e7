"""Protocols and results shared by all planners, and the checks at their border.

A planner is a function of (dynamics, context, objective, warm start, generator): it keeps no state between calls.
Letters in shapes: S candidates, H horizon, A action size, N sequences to start from or recorded, B environments.
"""

from collections.abc import Sequence
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
    """Predict what action sequences lead to; `context` is whatever the model knows about the present.

    Three more members are looked for where they are needed: `action_set` [M, A], every action of dynamics that allow
    only some (planners.tree), `imagine_batch` (planners.search.BatchDynamics), and `reseed(seed)` of dynamics with
    noise of their own, which is called at the start of every episode (planners.mpc).
    """

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
        """Return the state after every action, [S, H, ...], for S sequences that start from one context.

        A planner that follows gradients gives `actions` that require them; dynamics that have none just return
        states without.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """Give every imagined trajectory a cost; lower is better."""

    def __call__(
        self, trajectory: Float[Tensor, "S H *state"], actions: Float[Tensor, "S H A"], /
    ) -> Float[Tensor, " S"]:
        """Return one finite cost per candidate."""
        ...


@runtime_checkable
class Proposals(Protocol):
    """Give action sequences that are worth a try in a context."""

    def __call__(
        self, context: Any, num: int, horizon: int, generator: torch.Generator, /
    ) -> Float[Tensor, "num horizon A"]:
        """Return `num` sequences, the likeliest first; they are put into the bounds by the caller."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Guided:
    """An objective together with what is worth a try to reach it, such as a policy that knows the goal.

    Attributes:
        objective: Gives the costs.
        propose: Is asked by `planners.proposing`.
    """

    objective: Objective
    propose: Proposals

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return costs [S]."""
        return self.objective(trajectory, actions)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Hold the chosen action sequence and what the planner compared to find it.

    Attributes:
        actions: Chosen actions [H, A], within the dynamics' bounds.
        cost: Imagined cost of `actions`, or an estimate where they were not imagined (`CEM.imagine_mean`).
        candidates: Candidates that were really compared [N, H, A]; an even sample over iterations when there were more.
        candidate_costs: Their imagined costs [N].
        candidate_iterations: The iteration in which each was compared [N], counted from 0.
        iteration_best_costs: Lowest cost of each iteration.
        iteration_mean_costs: Mean cost of each iteration.
        num_imagined: Number of action sequences that were imagined.
        iteration_cost_stds: Standard deviation of the costs of each iteration: how much there was to choose from.
        carried: What the next decision should start from, shifted by the steps that were executed: [M, H, A], the
            sequence to search around first. None is `actions` alone.
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
    carried: Float[Tensor, "M H A"] | None = None

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
    """Search for actions of low cost; the same arguments and generator state give the same plan, bit for bit.

    Dynamics with noise of their own have to be reseeded for that.
    """

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
        warm_start: Float[Tensor, "*N H A"] | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Return the best action sequence found; raise PlannerError on bad dynamics, warm start or costs.

        Args:
            dynamics: What imagines.
            context: What they know about the present.
            objective: What is minimised.
            warm_start: Where the search starts, [H, A]; of several sequences [N, H, A] it starts around the first,
                and the others are candidates.
            generator: The planner's only source of randomness.
            deadline: Stops the search early, before an iteration that would end too late; OutOfTime is raised where
                there is no time for one iteration.
        """
        ...


def check_knobs(planner: object, checks: Sequence[tuple[bool, str, str]]) -> None:
    """Raise PlannerError for the first knob outside its range; each check is (holds, the knob's name, the range)."""
    for holds, name, expected in checks:
        if not holds:
            raise PlannerError(f"{type(planner).__name__}: {name}={getattr(planner, name)!r}; expected {expected}.")


def action_bounds(planner: str, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Return the dynamics' checked (low, high), each [A]."""
    missing = [name for name in ("action_size", "action_low", "action_high", "imagine") if not hasattr(dynamics, name)]
    if missing:
        raise PlannerError(
            f"{planner}: {type(dynamics).__name__} has no {' and no '.join(missing)}; expected planners.Dynamics (a "
            "WorldModel becomes that by embodied_wm.dynamics.ImaginedDynamics)."
        )
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


def check_sequences(planner: str, what: str, sequences: Tensor, horizon: int, action_size: int) -> Tensor:
    """Return sequences as [N, H, A]; raise PlannerError unless they are finite and of shape [H, A] or [N, H, A]."""
    if sequences.ndim not in (2, 3) or tuple(sequences.shape[-2:]) != (horizon, action_size):
        raise PlannerError(
            f"{planner}: {what} has shape {tuple(sequences.shape)}; expected {(horizon, action_size)} "
            "(horizon, action size), or several of that shape. Shift the previous plan and fill its end "
            "(planners.mpc does)."
        )
    if not bool(torch.isfinite(sequences).all()):
        raise PlannerError(f"{planner}: {what} holds NaN or infinity; pass None to start from nothing.")
    return sequences.reshape(-1, horizon, action_size)
