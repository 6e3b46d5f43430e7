"""Anytime planning: a planner stops between iterations, before one that would not end in time.

A planner writes its loop as `for iteration in iterations("CEM", self.num_iterations, deadline):` and does nothing else
about time. How long an iteration takes is learnt here, for each planner's name.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

REMEMBERED = 32
"""Durations that a prediction is made from."""
QUANTILE = 0.9
"""Predict high, but not the worst ever: one hiccup of the machine must not stop planning."""
PATIENCE = 500
"""Refusals in a row after which an iteration is tried anyway, since the machine may have become faster."""


class OutOfTime(RuntimeError):
    """Say that a deadline leaves no time for even one iteration: the caller goes on with what it has."""


class Durations:
    """Predict how long something takes from how long it took lately."""

    def __init__(self) -> None:
        """Start with nothing known; the first duration is not believed, since what is cold is slow."""
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._is_cold = True

    def add(self, seconds: float) -> None:
        """Remember one duration, unless it is the first."""
        if not self._is_cold:
            self._recent.append(seconds)
        self._is_cold = False

    def forget(self) -> None:
        """Predict nothing until the next duration is known."""
        self._recent.clear()

    @property
    def expected(self) -> float:
        """Return the predicted seconds, 0 where nothing is known."""
        if not self._recent:
            return 0.0
        return sorted(self._recent)[int(QUANTILE * (len(self._recent) - 1) + 0.5)]


class Deadline:
    """Give a planner the time until which it may plan; keep one for all decisions of a controller.

    Attributes:
        num_iterations: Iterations that ended since `start`.
        was_cut: Whether iterations were left out since `start`.
        last_s: When the last of them ended (on the clock), or `start` was called.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the clock, in seconds; `start` must follow before planning."""
        self._clock = clock
        self._until = float("inf")
        self._known: defaultdict[str, Durations] = defaultdict(Durations)
        self._num_refused = 0
        self.num_iterations, self.was_cut, self.last_s = 0, False, 0.0

    def start(self, seconds: float) -> None:
        """Allow planning for so many seconds from now; infinity sets no limit, and durations are still learnt."""
        self.last_s = self._clock()
        self._until = self.last_s + seconds
        self.num_iterations, self.was_cut = 0, False

    def iterations(self, planner: str, count: int) -> Iterator[int]:
        """Do what the function `iterations` does."""
        durations = self._known[planner]
        for index in range(count):
            began = self._clock()
            if began + durations.expected > self._until or began >= self._until:
                self.was_cut = True
                if index:
                    return
                self._refuse(planner, durations, self._until - began)
            yield index
            self.last_s = self._clock()
            durations.add(self.last_s - began)
            self.num_iterations += 1
            self._num_refused = 0

    def _refuse(self, planner: str, durations: Durations, left: float) -> None:
        expected = durations.expected
        self._num_refused += 1
        if self._num_refused >= PATIENCE:
            self._num_refused = 0
            durations.forget()
        raise OutOfTime(
            f"{planner}: {1e3 * left:.1f} ms are left and one iteration takes about {1e3 * expected:.1f} ms. Give a "
            "larger budget, fewer candidates, or a shorter horizon."
        )


def iterations(planner: str, count: int, deadline: Deadline | None) -> Iterator[int]:
    """Yield 0, 1, ... below `count`; stop before an iteration that is predicted to end after the deadline.

    Args:
        planner: Its name: durations are learnt for each.
        count: Iterations where time does not matter.
        deadline: None lets all of them happen.

    Raises:
        OutOfTime: If not even the first iteration is allowed.
    """
    return iter(range(count)) if deadline is None else deadline.iterations(planner, count)
