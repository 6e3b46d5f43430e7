"""Rows of LeRobot's parquet files as NumPy arrays, in the dtype and shape that a store wants."""

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from embodied_wm.data.lerobot.source import LeRobotError, Rows, Source
from embodied_wm.types import FeatureSpec

BOOKKEEPING = ("index", "frame_index", "episode_index", "task_index")


def numeric_features(source: Source) -> tuple[dict[str, FeatureSpec], list[str]]:
    """Return the features, other than images and row numbers, that the data files hold, and notes on those left out."""
    specs: dict[str, FeatureSpec] = {}
    notes = []
    for name, feature in source.features.items():
        dtype = str(feature.get("dtype"))
        if name in BOOKKEEPING or dtype in ("video", "image"):
            continue
        if name not in source.columns:
            notes.append(f"feature {name!r} is declared but not in the data files: left out")
            continue
        try:
            kind = np.dtype(dtype).kind
        except TypeError:
            kind = "?"
        if kind not in "biuf" or "/" in name:
            notes.append(f"feature {name!r} of dtype {dtype!r} is not numeric: left out")
            continue
        shape = tuple(int(size) for size in feature.get("shape") or ())
        # LeRobot declares scalars such as the reward with shape [1]; a vector of one joint is a vector all the same.
        if shape == (1,) and not name.startswith(("observation", "action")):
            shape = ()
        names, units = (
            told if shape and len(told := _names(feature.get(key))) == shape[-1] else () for key in ("names", "units")
        )
        specs[name] = FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
    undeclared = sorted(set(source.columns) - set(source.features) - set(BOOKKEEPING))
    if undeclared:
        notes.append(f"columns {undeclared} are not declared in info.json: left out")
    return specs, notes


def read_table(rows: tuple[Rows, ...], columns: tuple[str, ...]) -> pa.Table:
    """Read some columns of an episode's rows, in order of the row's number within its episode where that is given."""
    with_number = tuple(dict.fromkeys([*columns, "frame_index"]))
    parts = [_file(part.path, with_number).slice(part.start, part.stop - part.start) for part in rows]
    table = pa.concat_tables(parts, promote_options="default")
    if len(rows) > 1 and "frame_index" in table.column_names:
        table = table.sort_by("frame_index")
    return table


def column_array(table: pa.Table, name: str, spec: FeatureSpec) -> np.ndarray:
    """Return a column as [rows, *row shape] of the feature's dtype.

    Raises:
        LeRobotError: The column is missing, has gaps, or its rows are of another size.
    """
    if name not in table.column_names:
        raise LeRobotError(f"column {name!r} is missing")
    column = table[name].combine_chunks()
    # Matrices are lists of lists, which look like a type of their own once the package `datasets` is imported.
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    while (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    ):
        if column.null_count:
            raise LeRobotError(f"column {name!r} has {column.null_count} empty rows")
        column = column.flatten()
    if column.null_count:
        raise LeRobotError(f"column {name!r} has {column.null_count} empty values")
    values = column.to_numpy(zero_copy_only=False)
    expected = (table.num_rows, *spec.shape)
    if values.dtype.kind not in "biuf" or values.size != np.prod(expected, dtype=np.int64):
        raise LeRobotError(
            f"column {name!r} holds {values.size} values of {values.dtype}, expected {expected} of {spec.dtype}"
        )
    return values.reshape(expected).astype(spec.dtype)


def image_array(table: pa.Table, name: str, root: Path, size: tuple[int, int]) -> np.ndarray:
    """Decode a column of compressed images and resize them by area: [rows, height, width, 3] uint8.

    Raises:
        LeRobotError: The column is missing, or an image cannot be read.
    """
    if name not in table.column_names:
        raise LeRobotError(f"column {name!r} is missing")
    frames = np.empty((table.num_rows, *size, 3), dtype=np.uint8)
    for row, value in enumerate(table[name].to_pylist()):
        try:
            with Image.open(io.BytesIO(_image_bytes(value, root))) as image:
                frames[row] = np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX))
        except (OSError, TypeError, ValueError) as error:
            raise LeRobotError(
                f"image {name!r} of row {row} cannot be read ({type(error).__name__}: {error})"
            ) from error
    return frames


@lru_cache(maxsize=4)
def _file(path: Path, columns: tuple[str, ...]) -> pa.Table:
    present = set(pq.read_schema(path).names)
    return pq.read_table(path, columns=[name for name in columns if name in present])


def _image_bytes(value: Any, root: Path) -> bytes:
    """Return a compressed image that stands in the table, or in a file that the table names."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(content, bytes) and content:
        return content
    if isinstance(value, Mapping) and value.get("path"):
        return Path(root, value["path"]).read_bytes()
    raise ValueError("neither bytes nor a path")


def _names(names: Any) -> tuple[str, ...]:
    """Return the names of a feature's elements; they stand in a list, or in a dict of one list."""
    if isinstance(names, Mapping):
        names = next(iter(names.values()), ())
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()
