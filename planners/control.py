"""How a planner is used in closed loop: time, chunks of actions, safety."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, cast

from planners.base import Planner, PlannerError
from planners.safety import Safety


@dataclass(frozen=True, kw_only=True)
class Control:
    """Say how a planner is used in closed loop.

    Attributes:
        budget_ms: Most milliseconds of a decision, from its input to its action; None sets no limit.
        min_candidates: Where one iteration of all candidates does not fit the budget, they are halved down to so many.
        min_horizon: Where not even so few candidates fit, the search looks half as far ahead, down to so many steps;
            what comes after them is taken from the last plan.
        replan_every: Steps of a plan that are executed before the next one is made.
        asynchronous: Make the next plan in a thread while the last one is executed: it is asked for `replan_every`
            steps before its first action is due, and knows which actions are executed until then.
        max_wait_ms: Longest wait for such a plan that is not ready in time, after which the last plan goes on; None
            waits as long as it takes, which makes asynchronous control repeatable.
        tail: What fills the end of a shifted plan: zero actions, or its last action.
        safety: Limits of actions, and when not to trust imagination.
    """

    budget_ms: float | None = None
    min_candidates: int = 8
    min_horizon: int = 3
    replan_every: int = 1
    asynchronous: bool = False
    max_wait_ms: float | None = None
    tail: Literal["zero", "last"] = "zero"
    safety: Safety = field(default_factory=Safety)

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        checks = [
            (self.budget_ms is None or self.budget_ms > 0, "budget_ms", "above 0, or None"),
            (self.min_candidates >= 1, "min_candidates", "at least 1"),
            (self.min_horizon >= 1, "min_horizon", "at least 1"),
            (self.replan_every >= 1, "replan_every", "at least 1"),
            (self.max_wait_ms is None or self.max_wait_ms >= 0, "max_wait_ms", "0 or more, or None"),
            (self.tail in ("zero", "last"), "tail", "'zero' or 'last'"),
        ]
        for valid, name, expected in checks:
            if not valid:
                raise PlannerError(f"Control: {name}={getattr(self, name)!r}; expected {expected}.")

    def check_horizon(self, horizon: int) -> None:
        """Raise PlannerError where plans of `horizon` steps end before the next one is there."""
        most = horizon // 2 if self.asynchronous else horizon
        if self.replan_every > most:
            reason = " // 2: an asynchronous plan begins with the steps that the last one executes" * self.asynchronous
            raise PlannerError(
                f"MPC: replan_every={self.replan_every}; expected 1 to {most} (the horizon {horizon}{reason})."
            )


def cheaper(planner: Planner, control: Control) -> Iterator[Planner]:
    """Yield the planner with fewer and fewer candidates, then looking less and less far ahead.

    It looks beyond the steps that are executed, or settled, until the next plan.
    """
    last = planner
    for fewer in with_fewer_candidates(planner, control.min_candidates):
        last = fewer
        yield fewer
    least = max(control.min_horizon, control.replan_every + control.asynchronous)
    horizon = planner.horizon // 2
    while horizon >= least:
        shorter = _with_horizon(last, horizon)
        if shorter is None:
            return
        yield shorter
        horizon //= 2


def _with_horizon(planner: Any, horizon: int) -> Planner | None:
    """Return the planner, or the one inside it, with another horizon; None where it has no such knob or refuses."""
    if not is_dataclass(planner) or isinstance(planner, type):
        return None
    names = {knob.name for knob in fields(planner)}
    try:
        if "horizon" in names:
            return cast(Planner, replace(planner, **{"horizon": horizon}))
        inner = _with_horizon(getattr(planner, "planner", None), horizon)
        return None if inner is None else cast(Planner, replace(planner, **{"planner": inner}))
    except PlannerError:
        return None


def with_fewer_candidates(planner: Planner, min_candidates: int) -> Iterator[Planner]:
    """Yield the planner with half, a quarter, ... of its candidates (elites, proposals), while it accepts them.

    Args:
        planner: A frozen dataclass with `num_candidates`, or with a `planner` that is one; for others nothing is
            yielded.
        min_candidates: Fewest candidates.
    """
    if not is_dataclass(planner):
        return
    inner: Any = getattr(planner, "planner", None)
    if inner is not None:
        for halvings, smaller in enumerate(with_fewer_candidates(inner, min_candidates), start=1):
            yield replace(planner, planner=smaller, **_divided(planner, 2**halvings, num_proposals=1))
        return
    asked: Any = getattr(planner, "num_candidates", None)
    divisor = 2
    while isinstance(asked, int) and asked // divisor >= min_candidates:
        try:
            yield replace(
                planner, **_divided(planner, divisor, num_candidates=min_candidates, num_elites=2, num_kept=0)
            )
        except PlannerError:  # too few for what the planner always imagines
            return
        divisor *= 2


def _divided(planner: Any, divisor: int, **least: int) -> dict[str, int]:
    """Return those of the named knobs that the planner has, divided, but at least as large as said."""
    return {name: max(low, getattr(planner, name) // divisor) for name, low in least.items() if hasattr(planner, name)}
