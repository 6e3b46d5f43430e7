"""What of a LeRobot folder is to be imported: which episodes, cameras and features."""

from collections.abc import Sequence
from dataclasses import dataclass

from embodied_wm.data.lerobot.rows import numeric_features
from embodied_wm.data.lerobot.source import LeRobotError, Source, SourceEpisode
from embodied_wm.types import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Hold what is to be imported.

    Attributes:
        numeric: Features that come from the rows.
        videos: Cameras whose frames come from video files.
        images: Cameras whose frames come from the rows.
        size: Height and width of the stored frames.
        notes: Remarks on what is left out.
    """

    source: Source
    episodes: tuple[SourceEpisode, ...]
    numeric: dict[str, FeatureSpec]
    videos: tuple[str, ...]
    images: tuple[str, ...]
    size: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def features(self) -> dict[str, FeatureSpec]:
        """Return the features of the store to be made."""
        image = FeatureSpec(dtype="uint8", shape=(*self.size, 3))
        return {**dict.fromkeys([*self.videos, *self.images], image), **self.numeric}


def make_plan(
    source: Source, cameras: Sequence[str] | None, size: tuple[int, int], episodes: Sequence[int] | None
) -> Plan:
    """Choose episodes, cameras and features.

    Raises:
        LeRobotError: A camera or an episode that was asked for does not exist, or no feature is left.
    """
    by_index = {episode.index: episode for episode in source.episodes}
    chosen = source.episodes
    if episodes is not None:
        unknown = [index for index in episodes if index not in by_index]
        if unknown or not len(episodes):
            raise LeRobotError(
                f"{source.root} has no episodes {unknown}; it has {len(by_index)}, numbered {min(by_index)} to "
                f"{max(by_index)}."
            )
        chosen = tuple(by_index[index] for index in sorted(set(episodes)))
    numeric, notes = numeric_features(source)
    declared = [*source.video_cameras, *source.image_cameras]
    with_files = [name for name in source.video_cameras if any(name in episode.clips for episode in chosen)]
    with_files += [name for name in source.image_cameras if name in source.columns]
    wanted = declared if cameras is None else list(dict.fromkeys(cameras))
    absent = [name for name in wanted if name not in with_files]
    if cameras is not None and absent:
        raise LeRobotError(f"{source.root} has no frames of the cameras {absent}; choose among {with_files}.")
    notes += [f"camera {name!r} is declared but has no files: left out" for name in absent]
    depth = [
        name
        for name, feature in source.features.items()
        if feature.get("dtype") in ("video", "image") and name not in declared
    ]
    notes += [f"camera {name!r} is a depth camera: left out" for name in depth]
    taken = [name for name in wanted if name in with_files]
    if not numeric and not taken:
        raise LeRobotError(
            f"{source.root} holds no feature that can be imported; it declares {sorted(source.features)}."
        )
    return Plan(
        source=source,
        episodes=chosen,
        numeric=numeric,
        videos=tuple(name for name in taken if name in source.video_cameras),
        images=tuple(name for name in taken if name in source.image_cameras),
        size=size,
        notes=tuple(notes),
    )
