"""Build a folder beside its place and move it there when it is whole, so that nothing half made bears its name."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embodied_wm.data.arrays import lock_for_writing, unlock
from embodied_wm.data.layout import StoreError

SUFFIX = ".partial"


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """Yield where to make a folder; when the body is done it is moved to `out`, when the body fails it is removed.

    What a process that was killed left behind is removed by the next one that writes to the same place.

    Raises:
        StoreError: `out` exists, another process is writing it, or the file system refused.
    """
    if out.exists():
        raise StoreError(f"{out} exists already. Delete it or choose another path.")
    aside = out.with_name(out.name + SUFFIX)
    try:
        aside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{out} cannot be written: {error}. Choose another path.") from error
    try:
        lock = lock_for_writing(str(aside))
    except StoreError as error:
        raise StoreError(f"{out} is being written by another process. Wait for it, or choose another path.") from error
    try:
        whole = aside / out.name
        if whole.exists():
            shutil.rmtree(whole)
        yield whole
        whole.rename(out)
    except OSError as error:
        raise StoreError(
            f"{out} could not be written: {error}. Free space or choose another path, then try again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        unlock(lock)
