"""Ctrl-C and SIGTERM, which a cluster sends before it takes a machine away: stop between two steps, and save."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """Stop as Ctrl-C does, because of SIGTERM."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated("SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt


class Stop:
    """Hold what was asked for while several processes train: they stop together, at the end of a step.

    Attributes:
        number: The signal; 0 while there was none.
    """

    number = 0

    def raise_it(self) -> None:
        """Raise what the signal means; Ctrl-C where another process received it."""
        _stop(self.number or signal.SIGINT, None)


@contextmanager
def stopping(*, together: bool) -> Iterator[Stop]:
    """Let SIGTERM raise `Terminated` in the body, as Ctrl-C raises KeyboardInterrupt.

    Args:
        together: Note both signals instead, so that processes which train together can agree on the step.
    """
    stop = Stop()
    if current_thread() is not main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.number = number

    handlers = {number: note for number in SIGNALS} if together else {signal.SIGTERM: _stop}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undivided() -> Iterator[None]:
    """Let signals wait until the body is done, so that what is saved then is a whole step."""
    if current_thread() is not main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    before = {number: signal.signal(number, lambda *what: received.append(what)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    for number, frame in received[:1]:
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
