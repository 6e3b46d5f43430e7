"""Import a LeRobot dataset into an episode store.

The store is built beside its place and moved there when it is complete, so an import that is interrupted leaves
nothing that opens as if it were whole; the next import with the same settings goes on after the last episode that was
committed. Episodes are read by several threads (decoding releases the interpreter's lock) in groups of neighbours, and
committed in order; no more than a few groups are in memory at a time.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from embodied_wm.data.arrays import lock_for_writing, unlock
from embodied_wm.data.layout import StoreError
from embodied_wm.data.lerobot.checks import LeRobotError, json_value
from embodied_wm.data.lerobot.episodes import EpisodeRead, read_in_order
from embodied_wm.data.lerobot.hub import find_dataset
from embodied_wm.data.lerobot.plan import Plan, make_plan
from embodied_wm.data.lerobot.settings import Settings, make_settings
from embodied_wm.data.lerobot.source import open_source
from embodied_wm.data.store import EpisodeStore

Progress = Callable[[int, int], None]


class Finding(NamedTuple):
    """Say what was wrong with one episode.

    Attributes:
        episode: Its number in the source.
        rows: Rows of it in the source.
        reason: What was mended, or why it was left out.
    """

    episode: int
    rows: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Say what an import took, mended and left out.

    Attributes:
        episodes: Number of episodes of the store.
        frames: Number of rows of the store.
        found: Number of episodes that an earlier, interrupted or finished, import had left there.
        cameras: Cameras taken.
        repaired: What was mended, perhaps several things of one episode.
        skipped: Episodes left out.
        notes: Remarks on the dataset as a whole, such as features left out.
        seconds: Wall time.
    """

    episodes: int
    frames: int
    found: int
    cameras: tuple[str, ...]
    repaired: tuple[Finding, ...]
    skipped: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: float


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
    out, started_s = Path(out), time.monotonic()
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
    if out.exists():
        store = _check_same(out, EpisodeStore.open(out), settings)
        report = _report(store, found=store.num_episodes, started_s=started_s)
        _refuse_if_strict(strict, root, report.notes, [*report.repaired, *report.skipped])
        return report
    plan = make_plan(open_source(root), name, settings)
    _refuse_if_strict(strict, root, plan.notes, [])
    aside = out.with_name(out.name + ".importing")
    try:
        with _begin(plan, aside) as store:
            found = store.num_episodes
            try:
                _write(plan, store, num_workers, progress, strict)
            except BaseException:
                if not store.num_episodes:
                    shutil.rmtree(aside, ignore_errors=True)
                raise
            report = _report(store, found=found, started_s=started_s)
        aside.rename(out)
    except OSError as error:
        raise StoreError(
            f"{out} could not be written: {error}. Free space or choose another path; the same import then goes on."
        ) from error
    return report


def _check_same(path: Path, store: EpisodeStore, settings: Settings) -> EpisodeStore:
    """Return a store if it was imported, or begun, with these settings.

    Raises:
        StoreError: It was made otherwise.
    """
    stored = store.metadata.get("import")
    if not isinstance(stored, dict) or "settings" not in stored:
        raise StoreError(f"{path} exists already, and is not from an import. Delete it or choose another path.")
    differences = settings.differences(stored["settings"])
    if differences:
        raise StoreError(
            f"{path} was {'imported' if store.metadata.get('complete') else 'begun'} with other settings: "
            f"{'; '.join(differences)}. Give the same, choose another path, or delete it to import anew."
        )
    return store


def _begin(plan: Plan, path: Path) -> EpisodeStore:
    """Open what an interrupted import left, or create a new store.

    Raises:
        StoreError: It is being imported to, or was begun with other settings.
    """
    if path.exists():
        lock = lock_for_writing(str(path))
        try:
            begun = _begun(path)
            if begun is None:
                shutil.rmtree(path)
        finally:
            unlock(lock)
        if begun is not None:
            _check_same(path, begun, plan.settings)
            return EpisodeStore.open(path, mode="a")
    source = plan.source
    metadata = {
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
        "import": {"settings": plan.settings.to_json(), "notes": list(plan.notes), "repaired": [], "skipped": []},
        "complete": False,
    }
    return EpisodeStore.create(path, features=plan.features, fps=plan.fps, metadata=metadata)


def _begun(path: Path) -> EpisodeStore | None:
    """Return what an import left that can be continued, None where it was killed before it came to that."""
    try:
        store = EpisodeStore.open(path)
    except StoreError:
        return None
    return store if "settings" in store.metadata.get("import", {}) else None


def _write(plan: Plan, store: EpisodeStore, num_workers: int, progress: Progress | None, strict: bool) -> None:
    """Read the episodes of a plan that a store does not hold yet into it."""
    told = store.metadata["import"]
    last = store.episode_info(store.num_episodes - 1)["source_episode"] if store.num_episodes else -1
    # What was found is told before the episodes are committed; of those that never were, it is found once more.
    repaired, skipped = (
        [Finding(*finding) for finding in told[key] if finding[0] <= last] for key in ("repaired", "skipped")
    )
    root = plan.source.root
    _refuse_if_strict(strict, root, [], [*repaired, *skipped])
    left = [episode for episode in plan.episodes if episode.index > last]
    total = sum(episode.num_rows for episode in plan.episodes)
    done = total - sum(episode.num_rows for episode in left)
    for group in read_in_order(plan, left, num_workers):
        now_repaired, now_skipped = _findings(group)
        _refuse_if_strict(strict, root, [], [*now_repaired, *now_skipped])
        repaired += now_repaired
        skipped += now_skipped
        if now_repaired or now_skipped:
            store.update_metadata({"import": {**told, "repaired": repaired, "skipped": skipped}})
        store.append([read.episode for read in group if read.episode is not None])
        done += sum(read.num_rows for read in group)
        if progress is not None:
            progress(done, total)
    if not store.num_episodes:
        reasons = "; ".join(f"episode {finding.episode}: {finding.reason}" for finding in skipped[:5])
        raise LeRobotError(f"{root}: none of {len(plan.episodes)} episodes could be taken. {reasons}")
    store.update_metadata({"import": {**told, "repaired": repaired, "skipped": skipped}, "complete": True})


def _findings(group: Sequence[EpisodeRead]) -> tuple[list[Finding], list[Finding]]:
    repaired = [Finding(read.index, read.num_rows, repair) for read in group for repair in read.repairs]
    return repaired, [Finding(read.index, read.num_rows, read.skipped) for read in group if read.skipped]


def _refuse_if_strict(strict: bool, root: Path, notes: Sequence[str], findings: Sequence[Finding]) -> None:
    said = [*notes, *(f"episode {finding.episode}: {finding.reason}" for finding in findings)]
    if strict and said:
        raise LeRobotError(
            f"{root}: strict import refused: {'; '.join(said[:5])}. Import without strict to accept this."
        )


def _report(store: EpisodeStore, *, found: int, started_s: float) -> ImportReport:
    told = store.metadata["import"]
    return ImportReport(
        episodes=store.num_episodes,
        frames=store.num_frames,
        found=found,
        cameras=tuple(store.metadata["cameras"]),
        repaired=tuple(Finding(*finding) for finding in told["repaired"]),
        skipped=tuple(Finding(*finding) for finding in told["skipped"]),
        notes=tuple(told["notes"]),
        seconds=time.monotonic() - started_s,
    )


def _camera_details(feature: Any) -> dict[str, Any]:
    return {"declared_shape": json_value(feature.get("shape") or []), "intrinsics": None}
