"""Progress of long jobs: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class Track:
    """Show how far a job is; use as a context manager and call `advance`."""

    def __init__(
        self, what: str, total: int, *, unit: str = "steps", start: int = 0, console: Console | None = None
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self._first = start, start
        self.console = console or Console(file=sys.stderr)
        self._note = ""
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(what, total=total, completed=start, rate="", note="")

    def __enter__(self) -> Self:
        """Start the clock."""
        if self._bar:
            self._bar.start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units done; `note` is shown behind (a loss, say)."""
        self.done += count
        self._note = note or self._note
        now = time.monotonic()
        rate = (self.done - self._first) / max(now - self._began, 1e-6)
        shown = f"{rate:,.1f} {self.unit}/s" if rate >= 1 else f"{rate:.2g} {self.unit}/s"
        if self._bar:
            self._bar.update(self._task, completed=self.done, rate=shown, note=self._note)
        elif now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            left = (self.total - self.done) / max(rate, 1e-6)
            self.console.print(
                f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {shown}, {time_left(left)} left "
                f"{self._note}",
                highlight=False,
                soft_wrap=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar and, when the job is whole, say how long it took."""
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self.console.print(
                f"{self.what}: {self.done:,} {self.unit} in {time.monotonic() - self._began:,.1f} s {self._note}",
                highlight=False,
                soft_wrap=True,
            )


def time_left(seconds: float) -> str:
    """Write a time in seconds, or minutes or hours where there would be hundreds of seconds or minutes."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 200 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 3600:,.0f} h"


@contextmanager
def track_reports(what: str, *, unit: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows (units done, units in all) as a bar, which appears when there is something to do."""
    with ExitStack() as stack:
        tracks: list[Track] = []

        def report(done: int, total: int) -> None:
            if not tracks and done < total:
                tracks.append(stack.enter_context(Track(what, total, unit=unit, start=done, console=console)))
            if tracks:
                tracks[0].advance(done - tracks[0].done)

        yield report
