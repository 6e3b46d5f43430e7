"""The folder of a run belongs to one process at a time."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from embodied_wm.training.state import TrainingError

LOCK = ".lock"

_OWNED: ContextVar[frozenset[Path]] = ContextVar("owned", default=frozenset())
"""The folders that this thread holds."""


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which the system gives back when the process ends, however it ends.

    A body that holds the folder already, as a training in the run of a verb does, goes on holding it.

    Raises:
        TrainingError: If the folder cannot be written, or another process or thread holds it.
    """
    place = run_dir.resolve()
    if place in _OWNED.get():
        yield
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise TrainingError(
            f"the run folder {run_dir} cannot be written: {error}. Free space, or give another run_dir."
        ) from error
    before = _OWNED.set(_OWNED.get() | {place})
    try:
        _lock(descriptor, run_dir)
        yield
    finally:
        _OWNED.reset(before)
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        raise TrainingError(
            f"{run_dir} belongs to a run that is going on ({holder or 'unknown'}). Wait for it, stop it, or give "
            "another run_dir."
        ) from error
    except OSError:
        return  # a file system without locks, or a full one, which the first save will report
