"""What of a LeRobot folder is to be imported: which episodes, cameras and features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embodied_wm.data.layout import StoreError, check_features
from embodied_wm.data.lerobot.checks import LeRobotError
from embodied_wm.data.lerobot.rows import numeric_features, open_image, read_table, text_features
from embodied_wm.data.lerobot.settings import Settings
from embodied_wm.data.lerobot.source import Source
from embodied_wm.data.lerobot.statistics import source_statistics
from embodied_wm.data.lerobot.stride import strided_spec
from embodied_wm.data.lerobot.versions import SourceEpisode
from embodied_wm.data.lerobot.video import frame_size
from embodied_wm.types import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Hold what is to be imported.

    Attributes:
        name: What the dataset is called.
        numeric: Features that come from the rows, as they stand there.
        texts: Features of the rows that are no numbers; they go into the infos of the episodes.
        videos: Cameras whose frames come from video files.
        images: Cameras whose frames come from the rows.
        sizes: Camera to height and width of its stored frames.
        statistics: The dataset's own statistics of its numeric features.
        notes: Remarks on what is left out.
    """

    source: Source
    name: str
    settings: Settings
    episodes: tuple[SourceEpisode, ...]
    numeric: Mapping[str, FeatureSpec]
    texts: tuple[str, ...]
    videos: tuple[str, ...]
    images: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    statistics: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def features(self) -> dict[str, FeatureSpec]:
        """Return the features of the store to be made."""
        stride, aggregation = self.settings.stride, self.settings.aggregation or ""
        return {
            **{name: FeatureSpec(dtype="uint8", shape=(*size, 3)) for name, size in self.sizes.items()},
            **{name: strided_spec(name, spec, stride, aggregation) for name, spec in self.numeric.items()},
        }

    @property
    def fps(self) -> float:
        """Return the rows per second of the store to be made."""
        return self.source.fps / self.settings.stride


def make_plan(source: Source, name: str, settings: Settings) -> Plan:
    """Choose episodes, cameras and features.

    Raises:
        LeRobotError: A camera or an episode that was asked for does not exist, no feature is left, or one cannot be
        stored.
    """
    episodes = _chosen_episodes(source, settings.episodes)
    numeric, notes = numeric_features(source)
    taken, more_notes = _chosen_cameras(source, episodes, settings.cameras)
    statistics, statistics_notes = source_statistics(source.root, numeric)
    if not numeric and not taken:
        raise LeRobotError(
            f"{source.root} holds no feature that can be imported; it declares {sorted(source.features)}."
        )
    plan = Plan(
        source=source,
        name=name,
        settings=settings,
        episodes=episodes,
        numeric=numeric,
        texts=text_features(source),
        videos=tuple(camera for camera in taken if camera in source.video_cameras),
        images=tuple(camera for camera in taken if camera in source.image_cameras),
        sizes={camera: settings.image_size or _own_size(source, episodes, camera) for camera in taken},
        statistics=statistics,
        notes=(*notes, *more_notes, *statistics_notes),
    )
    try:
        check_features(plan.features)
    except StoreError as error:
        raise LeRobotError(f"{source.root}: {error}") from error
    return plan


def _chosen_episodes(source: Source, chosen: Sequence[int] | None) -> tuple[SourceEpisode, ...]:
    by_index = {episode.index: episode for episode in source.episodes}
    if chosen is None:
        return source.episodes
    unknown = [index for index in chosen if index not in by_index]
    if unknown or not chosen:
        numbered = f", numbered {min(by_index)} to {max(by_index)}" if by_index else ""
        raise LeRobotError(f"{source.root} has no episodes {unknown}; it has {len(by_index)}{numbered}.")
    return tuple(by_index[index] for index in chosen)


def _chosen_cameras(
    source: Source, episodes: Sequence[SourceEpisode], chosen: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the cameras to take, and notes on those that are left out though nobody said so."""
    declared = [*source.video_cameras, *source.image_cameras]
    with_files = [name for name in source.video_cameras if any(name in episode.clips for episode in episodes)]
    with_files += [name for name in source.image_cameras if name in source.columns]
    wanted = declared if chosen is None else list(chosen)
    absent = [name for name in wanted if name not in with_files]
    if chosen is not None and absent:
        raise LeRobotError(f"{source.root} has no frames of the cameras {absent}; choose among {with_files}.")
    notes = [f"camera {name!r} is declared but has no files: left out" for name in absent]
    notes += [
        f"camera {name!r} is a depth camera: left out"
        for name, feature in source.features.items()
        if feature.get("dtype") in ("video", "image") and name not in declared
    ]
    return [name for name in wanted if name in with_files], notes


def _own_size(source: Source, episodes: Sequence[SourceEpisode], camera: str) -> tuple[int, int]:
    """Return the height and width of the first frames of a camera that can be read."""
    problem = "no episode has any"
    for episode in episodes:
        try:
            if camera in episode.clips:
                return frame_size(episode.clips[camera].path)
            if camera in source.image_cameras and episode.rows:
                with open_image(read_table(episode.rows, (camera,)), camera, 0, source.root) as image:
                    return image.height, image.width
        except LeRobotError as error:
            problem = str(error)
    raise LeRobotError(f"{source.root}: camera {camera!r} has no frames that can be read ({problem}).")
