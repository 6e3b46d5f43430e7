"""Episodes of a LeRobot folder, read in order by several threads, each mended or left out for a reason."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embodied_wm.data.lerobot.plan import Plan
from embodied_wm.data.lerobot.rows import column_array, image_array, read_table
from embodied_wm.data.lerobot.source import LeRobotError, Source, SourceEpisode
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


def read_in_order(plan: Plan, num_workers: int) -> Iterator[list[EpisodeRead]]:
    """Yield groups of neighbouring episodes in order, reading some ahead in threads."""
    row_bytes = sum(np.dtype(spec.dtype).itemsize * int(np.prod(spec.shape)) for spec in plan.features.values())
    groups: deque[list[SourceEpisode]] = deque()
    size = GROUP_BYTES
    for episode in plan.episodes:
        if size + episode.num_rows * row_bytes > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(episode)
        size += episode.num_rows * row_bytes
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
    videos: dict[str, tuple[Path, VideoReader]] = {}
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
        for _, video in videos.values():
            video.close()
    return reads


def _read_episode(
    plan: Plan, episode: SourceEpisode, videos: dict[str, tuple[Path, VideoReader]], read: EpisodeRead
) -> None:
    """Read one episode into `read`; raise LeRobotError with the reason if it cannot be taken."""
    if not episode.num_rows:
        raise LeRobotError("the data files hold no row of it")
    if episode.length is not None and episode.length != episode.num_rows:
        read.repairs.append(
            f"the metadata claim {episode.length} rows, the data files hold {episode.num_rows}: the files were believed"
        )
    table = read_table(episode.rows, (*plan.numeric, *plan.images, "task_index"))
    features = {name: column_array(table, name, spec) for name, spec in plan.numeric.items()}
    for name, rows in features.items():
        if rows.dtype.kind == "f":
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                raise LeRobotError(f"{name!r} is not finite in row {int(np.argmin(finite))}")
    for camera in plan.images:
        features[camera] = image_array(table, camera, plan.source.root, plan.size)
    num_rows = table.num_rows
    timestamps_s = features["timestamp"].reshape(-1) if "timestamp" in features else None
    for camera in plan.videos:
        frames, remark = _read_clip(plan, episode, camera, timestamps_s, table.num_rows, videos)
        if remark is not None:
            read.repairs.append(f"camera {camera!r}: {remark}")
        features[camera] = frames
        num_rows = min(num_rows, len(frames))
    features = {name: rows[:num_rows] for name, rows in features.items()}
    for camera in (*plan.videos, *plan.images):
        if features[camera].max(initial=0) < BLACK:
            raise LeRobotError(f"camera {camera!r} is black in every frame")
    tasks = _task_texts(plan.source, episode, table)
    info = {"source_episode": episode.index, "task": tasks[0] if tasks else "", "tasks": tasks}
    read.episode = Episode(features=features, info=info)


def _read_clip(
    plan: Plan,
    episode: SourceEpisode,
    camera: str,
    timestamps_s: np.ndarray | None,
    num_rows: int,
    videos: dict[str, tuple[Path, VideoReader]],
) -> tuple[np.ndarray, str | None]:
    """Return the frames of one camera, and a remark unless they are one to a row; `videos` keeps the open files."""
    if camera not in episode.clips:
        raise LeRobotError(f"camera {camera!r} has no video file for it")
    clip = episode.clips[camera]
    first, last = clip_range(clip)
    numbers, remark = match_frames(
        num_rows,
        last - first,
        row_fps=plan.source.fps,
        video_fps=frames_per_second(clip.path),
        timestamps_s=timestamps_s,
    )
    if camera not in videos or videos[camera][0] != clip.path:
        if camera in videos:
            videos.pop(camera)[1].close()
        videos[camera] = (clip.path, VideoReader(clip.path, plan.size))
    return videos[camera][1].read(first + numbers), remark


def _task_texts(source: Source, episode: SourceEpisode, table: Any) -> list[str]:
    """Return the task texts of an episode, those of its rows first, without repeats."""
    by_row = []
    if "task_index" in table.column_names and table["task_index"].null_count == 0:
        numbers = table["task_index"].to_numpy().astype(np.int64)
        by_row = [
            source.tasks[int(number)] for number in dict.fromkeys(numbers.tolist()) if int(number) in source.tasks
        ]
    return by_row or list(dict.fromkeys(episode.tasks))
