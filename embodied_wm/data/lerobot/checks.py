"""Values and files of somebody else's metadata, checked before anything is done with them.

What is wrong becomes a LeRobotError that names the place; no path that the metadata spell may leave the folder.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embodied_wm.ranges import is_number

MAX_COUNT = 2**62
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


class LeRobotError(ValueError):
    """Report a LeRobot dataset that cannot be imported, with what to do about it."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        LeRobotError: It cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LeRobotError(f"{path} is damaged ({short(error)}). Download it again.") from error


def read_json_lines(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Read a file of JSON objects, one a line: (where it stands, object).

    Raises:
        LeRobotError: It cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold U+2028 and the like as they are
    except (OSError, ValueError) as error:
        raise LeRobotError(f"{path} is damaged ({short(error)}). Download it again.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LeRobotError(f"{where} is damaged ({short(error)}). Download the file again.") from error
        found.append((where, mapping(record, where)))
    return found


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file, or those of the columns that it has.

    Raises:
        LeRobotError: It cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            present = set(file.schema_arrow.names)
            return file.read(None if columns is None else [name for name in columns if name in present])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_records(path: Path, leave_out: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Read a parquet file as (where it stands, row), without the columns whose names begin with `leave_out`.

    Raises:
        LeRobotError: It cannot be read.
    """
    names = [name for name in parquet_header(path)[1] if not name.startswith(leave_out)]
    table = read_parquet(path, names)
    try:
        return [(f"{path}, row {number}", record) for number, record in enumerate(table.to_pylist())]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _unreadable(path, error) from error


def parquet_header(path: Path) -> tuple[int, tuple[str, ...]]:
    """Return the number of rows and the names of the columns of a parquet file.

    Raises:
        LeRobotError: It cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.metadata.num_rows, tuple(file.schema_arrow.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return a mapping with text keys, or say what it is instead.

    Raises:
        LeRobotError: It is something else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise LeRobotError(f"{what} is {short(value)}; expected an object with named values.")
    return value


def whole(value: Any, what: str, *, minimum: int = -MAX_COUNT) -> int:
    """Return a whole number of at least `minimum`; 3.0 is one too.

    Raises:
        LeRobotError: It is something else.
    """
    is_whole = is_number(value) and math.isfinite(value) and int(value) == value and minimum <= value <= MAX_COUNT
    if not is_whole:
        least = f" of at least {minimum}" if minimum > -MAX_COUNT else ""
        raise LeRobotError(f"{what} is {short(value)}; expected a whole number{least}.")
    return int(value)


def finite(value: Any, what: str) -> float:
    """Return a finite number.

    Raises:
        LeRobotError: It is something else.
    """
    if not is_number(value) or abs(value) > MAX_COUNT or not math.isfinite(value):
        raise LeRobotError(f"{what} is {short(value)}; expected a finite number.")
    return float(value)


def texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a list, or of a text that stands alone."""
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def inside(root: Path, relative: str, what: str) -> Path:
    """Return the path of a file below a folder.

    Links are not followed: the folders of the hub's own cache hold links to files elsewhere.

    Raises:
        LeRobotError: The path leads out of the folder, or is none.
    """
    path = Path(os.path.normpath(root / relative)) if "\0" not in relative else root
    if not path.is_relative_to(Path(os.path.normpath(root))) or path == Path(os.path.normpath(root)):
        raise LeRobotError(f"{what} names {short(relative)}, which is no file inside {root}: not read")
    return path


def fill_template(template: str, values: Mapping[str, str | int], what: str) -> str:
    """Fill fields such as {video_key} or {chunk_index:03d}, and nothing else that Python's format could do.

    Raises:
        LeRobotError: The template has another field.
    """

    def fill(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise LeRobotError(f"{what} is {short(template)}, with the field {found[1]!r}; known are {list(values)}.")
        return str(values[found[1]]).rjust(int(found[2] or 0), "0")

    return _FIELD.sub(fill, template)


def json_value(value: Any) -> Any:
    """Return a value as JSON proper has it: infinities and NaN become null, what JSON does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def short(value: Any) -> str:
    """Return a value for a message, not longer than a line."""
    if isinstance(value, BaseException):
        text = " ".join(f"{type(value).__name__}: {value}".split())
    elif isinstance(value, int) and abs(value) > 10**30:
        text = "a number of more than 30 digits"
    else:
        text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _unreadable(path: Path, error: Exception) -> LeRobotError:
    return LeRobotError(f"the parquet file {path} cannot be read ({short(error)}). Download it again.")
