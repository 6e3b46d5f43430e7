"""What a LeRobot folder holds: its features and tasks, and for each episode where its rows and its video frames are.

Folders in the wild disagree with their own metadata, so the data files decide: rows are found by the episode numbers
in the parquet files (v3.0) or by file name (v2.x), and info.json's counts are not used.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VERSIONS = ("v2.0", "v2.1", "v3.0")


class LeRobotError(ValueError):
    """Report a LeRobot folder that cannot be imported, with what to do about it."""


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
        rows: Where its rows are; empty if no data file holds any.
        clips: Camera to video; a camera without a file for this episode is absent.
    """

    index: int
    length: int | None
    tasks: tuple[str, ...]
    rows: tuple[Rows, ...]
    clips: Mapping[str, Clip]

    @property
    def num_rows(self) -> int:
        """Return the number of rows in the data files."""
        return sum(rows.stop - rows.start for rows in self.rows)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Describe a LeRobot folder.

    Attributes:
        features: Declared features, as in info.json.
        columns: Names of the columns that the data files have.
        tasks: Task number to text.
        episodes: Episodes in order of their number.
    """

    root: Path
    version: str
    fps: float
    robot: str
    features: Mapping[str, Mapping[str, Any]]
    columns: tuple[str, ...]
    tasks: Mapping[int, str]
    episodes: tuple[SourceEpisode, ...]

    @property
    def video_cameras(self) -> tuple[str, ...]:
        """Return the features that are declared as colour video."""
        return tuple(
            name for name, feature in self.features.items() if feature.get("dtype") == "video" and not _depth(feature)
        )

    @property
    def image_cameras(self) -> tuple[str, ...]:
        """Return the features that are declared as images inside the data files."""
        return tuple(
            name for name, feature in self.features.items() if feature.get("dtype") == "image" and not _depth(feature)
        )


def open_source(root: Path) -> Source:
    """Read the metadata of a LeRobot folder and find its files.

    Raises:
        LeRobotError: No such folder, not a LeRobot folder, a version that is not read, or metadata that are missing or
        damaged.
    """
    if not root.is_dir():
        raise LeRobotError(
            f"No such folder: {root}. Give the folder of a LeRobot dataset, the one that holds meta/info.json."
        )
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise LeRobotError(
            f"{root} is not a LeRobot dataset: meta/info.json is missing. Give the folder that holds meta, data and "
            "videos."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, fps, features = str(info["codebase_version"]), float(info["fps"]), dict(info["features"])
    except (ValueError, KeyError, TypeError) as error:
        raise LeRobotError(
            f"{path} is damaged or lacks codebase_version, fps or features ({type(error).__name__}: {error})."
        ) from error
    if version not in VERSIONS:
        raise LeRobotError(
            f"{root} has format {version!r}; expected one of {', '.join(VERSIONS)}. Convert it with lerobot's own "
            "scripts first."
        )
    if not fps > 0:
        raise LeRobotError(f"{path} says fps = {fps}; expected a positive number.")
    files = sorted((root / "data").rglob("*.parquet"))
    if not files:
        raise LeRobotError(
            f"{root} holds no data: no parquet file below data/. Download the dataset completely (data files may be "
            "Git LFS pointers)."
        )
    try:
        columns = tuple(pq.read_schema(files[0]).names)
        read = _episodes_v3 if version == "v3.0" else _episodes_v2
        episodes = tuple(sorted(read(root, info, features, files), key=lambda episode: episode.index))
        tasks = _tasks(root)
    except (pa.ArrowException, OSError) as error:
        raise LeRobotError(
            f"{root}: a parquet file cannot be read ({type(error).__name__}: {error}). Download it again."
        ) from error
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise LeRobotError(
            f"{root}: the metadata below meta/ are damaged ({type(error).__name__}: {error}). Download them again."
        ) from error
    return Source(
        root=root,
        version=version,
        fps=fps,
        robot=str(info.get("robot_type") or "unknown"),
        features=features,
        columns=columns,
        tasks=tasks,
        episodes=episodes,
    )


def _episodes_v2(
    root: Path, info: Mapping[str, Any], features: Mapping[str, Any], files: list[Path]
) -> Iterator[SourceEpisode]:
    """Yield the episodes of a v2.x folder: one parquet file and one video per camera each."""
    path = root / "meta" / "episodes.jsonl"
    if not path.is_file():
        raise LeRobotError(f"{root} is incomplete: meta/episodes.jsonl is missing. Download the dataset completely.")
    records: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            record = json.loads(line)
            records.setdefault(int(record["episode_index"]), record)
    # Templates in info.json do not always match the folders; the episode's number in the file name always did.
    data = {number: file for file in files if (number := _number(file)) is not None}
    cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    videos: dict[str, dict[int, Path]] = {camera: {} for camera in cameras}
    for file in sorted((root / "videos").rglob("*.mp4")):
        number, camera = _number(file), next((name for name in cameras if name in file.relative_to(root).parts), None)
        if number is not None and camera is not None:
            videos[camera][number] = file
    for index in sorted(set(records) | set(data)):
        record = records.get(index, {})
        rows = (Rows(path=data[index], start=0, stop=pq.read_metadata(data[index]).num_rows),) if index in data else ()
        yield SourceEpisode(
            index=index,
            length=int(record["length"]) if "length" in record else None,
            tasks=tuple(map(str, record.get("tasks") or ())),
            rows=rows,
            clips={camera: Clip(path=found[index]) for camera, found in videos.items() if index in found},
        )


def _episodes_v3(
    root: Path, info: Mapping[str, Any], features: Mapping[str, Any], files: list[Path]
) -> Iterator[SourceEpisode]:
    """Yield the episodes of a v3.0 folder: many episodes in one parquet file, and in one video per camera."""
    tables = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    if not tables:
        raise LeRobotError(
            f"{root} is incomplete: no parquet file below meta/episodes. Download the dataset completely."
        )
    records: dict[int, dict[str, Any]] = {}
    for path in tables:
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        for record in pq.read_table(path, columns=names).to_pylist():
            records.setdefault(int(record["episode_index"]), record)
    rows: dict[int, list[Rows]] = {}
    for path in files:
        numbers = pq.read_table(path, columns=["episode_index"])["episode_index"].to_numpy().reshape(-1)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if stop > start:
                rows.setdefault(int(numbers[start]), []).append(Rows(path=path, start=start, stop=stop))
    template = str(info.get("video_path") or "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
    cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    for index in sorted(set(records) | set(rows)):
        record = records.get(index, {})
        clips = {}
        for camera in cameras:
            keys = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            place: list[Any] = [record.get(f"videos/{camera}/{key}") for key in keys]
            if None in place:
                continue
            path = root / template.format(video_key=camera, chunk_index=int(place[0]), file_index=int(place[1]))
            if path.is_file():
                clips[camera] = Clip(path=path, from_s=float(place[2]), to_s=float(place[3]))
        yield SourceEpisode(
            index=index,
            length=int(record["length"]) if record.get("length") is not None else None,
            tasks=tuple(map(str, record.get("tasks") or ())),
            rows=tuple(rows.get(index, ())),
            clips=clips,
        )


def _tasks(root: Path) -> dict[int, str]:
    """Read task number to text; v3.0 keeps the text in `task` or, written by pandas, in `__index_level_0__`."""
    table, lines = root / "meta" / "tasks.parquet", root / "meta" / "tasks.jsonl"
    if table.is_file():
        records = pq.read_table(table).to_pylist()
    elif lines.is_file():
        records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        return {}
    texts = [record.get("task") or record.get("__index_level_0__") for record in records]
    return {
        int(record["task_index"]): str(text) for record, text in zip(records, texts, strict=True) if text is not None
    }


def _number(file: Path) -> int | None:
    found = re.fullmatch(r"episode_(\d+)", file.stem)
    return int(found.group(1)) if found else None


def _depth(feature: Mapping[str, Any]) -> bool:
    details = feature.get("info") or feature.get("video_info") or {}
    return bool(details.get("video.is_depth_map") or details.get("is_depth_map"))
