"""How a planner is used in closed loop: time, chunks of actions, safety."""

from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal

from planners.base import Planner, PlannerError
from planners.safety import Safety


@dataclass(frozen=True, kw_only=True)
class Control:
    """Say how a planner is used in closed loop.

    Attributes:
        budget_ms: Most milliseconds of a decision, from its input to its action; None sets no limit.
        min_candidates: Where one iteration of all candidates does not fit the budget, they are halved down to so many.
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


def with_fewer_candidates(planner: Planner, min_candidates: int) -> Iterator[Planner]:
    """Yield the planner with half, a quarter, ... of its candidates (and elites), while it accepts them.

    Args:
        planner: A frozen dataclass with `num_candidates`; for others nothing is yielded.
        min_candidates: Fewest candidates.
    """
    asked: Any = getattr(planner, "num_candidates", None)
    if not is_dataclass(planner) or not isinstance(asked, int):
        return
    count = asked // 2
    while count >= min_candidates:
        others = {
            name: max(least, getattr(planner, name) * count // asked)
            for name, least in (("num_elites", 2), ("num_kept", 0))
            if hasattr(planner, name)
        }
        try:
            yield replace(planner, num_candidates=count, **others)
        except PlannerError:  # too few for what the planner always imagines
            return
        count //= 2
