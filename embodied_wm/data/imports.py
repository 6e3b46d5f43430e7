"""What every import has in common: it can be interrupted and goes on, and it says what it took, mended and left out.

The store is built beside its place and moved there when it is complete, so an import that is interrupted leaves
nothing that opens as if it were whole; the next import with the same settings goes on after the last episode that was
committed.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from embodied_wm.data.arrays import lock_for_writing, unlock
from embodied_wm.data.layout import StoreError
from embodied_wm.data.store import EpisodeStore
from embodied_wm.types import Episode, FeatureSpec

Progress = Callable[[int, int], None]
SHOWN = 120
NOTHING_SAID = {"cameras": "all", "episodes": "all", "image_size": "each camera's own", "fps": "the file's own"}
"""What it means that a setting is not given."""


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


class Group(NamedTuple):
    """Hold neighbouring episodes of a source as they were read; they are committed together.

    Attributes:
        episodes: Those that can be taken; the info of each has its number, `source_episode`.
        repaired: What was mended.
        skipped: Those left out.
        num_rows: Rows of all of them in the source.
    """

    episodes: Sequence[Episode]
    repaired: Sequence[Finding]
    skipped: Sequence[Finding]
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """Say what is taken from a source.

    Attributes:
        source: What the source is called in messages.
        unit: What stands before the number of an episode in messages.
        lengths: Number of every chosen episode to its rows, by rising number.
        features: Features of the store to be made.
        fps: Rows per second.
        metadata: What the store says of its source.
        notes: Remarks on what is left out.
        read: Reads the chosen episodes whose numbers lie above the given one, in order.
    """

    source: str
    unit: str
    lengths: Mapping[int, int]
    features: Mapping[str, FeatureSpec]
    fps: float
    metadata: Mapping[str, Any]
    notes: tuple[str, ...]
    read: Callable[[int], Iterable[Group]]


def import_episodes(
    out: Path,
    settings: Mapping[str, Any],
    make_plan: Callable[[], ImportPlan],
    *,
    error: type[ValueError],
    progress: Progress | None,
    strict: bool,
) -> ImportReport:
    """Import into a store at `out`, go on with an import that was interrupted, or leave a finished one as it is.

    Args:
        out: The store.
        settings: What defines its content, as JSON values; the source's fingerprint is `source`.
        make_plan: Is called unless the import is finished already.
        error: What is raised about the source.
        progress: Is called with rows done and rows in all.
        strict: Raise where something has to be mended or left out.

    Raises:
        ValueError: `error`: nothing can be taken, or `strict` is set and something had to be mended or left out.
        StoreError: `out` exists and is something else, the settings differ from those it was begun with, it is being
            imported to, or cannot be written.
    """
    started_s = time.monotonic()
    refuse = _Refusal(error) if strict else None
    if out.exists():
        store = _check_same(out, EpisodeStore.open(out), settings)
        report = _report(store, found=store.num_episodes, started_s=started_s)
        if refuse:
            refuse(str(out), "episode ", report.notes, [*report.repaired, *report.skipped])
        return report
    plan = make_plan()
    if refuse:
        refuse(plan.source, plan.unit, plan.notes, [])
    aside = out.with_name(out.name + ".importing")
    try:
        with _begin(plan, settings, aside) as store:
            found = store.num_episodes
            try:
                _write(plan, store, error, progress, refuse)
            except BaseException:
                if not store.num_episodes:
                    shutil.rmtree(aside, ignore_errors=True)
                raise
            report = _report(store, found=found, started_s=started_s)
        aside.rename(out)
    except OSError as problem:
        raise StoreError(
            f"{out} could not be written: {problem}. Free space or choose another path; the same import then goes on."
        ) from problem
    return report


def _check_same(path: Path, store: EpisodeStore, settings: Mapping[str, Any]) -> EpisodeStore:
    """Return a store if it was imported, or begun, with these settings.

    Raises:
        StoreError: It was made otherwise.
    """
    stored = store.metadata.get("import")
    if not isinstance(stored, dict) or "settings" not in stored:
        raise StoreError(f"{path} exists already, and is not from an import. Delete it or choose another path.")
    differences = _differences(stored["settings"], settings)
    if differences:
        raise StoreError(
            f"{path} was {'imported' if store.metadata.get('complete') else 'begun'} with other settings: "
            f"{'; '.join(differences)}. Give the same, choose another path, or delete it to import anew."
        )
    return store


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs, in words."""
    found = []
    for key in [key for key in now if before.get(key) != now[key]]:
        was, wanted = before.get(key), now[key]
        if key == "source":
            found.append(f"source (fingerprint {was}, now {wanted}: another dataset, or it was changed since)")
        else:
            found.append(f"{key} ({_show(key, was)}, now {_show(key, wanted)})")
    return found


def _show(key: str, value: Any) -> str:
    text = NOTHING_SAID.get(key, "none") if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _begin(plan: ImportPlan, settings: Mapping[str, Any], path: Path) -> EpisodeStore:
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
            _check_same(path, begun, settings)
            return EpisodeStore.open(path, mode="a")
    told = {"settings": dict(settings), "notes": list(plan.notes), "repaired": [], "skipped": []}
    metadata = {**plan.metadata, "import": told, "complete": False}
    return EpisodeStore.create(path, features=plan.features, fps=plan.fps, metadata=metadata)


def _begun(path: Path) -> EpisodeStore | None:
    """Return what an import left that can be continued, None where it was killed before it came to that."""
    try:
        store = EpisodeStore.open(path)
    except StoreError:
        return None
    return store if "settings" in store.metadata.get("import", {}) else None


def _write(
    plan: ImportPlan,
    store: EpisodeStore,
    error: type[ValueError],
    progress: Progress | None,
    refuse: "_Refusal | None",
) -> None:
    """Read the episodes of a plan that a store does not hold yet into it."""
    told = store.metadata["import"]
    last = store.episode_info(store.num_episodes - 1)["source_episode"] if store.num_episodes else -1
    # What was found is told before the episodes are committed; of those that never were, it is found once more.
    repaired, skipped = (
        [Finding(*finding) for finding in told[key] if finding[0] <= last] for key in ("repaired", "skipped")
    )
    if refuse:
        refuse(plan.source, plan.unit, [], [*repaired, *skipped])
    total = sum(plan.lengths.values())
    done = sum(rows for number, rows in plan.lengths.items() if number <= last)
    for group in plan.read(last):
        if refuse:
            refuse(plan.source, plan.unit, [], [*group.repaired, *group.skipped])
        repaired += group.repaired
        skipped += group.skipped
        if group.repaired or group.skipped:
            store.update_metadata({"import": {**told, "repaired": repaired, "skipped": skipped}})
        store.append(group.episodes)
        done += group.num_rows
        if progress is not None:
            progress(done, total)
    if not store.num_episodes:
        reasons = "; ".join(f"{plan.unit}{finding.episode}: {finding.reason}" for finding in skipped[:5])
        raise error(f"{plan.source}: none of {len(plan.lengths)} episodes could be taken. {reasons}")
    store.update_metadata({"import": {**told, "repaired": repaired, "skipped": skipped}, "complete": True})


class _Refusal:
    """Raise an error where something had to be mended or left out."""

    def __init__(self, error: type[ValueError]) -> None:
        self._error = error

    def __call__(self, source: str, unit: str, notes: Sequence[str], findings: Sequence[Finding]) -> None:
        said = [*notes, *(f"{unit}{finding.episode}: {finding.reason}" for finding in findings)]
        if said:
            raise self._error(
                f"{source}: strict import refused: {'; '.join(said[:5])}. Import without strict to accept this."
            )


def _report(store: EpisodeStore, *, found: int, started_s: float) -> ImportReport:
    told = store.metadata["import"]
    return ImportReport(
        episodes=store.num_episodes,
        frames=store.num_frames,
        found=found,
        cameras=tuple(name for name, spec in store.features.items() if spec.is_image),
        repaired=tuple(Finding(*finding) for finding in told["repaired"]),
        skipped=tuple(Finding(*finding) for finding in told["skipped"]),
        notes=tuple(told["notes"]),
        seconds=time.monotonic() - started_s,
    )
