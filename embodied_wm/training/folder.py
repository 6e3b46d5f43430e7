"""The folder of a run belongs to one training at a time."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embodied_wm.training.state import TrainingError

LOCK = ".lock"


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which the system gives back when the process ends, however it ends.

    Raises:
        TrainingError: If the folder cannot be written, or another training holds it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise TrainingError(
            f"the run folder {run_dir} cannot be written: {error}. Free space, or give another run_dir."
        ) from error
    try:
        _lock(descriptor, run_dir)
        yield
    finally:
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
            f"{run_dir} belongs to a training that is running ({holder or 'unknown'}). Wait for it, stop it, or give "
            "another run_dir."
        ) from error
    except OSError:
        return  # a file system without locks, or a full one, which the first save will report
