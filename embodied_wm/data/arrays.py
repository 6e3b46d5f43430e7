"""Open and extend single arrays of an episode store, and let one process at a time do so."""

import os
import sys
from pathlib import Path

import numpy as np
import zarr

from embodied_wm.data.layout import StoreError
from embodied_wm.data.shards import REPAIR

# zarr's own pipeline replaces files by rename, which crash safety needs; others, such as the Rust one, do not.
WRITE_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"


def is_local(where: str) -> bool:
    """Tell whether a store's address is a path of the file system, not a URL."""
    return "://" not in where


def open_problems(where: str) -> tuple[type[Exception], ...]:
    """Return what opening a group or an array of a store may raise."""
    # Behind a URL anything may: the backends' errors have no base in common.
    return (KeyError, ValueError, OSError) if is_local(where) else (Exception,)


def open_array(group: zarr.Group, name: str, where: str) -> zarr.Array:
    """Open one array of a store.

    Raises:
        StoreError: The array is missing or its zarr.json is damaged.
    """
    try:
        with zarr.config.set({"codec_pipeline.path": WRITE_PIPELINE, "array.write_empty_chunks": True}):
            array = group[name]
    except open_problems(where) as error:
        raise StoreError(
            f"{where}: array {name!r} is missing or its zarr.json is damaged ({type(error).__name__}: {error}). "
            "Restore it from a copy, or collect or import the data again."
        ) from error
    if not isinstance(array, zarr.Array):
        raise StoreError(
            f"{where}: expected an array at {name!r}, found a group. The store was changed by another program."
        )
    return array


def write_rows(array: zarr.Array, start: int, values: np.ndarray) -> None:
    """Set an array's length to `start + len(values)` and its last rows to `values`.

    Whole files are replaced by rename. Rows before `start` keep their values at every moment.

    Raises:
        StoreError: The last shard, which also holds rows before `start`, is damaged.
        OSError: The file system refused.
    """
    stop = start + len(values)
    if array.shape[0] != stop:
        array.resize((stop, *array.shape[1:]))
    if stop == start:
        return
    try:
        array[start:stop] = values
    except (RuntimeError, ValueError) as error:
        raise StoreError(
            f"Array {array.path!r} cannot be extended at row {start}: the file that holds the rows before is "
            f"truncated or damaged ({type(error).__name__}: {error}). {REPAIR}"
        ) from error


def lock_for_writing(where: str) -> int | None:
    """Take the writer's lock of a local store, which the system gives back when the process ends, however it ends.

    Raises:
        StoreError: Another store object or process holds it.
    """
    if not is_local(where) or sys.platform == "win32":
        return None
    import fcntl

    if not Path(where).is_dir():
        return None
    descriptor = os.open(Path(where, ".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(
            f"{where} is being appended to by another process, or by another EpisodeStore that was not closed. Wait "
            "for it, or close it; reading (mode='r') is always possible."
        ) from error
    return descriptor


def unlock(descriptor: int | None) -> None:
    """Give a writer's lock back."""
    if descriptor is not None:
        os.close(descriptor)
