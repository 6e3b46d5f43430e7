"""Import a LeRobot dataset into an episode store.

Episodes are read by several threads (decoding releases the interpreter's lock) in groups of neighbours, and committed
in order; no more than a few groups are in memory at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embodied_wm.data.imports import Finding, Group, ImportPlan, ImportReport, Progress, import_episodes
from embodied_wm.data.lerobot.checks import LeRobotError, json_value
from embodied_wm.data.lerobot.episodes import EpisodeRead, read_in_order
from embodied_wm.data.lerobot.hub import find_dataset
from embodied_wm.data.lerobot.plan import Plan, make_plan
from embodied_wm.data.lerobot.settings import make_settings
from embodied_wm.data.lerobot.source import open_source


def import_lerobot(
    source: str | Path,
    out: Path,
    *,
    revision: str | None = None,
    cameras: Sequence[str] | None = None,
    image_size: Sequence[int] | None = (64, 64),
    fit: str = "stretch",
    stride: int = 1,
    aggregation: str = "last",
    episodes: Sequence[int] | None = None,
    num_workers: int = 2,
    progress: Progress | None = None,
    strict: bool = False,
) -> ImportReport:
    """Import a LeRobot dataset (v2.0, v2.1, v3.0), a folder or an id of the hub, into an episode store at `out`.

    An import that was interrupted is continued, and a finished one is left as it is. Where rows, frames and metadata
    disagree the files decide, and the report says so; an episode that cannot be mended is left out.

    Args:
        source: Folder that holds meta/info.json, or owner/name of a dataset of the hub.
        out: Where the store is made.
        revision: Branch, tag or commit, of the hub.
        cameras: Which to take; None takes all colour cameras.
        image_size: Height and width of the stored frames; None keeps each camera's own.
        fit: "stretch" the whole frame, "crop" the largest part in the middle that has the shape, or "pad" with black.
        stride: Keep every n-th frame; rewards between are summed, flags joined by any().
        aggregation: What becomes of the actions between: the "last", their "sum", or all of them as a "stack".
        episodes: Numbers of the episodes to take; None takes all.
        num_workers: Groups of episodes that are read at a time.
        progress: Is called with rows done and rows in all.
        strict: Raise an error where something has to be mended or left out.

    Raises:
        LeRobotError: The source cannot be read, nothing in it can be taken, a camera or episode does not exist, a
            setting is none, or `strict` is set and something had to be mended or left out.
        StoreError: `out` exists and is something else, the settings differ from those it was begun with, it is being
            imported to, or cannot be written.
    """
    if num_workers < 1:
        raise LeRobotError(f"The number of workers must be at least 1, got {num_workers}.")
    root, name = find_dataset(source, revision)
    settings = make_settings(
        root,
        cameras=cameras,
        image_size=image_size,
        fit=fit,
        stride=stride,
        aggregation=aggregation,
        episodes=episodes,
    )
    return import_episodes(
        Path(out),
        settings.to_json(),
        lambda: _import_plan(make_plan(open_source(root), name, settings), num_workers),
        error=LeRobotError,
        progress=progress,
        strict=strict,
    )


def _import_plan(plan: Plan, num_workers: int) -> ImportPlan:
    source = plan.source

    def read(after: int) -> Iterator[Group]:
        left = [episode for episode in plan.episodes if episode.index > after]
        return map(_group, read_in_order(plan, left, num_workers))

    return ImportPlan(
        source=str(source.root),
        unit="episode ",
        lengths={episode.index: episode.num_rows for episode in plan.episodes},
        features=plan.features,
        fps=plan.fps,
        metadata={
            "source": {
                "format": "lerobot",
                "version": source.version,
                "name": plan.name,
                "info": source.info,
                "task_numbers": sorted(source.tasks),
                "statistics": plan.statistics,
            },
            "robot": str(source.info.get("robot_type") or "unknown"),
            "tasks": [source.tasks[number] for number in sorted(source.tasks)],
            "cameras": {name: _camera_details(source.features[name]) for name in plan.sizes},
        },
        notes=plan.notes,
        read=read,
    )


def _group(reads: Sequence[EpisodeRead]) -> Group:
    return Group(
        episodes=[read.episode for read in reads if read.episode is not None],
        repaired=[Finding(read.index, read.num_rows, repair) for read in reads for repair in read.repairs],
        skipped=[Finding(read.index, read.num_rows, read.skipped) for read in reads if read.skipped],
        num_rows=sum(read.num_rows for read in reads),
    )


def _camera_details(feature: Any) -> dict[str, Any]:
    return {"declared_shape": json_value(feature.get("shape") or []), "intrinsics": None}
