"""Episodes of a LeRobot folder, read in order by several threads, each mended or left out for a reason."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embodied_wm.data.lerobot.checks import LeRobotError, json_value, short
from embodied_wm.data.lerobot.plan import Plan
from embodied_wm.data.lerobot.resize import Resizer
from embodied_wm.data.lerobot.rows import changes, column_array, image_array, read_table, whole_numbers
from embodied_wm.data.lerobot.stride import strided
from embodied_wm.data.lerobot.versions import SourceEpisode
from embodied_wm.data.lerobot.video import VideoReader, clip_range, frames_per_second, match_frames
from embodied_wm.types import Episode

# One group of episodes is one unit of work of a thread, and one commit.
GROUP_BYTES = 32 * 2**20
# A camera whose every value is below this saw nothing.
BLACK = 8


@dataclass(kw_only=True)
class EpisodeRead:
    """Hold one episode as it was read, or why it was not."""

    index: int
    num_rows: int
    episode: Episode | None = None
    repairs: list[str] = field(default_factory=list)
    skipped: str = ""


def read_in_order(plan: Plan, episodes: Sequence[SourceEpisode], num_workers: int) -> Iterator[list[EpisodeRead]]:
    """Yield groups of neighbouring episodes in order, reading some ahead in threads."""
    row_bytes = sum(np.dtype(spec.dtype).itemsize * int(np.prod(spec.shape)) for spec in plan.features.values())
    groups: deque[list[SourceEpisode]] = deque()
    size = 0
    for episode in episodes:
        episode_bytes = episode.num_rows * row_bytes // plan.settings.stride
        if not groups or size + episode_bytes > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(episode)
        size += episode_bytes
    with ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="import") as readers:
        ahead: deque[Future[list[EpisodeRead]]] = deque()
        try:
            while groups or ahead:
                while groups and len(ahead) < num_workers + 1:
                    ahead.append(readers.submit(_read_group, plan, groups.popleft()))
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _read_group(plan: Plan, group: Sequence[SourceEpisode]) -> list[EpisodeRead]:
    """Read neighbouring episodes; those that share a video file are decoded in one go."""
    videos = _Videos(plan)
    reads = []
    try:
        for episode in group:
            read = EpisodeRead(index=episode.index, num_rows=episode.num_rows)
            try:
                _read_episode(plan, episode, videos, read)
            except LeRobotError as error:
                read.skipped = str(error)
                read.repairs = []
            reads.append(read)
    finally:
        videos.close()
    return reads


class _Videos:
    """Keep one video of each camera open, as neighbouring episodes often share it."""

    def __init__(self, plan: Plan) -> None:
        self._resizers = {camera: Resizer(plan.sizes[camera], plan.settings.fit) for camera in plan.videos}
        self._open: dict[str, tuple[Path, VideoReader]] = {}

    def read(self, camera: str, path: Path, numbers: np.ndarray) -> np.ndarray:
        if camera not in self._open or self._open[camera][0] != path:
            if camera in self._open:
                self._open.pop(camera)[1].close()
            self._open[camera] = path, VideoReader(path, self._resizers[camera])
        return self._open[camera][1].read(numbers)

    def close(self) -> None:
        for _, video in self._open.values():
            video.close()


def _read_episode(plan: Plan, episode: SourceEpisode, videos: _Videos, read: EpisodeRead) -> None:
    """Read one episode into `read`; raise LeRobotError with the reason if it cannot be taken."""
    if episode.problem:
        raise LeRobotError(episode.problem)
    if not episode.num_rows:
        raise LeRobotError("the data files hold no row of it")
    if episode.length is not None and episode.length != episode.num_rows:
        read.repairs.append(
            f"the metadata claim {episode.length} rows, the data files hold {episode.num_rows}: the files were believed"
        )
    try:
        table, row_numbers = _rows_in_order(plan, episode, read)
        columns = _columns(plan, table, read)
        matches = _match_clips(plan, episode, columns.get("timestamp"), row_numbers, read)
        num_rows = min([table.num_rows, *(len(numbers) for _, numbers in matches.values())])
        if not num_rows:
            raise LeRobotError("no row of it has a frame")
        stride, aggregation = plan.settings.stride, plan.settings.aggregation or ""
        columns = {name: rows[:num_rows] for name, rows in columns.items()}
        _check_finite(columns)
        features = {name: strided(name, rows, stride, aggregation) for name, rows in columns.items()}
        table = table.slice(0, num_rows) if stride == 1 else table.take(np.arange(0, num_rows, stride))
        for camera in plan.images:
            features[camera] = image_array(
                table, camera, plan.source.root, Resizer(plan.sizes[camera], plan.settings.fit)
            )
        for camera, (path, numbers) in matches.items():
            features[camera] = videos.read(camera, path, numbers[:num_rows:stride])
        for camera in (*plan.videos, *plan.images):
            if features[camera].max(initial=0) < BLACK:
                raise LeRobotError(f"camera {camera!r} is black in every frame")
        read.episode = Episode(features=features, info=_info(plan, episode, table))
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise LeRobotError(f"its rows cannot be read ({short(error)})") from error


def _rows_in_order(plan: Plan, episode: SourceEpisode, read: EpisodeRead) -> tuple[pa.Table, np.ndarray | None]:
    """Return the rows, and their numbers within the episode where they have some."""
    wanted = (*plan.numeric, *plan.texts, *plan.images, "task_index", "frame_index")
    table = read_table(episode.rows, tuple(dict.fromkeys(wanted)))
    numbers = whole_numbers(table, "frame_index")
    if numbers is None:
        return table, None
    steps = np.diff(numbers)
    if len(steps) and not steps.any():
        read.repairs.append("frame_index is the same in every row: not used")
        return table, None
    if (steps < 0).any():
        order = np.argsort(numbers, kind="stable")
        table, numbers = table.take(order), numbers[order]
        steps = np.diff(numbers)
        read.repairs.append("rows stand out of order: sorted by frame_index")
    if not steps.all():
        raise LeRobotError(f"frame_index {numbers[:-1][steps == 0][0]} stands in more than one row")
    if (steps > 1).any():
        gaps = np.flatnonzero(steps > 1)
        missing = int((steps[gaps] - 1).sum())
        read.repairs.append(
            f"{missing} rows are missing, the first after frame_index {numbers[gaps[0]]}: the rows beside each gap "
            "became neighbours"
        )
    return table, numbers


def _columns(plan: Plan, table: pa.Table, read: EpisodeRead) -> dict[str, np.ndarray]:
    columns = {}
    for name, spec in plan.numeric.items():
        columns[name], remark = column_array(table, name, spec)
        if remark is not None:
            read.repairs.append(remark)
    return columns


def _check_finite(columns: Mapping[str, np.ndarray]) -> None:
    for name, rows in columns.items():
        if rows.dtype.kind == "f":
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                raise LeRobotError(f"{name!r} is not finite in row {int(np.argmin(finite))}")


def _match_clips(
    plan: Plan,
    episode: SourceEpisode,
    timestamps_s: np.ndarray | None,
    row_numbers: np.ndarray | None,
    read: EpisodeRead,
) -> dict[str, tuple[Path, np.ndarray]]:
    """Return camera to video file and, for each row from the first on, the number of its frame in the file."""
    found = {}
    for camera in plan.videos:
        if camera not in episode.clips:
            raise LeRobotError(f"camera {camera!r} has no video file for it")
        clip = episode.clips[camera]
        first, last = clip_range(clip)
        numbers, remark = match_frames(
            episode.num_rows,
            last - first,
            row_fps=plan.source.fps,
            video_fps=frames_per_second(clip.path),
            timestamps_s=None if timestamps_s is None else timestamps_s.reshape(-1),
            row_numbers=row_numbers,
        )
        if remark is not None:
            read.repairs.append(f"camera {camera!r}: {remark}")
        found[camera] = clip.path, first + numbers
    return found


def _info(plan: Plan, episode: SourceEpisode, table: pa.Table) -> dict[str, Any]:
    """Return what belongs to the whole episode: its tasks, those of its rows without repeats, and all texts."""
    numbers = whole_numbers(table, "task_index")
    by_row = [] if numbers is None else [plan.source.tasks.get(number) for number in numbers.tolist()]
    tasks = list(dict.fromkeys(text for text in by_row if text is not None)) or list(dict.fromkeys(episode.tasks))
    info: dict[str, Any] = {"source_episode": episode.index, "task": tasks[0] if tasks else "", "tasks": tasks}
    if len(set(by_row)) > 1:
        info["task_of_rows"] = changes(by_row)
    if episode.tasks and tasks != list(episode.tasks):
        info["source_tasks"] = list(episode.tasks)
    if episode.details:
        info["source_details"] = dict(episode.details)
    if plan.texts:
        present = [name for name in plan.texts if name in table.column_names]
        info["texts"] = {name: json_value(changes(table[name].to_pylist())) for name in present}
    return info
