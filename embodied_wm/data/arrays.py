"""Open, read and extend single arrays of an episode store, and say clearly what is wrong with a damaged one."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import zarr

from embodied_wm.data.layout import StoreError

# zarr's own pipeline replaces files by rename, which crash safety needs, and the Rust one does not; reading, the Rust
# one is 3x faster.
WRITE_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
READ_PIPELINE = "zarrs.ZarrsCodecPipeline"


def is_local(where: str) -> bool:
    """Tell whether a store's address is a path of the file system, not a URL."""
    return "://" not in where


def open_array(group: zarr.Group, name: str, where: str, *, for_writing: bool) -> zarr.Array:
    """Open one array of a store.

    Raises:
        StoreError: The array is missing or its zarr.json is damaged.
    """
    fast = not for_writing and is_local(where) and importlib.util.find_spec("zarrs") is not None
    try:
        with zarr.config.set(
            {"codec_pipeline.path": READ_PIPELINE if fast else WRITE_PIPELINE, "array.write_empty_chunks": True}
        ):
            array = group[name]
    except (KeyError, ValueError, OSError) as error:
        raise StoreError(
            f"{where}: array {name!r} is missing or its zarr.json is damaged ({type(error).__name__}: {error}). "
            "Restore it from a copy, or collect or import the data again."
        ) from error
    if not isinstance(array, zarr.Array):
        raise StoreError(
            f"{where}: expected an array at {name!r}, found a group. The store was changed by another program."
        )
    return array


def read_rows(array: zarr.Array, where: str, name: str, start: int, stop: int) -> np.ndarray:
    """Read rows [start, stop) of an array.

    Raises:
        StoreError: A shard is missing, truncated or damaged; the message names array, rows and file.
    """
    if stop == start:
        return np.empty((0, *array.shape[1:]), dtype=array.dtype)
    if array.shape[0] < stop:
        raise StoreError(f"{where}: array {name!r} has {array.shape[0]} rows, {stop} are committed. {_REPAIR}")
    missing = [file for file in shard_files(array, where, name, start, stop) if not file.exists()]
    if missing:
        raise StoreError(
            f"{where}: rows {start} to {stop - 1} of array {name!r} need {_names(missing, where)}, which is missing. "
            f"{_REPAIR}"
        )
    try:
        return np.asarray(array[start:stop])
    except (RuntimeError, ValueError, OSError):
        # Another process may have replaced the last shard between the reads of its index and of its chunk: look once
        # more.
        try:
            return np.asarray(array[start:stop])
        except (RuntimeError, ValueError, OSError) as error:
            files = _names(shard_files(array, where, name, start, stop), where)
            raise StoreError(
                f"{where}: rows {start} to {stop - 1} of array {name!r} cannot be read from {files}: a chunk is "
                f"truncated or damaged ({type(error).__name__}: {error}). {_REPAIR}"
            ) from error


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
            f"truncated or damaged ({type(error).__name__}: {error}). {_REPAIR}"
        ) from error


def shard_files(array: zarr.Array, where: str, name: str, start: int, stop: int) -> list[Path]:
    """Return the files that hold rows [start, stop) of an array; none for a store behind a URL."""
    if not is_local(where) or array.shards is None:
        return []
    rows = array.shards[0]
    zeros = ["0"] * (array.ndim - 1)
    return [Path(where, name, "c", str(shard), *zeros) for shard in range(start // rows, (stop - 1) // rows + 1)]


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


_REPAIR = "Restore the file from a copy, or collect or import the data again."


def _names(files: list[Path], where: str) -> str:
    return ", ".join(str(file.relative_to(where)) for file in files[:3]) + (", ..." if len(files) > 3 else "")
