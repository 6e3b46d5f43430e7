"""What a LeRobot folder holds: its features and tasks, and for each episode where its rows and its video frames are.

Folders in the wild disagree with their own metadata, so the data files decide: rows are found by the episode numbers
in the parquet files (v3.0) or by file name (v2.x), and info.json's counts are not used.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embodied_wm.data.lerobot.checks import (
    LeRobotError,
    finite,
    json_value,
    mapping,
    parquet_header,
    read_json,
    read_json_lines,
    read_records,
    short,
    whole,
)
from embodied_wm.data.lerobot.versions import SourceEpisode, episodes_v2, episodes_v3

VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Describe a LeRobot folder.

    Attributes:
        info: The whole of info.json.
        features: Declared features, as in info.json.
        columns: Names of the columns that most data files have.
        tasks: Task number to text.
        episodes: Episodes in order of their number.
    """

    root: Path
    version: str
    fps: float
    info: Mapping[str, Any]
    features: Mapping[str, Mapping[str, Any]]
    columns: tuple[str, ...]
    tasks: Mapping[int, str]
    episodes: tuple[SourceEpisode, ...]

    @property
    def video_cameras(self) -> tuple[str, ...]:
        """Return the features that are declared as colour video."""
        return self._cameras("video")

    @property
    def image_cameras(self) -> tuple[str, ...]:
        """Return the features that are declared as images inside the data files."""
        return self._cameras("image")

    def _cameras(self, dtype: str) -> tuple[str, ...]:
        return tuple(
            name for name, feature in self.features.items() if feature.get("dtype") == dtype and not _depth(feature)
        )


def open_source(root: Path) -> Source:
    """Read the metadata of a LeRobot folder and find its files.

    Raises:
        LeRobotError: No such folder, not a LeRobot folder, a version that is not read, or metadata that are missing or
        damaged.
    """
    info = _read_info(root)
    features: Mapping[str, Mapping[str, Any]] = info["features"]
    files = sorted((root / "data").rglob("*.parquet"))
    if not files:
        raise LeRobotError(
            f"{root} holds no data: no parquet file below data/. Download the dataset completely (data files may be "
            "Git LFS pointers)."
        )
    contents, columns = _headers(files)
    cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    if info["codebase_version"] == "v3.0":
        episodes = episodes_v3(root, info.get("video_path"), cameras, contents)
    else:
        episodes = episodes_v2(root, cameras, contents)
    return Source(
        root=root,
        version=info["codebase_version"],
        fps=float(info["fps"]),
        info=json_value(info),
        features=features,
        columns=columns,
        tasks=_tasks(root),
        episodes=tuple(sorted(episodes, key=lambda episode: episode.index)),
    )


def _read_info(root: Path) -> Mapping[str, Any]:
    """Return info.json, in which version, rate and features are what they should be."""
    path = check_folder(root)
    info = mapping(read_json(path), str(path))
    absent = [key for key in ("codebase_version", "fps", "features") if key not in info]
    if absent:
        raise LeRobotError(f"{path} is damaged or lacks {', '.join(absent)}. Download it again.")
    if info["codebase_version"] not in VERSIONS:
        raise LeRobotError(
            f"{root} has format {short(info['codebase_version'])}; expected one of {', '.join(VERSIONS)}. Convert it "
            "with lerobot's own scripts first."
        )
    if not finite(info["fps"], f"fps in {path}") > 0:
        raise LeRobotError(f"{path} says fps = {info['fps']}; expected a positive number.")
    for name, feature in mapping(info["features"], f"features in {path}").items():
        mapping(feature, f"feature {short(name)} in {path}")
    return info


def _headers(files: Sequence[Path]) -> tuple[dict[Path, int | str], tuple[str, ...]]:
    """Return file to its number of rows, or to why it cannot be read, and the columns that most files have."""
    contents: dict[Path, int | str] = {}
    count: Counter[str] = Counter()
    for file in files:
        try:
            contents[file], names = parquet_header(file)
            count.update(names)
        except LeRobotError as error:
            if len(files) == 1:
                raise
            contents[file] = str(error)
    readable = sum(isinstance(content, int) for content in contents.values())
    return contents, tuple(name for name, files_with in count.items() if 2 * files_with > readable)


def check_folder(root: Path) -> Path:
    """Return the path of info.json.

    Raises:
        LeRobotError: No such folder, or not a LeRobot folder.
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
    return path


def _tasks(root: Path) -> dict[int, str]:
    """Read task number to text; v3.0 keeps the text in `task` or, written by pandas, in `__index_level_0__`."""
    table, lines = root / "meta" / "tasks.parquet", root / "meta" / "tasks.jsonl"
    if table.is_file():
        records = read_records(table, "stats/")
    elif lines.is_file():
        records = read_json_lines(lines)
    else:
        return {}
    found: dict[int, str] = {}
    for where, record in records:
        text = record.get("task") or record.get("__index_level_0__")
        if text is not None:
            found[whole(record.get("task_index"), f"task_index in {where}")] = str(text)
    return found


def _depth(feature: Mapping[str, Any]) -> bool:
    details = feature.get("info") or feature.get("video_info") or {}
    return isinstance(details, Mapping) and bool(details.get("video.is_depth_map") or details.get("is_depth_map"))
