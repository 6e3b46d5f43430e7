"""Rows of LeRobot's parquet files as NumPy arrays, in the dtype and shape that a store wants."""

import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from embodied_wm.data.lerobot.checks import LeRobotError, inside, short, texts, whole
from embodied_wm.data.lerobot.resize import Resizer
from embodied_wm.data.lerobot.source import Source
from embodied_wm.data.lerobot.versions import Rows
from embodied_wm.types import FeatureSpec

BOOKKEEPING = ("index", "frame_index", "episode_index", "task_index")
DTYPES = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "bool"),
)
MAX_VALUES_PER_ROW = 2**24
# What PIL raises for damaged images of one format or another.
IMAGE_ERRORS = (
    *(OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def numeric_features(source: Source) -> tuple[dict[str, FeatureSpec], list[str]]:
    """Return the features that the data files hold as numbers, other than row numbers, and notes on those left out.

    Raises:
        LeRobotError: A declared shape is none.
    """
    specs: dict[str, FeatureSpec] = {}
    notes = []
    for name, feature in source.features.items():
        dtype = feature.get("dtype")
        if name in BOOKKEEPING or dtype in ("video", "image"):
            continue
        if name not in source.columns:
            notes.append(f"feature {name!r} is declared but not in the data files: left out")
        elif dtype in DTYPES:
            specs[name] = _spec(name, feature, f"feature {name!r} in {source.root / 'meta' / 'info.json'}")
    undeclared = sorted(set(source.columns) - set(source.features) - set(BOOKKEEPING))
    if undeclared:
        notes.append(f"columns {undeclared} are not declared in info.json: left out")
    return specs, notes


def text_features(source: Source) -> tuple[str, ...]:
    """Return the declared features that are neither numbers nor images: sentences, lists of them, and the like."""
    return tuple(
        name
        for name, feature in source.features.items()
        if name in source.columns
        and name not in BOOKKEEPING
        and feature.get("dtype") not in (*DTYPES, "video", "image")
    )


def _spec(name: str, feature: Mapping[str, Any], where: str) -> FeatureSpec:
    sizes = feature.get("shape")
    sizes = sizes if isinstance(sizes, list) else [] if sizes is None else [sizes]
    shape = tuple(whole(size, f"{where}: a size in its shape", minimum=1) for size in sizes)
    if math.prod(shape) > MAX_VALUES_PER_ROW:
        raise LeRobotError(
            f"{where} has the shape {short(shape)}; at most {MAX_VALUES_PER_ROW} values a row are taken."
        )
    names, units = _names(feature.get("names")), texts(feature.get("units"))
    # LeRobot declares scalars such as the reward with shape [1] and no name or their own; a vector of one joint is a
    # vector all the same.
    if shape == (1,) and not name.startswith(("observation", "action")) and names in ((), (name,)):
        shape = ()
    size = shape[-1] if shape else 0
    return FeatureSpec(
        dtype=str(feature["dtype"]),
        shape=shape,
        names=names if len(names) == size else (),
        units=units if len(units) == size else (),
    )


def read_table(rows: tuple[Rows, ...], columns: tuple[str, ...]) -> pa.Table:
    """Read some columns of an episode's rows, as they stand in the files.

    Raises:
        LeRobotError: A file is damaged, or the files differ in a column's type.
    """
    parts = []
    for part in rows:
        ends, present = _contents(part.path, stamp(part.path))
        first, last = np.searchsorted(ends, [part.start, part.stop - 1], side="right").tolist()
        names = tuple(name for name in columns if name in present)
        offset = part.start - (int(ends[first - 1]) if first else 0)
        table = _row_groups(part.path, stamp(part.path), first, last, names)
        parts.append(table.slice(offset, part.stop - part.start))
    try:
        return pa.concat_tables(parts, promote_options="default")
    except pa.ArrowException as error:
        raise LeRobotError(f"its data files differ in the types of their columns ({short(error)})") from error


def column_array(table: pa.Table, name: str, spec: FeatureSpec) -> tuple[np.ndarray, str | None]:
    """Return a column as [rows, *row shape] of the feature's dtype, and a remark where that dtype rounds its values.

    Raises:
        LeRobotError: The column is missing, has gaps, its rows are of another size, or the dtype cannot hold it.
    """
    if name not in table.column_names:
        raise LeRobotError(f"column {name!r} is missing")
    column = table[name].combine_chunks()
    # Matrices are lists of lists, which look like a type of their own once the package `datasets` is imported.
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    while _is_list(column.type):
        if column.null_count:
            raise LeRobotError(f"column {name!r} has {column.null_count} empty rows")
        sizes = _list_sizes(column)
        if (sizes != sizes[:1]).any():
            row = int(np.argmax(sizes != sizes[0]))
            raise LeRobotError(f"column {name!r} has {sizes[row]} values in row {row}, {sizes[0]} in row 0")
        column = column.flatten()
    if column.null_count:
        raise LeRobotError(f"column {name!r} has {column.null_count} empty values")
    expected = (table.num_rows, *spec.shape)
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not any(holds(column.type) for holds in is_number) or len(column) != math.prod(expected):
        raise LeRobotError(
            f"column {name!r} holds {len(column)} values of {column.type}, expected {expected} of {spec.dtype}"
        )
    values = column.to_numpy(zero_copy_only=False).reshape(expected)
    return _cast(values, spec.dtype, name)


def whole_numbers(table: pa.Table, name: str) -> np.ndarray | None:
    """Return a column of LeRobot's own bookkeeping, None where it is missing or holds something else: [rows] int64."""
    if name not in table.column_names or table[name].null_count:
        return None
    numbers = table[name].to_numpy().reshape(-1)
    if numbers.dtype.kind not in "iuf":
        return None
    is_whole = (np.abs(numbers.astype(np.float64)) < 2**53) & (numbers == np.rint(numbers))
    return numbers.astype(np.int64) if is_whole.all() else None


def image_array(table: pa.Table, name: str, root: Path, resizer: Resizer) -> np.ndarray:
    """Decode a column of compressed images and resize them: [rows, height, width, 3] uint8.

    Raises:
        LeRobotError: The column is missing, or an image cannot be read.
    """
    if name not in table.column_names:
        raise LeRobotError(f"column {name!r} is missing")
    frames = np.empty((table.num_rows, *resizer.size, 3), dtype=np.uint8)
    for row in range(table.num_rows):
        with open_image(table, name, row, root) as image:
            try:
                frames[row] = resizer.image(image)
            except IMAGE_ERRORS as error:
                raise LeRobotError(f"image {name!r} of row {row} cannot be read ({short(error)})") from error
    return frames


def open_image(table: pa.Table, name: str, row: int, root: Path) -> Image.Image:
    """Open a compressed image that stands in the table, or in a file of the dataset that the table names.

    Raises:
        LeRobotError: There is none, or it is no image.
    """
    value = table[name][row].as_py()
    content = value.get("bytes") if isinstance(value, Mapping) else value
    place = value.get("path") if isinstance(value, Mapping) else None
    try:
        if not isinstance(content, bytes) or not content:
            if not isinstance(place, str):
                raise LeRobotError(f"image {name!r} of row {row} has neither bytes nor a path")
            content = inside(root, place, f"image {name!r} of row {row}").read_bytes()
        return Image.open(io.BytesIO(content))
    except IMAGE_ERRORS as error:
        if isinstance(error, LeRobotError):
            raise
        raise LeRobotError(f"image {name!r} of row {row} cannot be read ({short(error)})") from error


def changes(values: Sequence[Any]) -> list[list[Any]]:
    """Return [row, value] of the first row and of every row whose value differs from the one before."""
    return [[row, value] for row, value in enumerate(values) if row == 0 or value != values[row - 1]]


def stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced; what is remembered of a file is remembered with it.

    Raises:
        LeRobotError: There is no such file any more.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise LeRobotError(f"{path.name} cannot be opened ({error.strerror})") from error
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=256)
def _contents(path: Path, _stamp: tuple[int, int]) -> tuple[np.ndarray, frozenset[str]]:
    """Return where the row groups of a file end, and its columns."""
    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            return np.cumsum(sizes), frozenset(file.schema_arrow.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LeRobotError(f"{path.name} cannot be read ({short(error)})") from error


@lru_cache(maxsize=4)
def _row_groups(path: Path, _stamp: tuple[int, int], first: int, last: int, columns: tuple[str, ...]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_groups(list(range(first, last + 1)), columns=list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LeRobotError(f"{path.name} cannot be read ({short(error)})") from error


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _list_sizes(column: Any) -> np.ndarray:
    """Return how many values each list of a column has; those of a fixed size have it in their type."""
    if pa.types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size)
    return column.value_lengths().to_numpy(zero_copy_only=False)


def _cast(values: np.ndarray, dtype: str, name: str) -> tuple[np.ndarray, str | None]:
    if values.dtype == dtype:
        return values, None
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
        wrong = cast.astype(values.dtype) != values
    if cast.dtype.kind == "f":
        wrong &= np.isfinite(values)
        if wrong.any() and np.isfinite(cast[wrong]).all():
            return cast, f"column {name!r} holds {values.dtype}, declared is {dtype}: rounded"
    if wrong.any():
        raise LeRobotError(f"column {name!r} holds {values[wrong][0]}, which {dtype}, its declared type, cannot hold")
    return cast, None


def _names(names: Any) -> tuple[str, ...]:
    """Return the names of a feature's elements: a list, a dict of lists, or a dict of name to position."""
    if isinstance(names, Mapping):
        parts = list(names.values())
        if parts and all(isinstance(part, int) for part in parts):
            return tuple(sorted(names, key=lambda name: names[name]))
        names = [name for part in parts if isinstance(part, list) for name in part]
    return tuple(map(str, names)) if isinstance(names, list) else ()
