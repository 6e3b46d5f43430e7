"""Ctrl-C: one press stops in good order, and nothing that is pressed meanwhile can break that."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import current_thread, main_thread
from types import FrameType

IMPATIENT_AFTER_S = 2.0
EXIT_CODE = 130


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt, and a press more than two seconds later end the process at once.

    What comes sooner is ignored: terminals and `timeout` send several, and one that hits the cleaning up of worker
    processes leaves Python waiting for them for ever.
    """
    if current_thread() is not main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    pressed_s: list[float] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if not pressed_s:
            pressed_s.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - pressed_s[0] > IMPATIENT_AFTER_S:
            os._exit(EXIT_CODE)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        # After a press the process is about to end, and a second one must not break that either. Python's own shutdown
        # puts every handler but "ignore" back to the default, which kills.
        signal.signal(signal.SIGINT, signal.SIG_IGN if pressed_s else before)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep Ctrl-C waiting until the body is done; processes that start in the body never see it.

    A blocked signal stays blocked in a child process, so that this one alone decides how to stop.
    """
    if current_thread() is not main_thread():
        yield
        return
    resource_tracker.ensure_running()  # started later, by the first worker, it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
