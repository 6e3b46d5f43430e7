"""Where the episodes of the two layouts are: v2.x has files for each episode, v3.0 has many episodes in a file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embodied_wm.data.lerobot.checks import (
    LeRobotError,
    fill_template,
    finite,
    inside,
    json_value,
    read_json_lines,
    read_parquet,
    read_records,
    texts,
    whole,
)

# Keys of an episode's metadata that say where its files are or repeat what the data files say.
_PLACES = re.compile(r"(data|videos|meta|stats)/.*|episode_index|length|tasks|dataset_(from|to)_index")
_VIDEO_KEYS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Name consecutive rows [start, stop) of one parquet file."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Name a part of one video file, in seconds; the whole file where `from_s` is None."""

    path: Path
    from_s: float | None = None
    to_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceEpisode:
    """Hold where one episode is.

    Attributes:
        index: Its number in the source.
        length: Rows that the metadata claim, if they do.
        tasks: Task texts of the metadata.
        details: What else the metadata say of it, as JSON values.
        rows: Where its rows are; empty if no data file holds any.
        problem: Why its rows cannot be read, "" if they can.
        clips: Camera to video; a camera without a file for this episode is absent.
    """

    index: int
    length: int | None
    tasks: tuple[str, ...]
    details: Mapping[str, Any]
    rows: tuple[Rows, ...]
    clips: Mapping[str, Clip]
    problem: str = ""

    @property
    def num_rows(self) -> int:
        """Return the number of rows in the data files."""
        return sum(rows.stop - rows.start for rows in self.rows)


def episodes_v2(root: Path, cameras: Sequence[str], files: Mapping[Path, int | str]) -> Iterator[SourceEpisode]:
    """Yield the episodes of a v2.x folder: one parquet file and one video per camera each.

    Args:
        root: The folder.
        cameras: Features that are videos.
        files: Parquet file to its number of rows, or to why it cannot be read.

    Raises:
        LeRobotError: The metadata are missing or damaged.
    """
    path = root / "meta" / "episodes.jsonl"
    if not path.is_file():
        raise LeRobotError(f"{root} is incomplete: meta/episodes.jsonl is missing. Download the dataset completely.")
    records = _by_episode(read_json_lines(path))
    # Templates in info.json do not always match the folders; the episode's number in the file name always did.
    data = {number: file for file in files if (number := _number(file.stem, "episode")) is not None}
    videos: dict[str, dict[int, Path]] = {camera: {} for camera in cameras}
    for file, camera in _video_files(root, cameras):
        number = _number(file.stem, "episode")
        if number is not None:
            videos[camera][number] = file
    for index in sorted(set(records) | set(data)):
        content = files[data[index]] if index in data else 0
        rows = (Rows(path=data[index], start=0, stop=content),) if isinstance(content, int) and content else ()
        clips = {camera: Clip(path=found[index]) for camera, found in videos.items() if index in found}
        episode = _episode(index, *records.get(index, ("", {})), rows=rows, clips=clips)
        yield replace(episode, problem=content) if isinstance(content, str) else episode


def episodes_v3(
    root: Path, template: Any, cameras: Sequence[str], files: Mapping[Path, int | str]
) -> Iterator[SourceEpisode]:
    """Yield the episodes of a v3.0 folder: many episodes in one parquet file, and in one video per camera.

    Args:
        root: The folder.
        template: What info.json says of where videos are.
        cameras: Features that are videos.
        files: Parquet file to its number of rows, or to why it cannot be read.

    Raises:
        LeRobotError: The metadata are missing or damaged, lead out of the folder, or do not say which episodes a
            damaged file held.
    """
    tables = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    if not tables:
        raise LeRobotError(
            f"{root} is incomplete: no parquet file below meta/episodes. Download the dataset completely."
        )
    records = _by_episode([record for path in tables for record in read_records(path, "stats/")])
    rows: dict[int, list[Rows]] = {}
    problems: dict[int, str] = {}
    for path, content in files.items():
        problem = content if isinstance(content, str) else ""
        try:
            runs = [] if problem else list(_runs_of_episodes(path))
        except LeRobotError as error:
            runs, problem = [], str(error)
        for index, start, stop in runs:
            rows.setdefault(index, []).append(Rows(path=path, start=start, stop=stop))
        if problem:
            problems |= dict.fromkeys(_episodes_of(path, records, problem), problem)
    # Files are found by the numbers in their names; the template is asked only for those that are named otherwise.
    videos = {
        (camera, chunk, number): file
        for file, camera in _video_files(root, cameras)
        if (number := _number(file.stem, "file")) is not None and (chunk := _chunk(file.relative_to(root))) is not None
    }
    for index in sorted(set(records) | set(rows)):
        where, record = records.get(index, ("", {}))
        clips = {}
        for camera in cameras:
            place = [record.get(f"videos/{camera}/{key}") for key in _VIDEO_KEYS]
            if None in place:
                continue
            chunk, number = (whole(value, f"a file number of {camera!r} in {where}") for value in place[:2])
            from_s, to_s = (finite(value, f"a time of {camera!r} in {where}") for value in place[2:])
            file = videos.get((camera, chunk, number)) or _templated(root, template, camera, chunk, number)
            if file is not None:
                clips[camera] = Clip(path=file, from_s=from_s, to_s=to_s)
        episode = _episode(index, where, record, rows=tuple(rows.get(index, ())), clips=clips)
        yield replace(episode, problem=problems.get(index, ""))


def _episodes_of(path: Path, records: Mapping[int, tuple[str, Mapping[str, Any]]], problem: str) -> list[int]:
    """Return the episodes that the metadata place in a damaged data file.

    Raises:
        LeRobotError: `problem`, as there are none, and so nobody knows what is lost.
    """
    place = (_chunk(path), _number(path.stem, "file"))
    lost = [
        index
        for index, (_, record) in records.items()
        if (record.get("data/chunk_index"), record.get("data/file_index")) == place
    ]
    if not lost:
        raise LeRobotError(f"{problem} The metadata do not say which episodes it held.")
    return lost


def _by_episode(records: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """Return episode number to its first record; a record that stands twice counts once."""
    found: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for where, record in records:
        index = whole(record.get("episode_index"), f"episode_index in {where}", minimum=0)
        found.setdefault(index, (where, record))
    return found


def _episode(
    index: int, where: str, record: Mapping[str, Any], *, rows: tuple[Rows, ...], clips: Mapping[str, Clip]
) -> SourceEpisode:
    length = record.get("length")
    return SourceEpisode(
        index=index,
        length=None if length is None else whole(length, f"length in {where}"),
        tasks=texts(record.get("tasks")),
        details=json_value({key: value for key, value in record.items() if not _PLACES.fullmatch(key)}),
        rows=rows,
        clips=clips,
    )


def _runs_of_episodes(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield (episode, first row, one past the last row) of each run of rows with one episode number."""
    table = read_parquet(path, ["episode_index"])
    if "episode_index" not in table.column_names:
        raise LeRobotError(f"{path} has no column 'episode_index', so its rows belong to nothing. Download it again.")
    column = table["episode_index"]
    numbers = column.to_numpy().reshape(-1) if not column.null_count else np.array([None])
    if numbers.dtype.kind not in "iuf" or (len(numbers) and not (numbers >= 0).all()):
        raise LeRobotError(f"{path}: 'episode_index' holds {column.type} with gaps or below 0; expected row numbers.")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if stop > start:
            yield whole(numbers[start].item(), f"episode_index of row {start} in {path}", minimum=0), start, stop


def _video_files(root: Path, cameras: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield the video files that lie in a folder named after a camera, and the camera."""
    for file in sorted((root / "videos").rglob("*.mp4")):
        camera = next((part for part in file.relative_to(root).parts if part in cameras), None)
        if camera is not None:
            yield file, camera


def _templated(root: Path, template: Any, camera: str, chunk: int, number: int) -> Path | None:
    if not isinstance(template, str):
        return None
    what = f"video_path in {root / 'meta' / 'info.json'}"
    path = inside(
        root, fill_template(template, {"video_key": camera, "chunk_index": chunk, "file_index": number}, what), what
    )
    try:
        return path if path.is_file() else None
    except OSError as error:  # a name that is too long
        raise LeRobotError(f"{what} names a file that cannot be looked up: {error.strerror}") from error


def _number(stem: str, word: str) -> int | None:
    found = re.fullmatch(rf"{word}[_-](\d{{1,18}})", stem)
    return int(found.group(1)) if found else None


def _chunk(path: Path) -> int | None:
    return next((number for part in path.parts if (number := _number(part, "chunk")) is not None), None)
