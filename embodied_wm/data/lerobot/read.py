"""Import a LeRobot folder into an episode store.

The store is built beside its place and moved there when it is complete, so an import that is interrupted leaves
nothing that opens. Episodes are read by several threads (decoding releases the interpreter's lock) in groups of
neighbours, and committed in order; no more than a few groups are in memory at a time.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embodied_wm.data.arrays import lock_for_writing, unlock
from embodied_wm.data.layout import StoreError
from embodied_wm.data.lerobot.episodes import read_in_order
from embodied_wm.data.lerobot.plan import Plan, make_plan
from embodied_wm.data.lerobot.source import LeRobotError, open_source
from embodied_wm.data.store import EpisodeStore


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Say what an import took, mended and left out.

    Attributes:
        episodes: Number of episodes taken.
        frames: Number of rows taken.
        cameras: Cameras taken.
        repaired: (source episode, what was mended), perhaps several of one episode.
        skipped: (source episode, why it was left out).
        notes: Remarks on the dataset as a whole, such as features left out.
        seconds: Wall time.
    """

    episodes: int
    frames: int
    cameras: tuple[str, ...]
    repaired: tuple[tuple[int, str], ...]
    skipped: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]
    seconds: float


def import_lerobot(
    source: Path,
    out: Path,
    *,
    cameras: Sequence[str] | None = None,
    image_size: tuple[int, int] = (64, 64),
    episodes: Sequence[int] | None = None,
    num_workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    strict: bool = False,
) -> ImportReport:
    """Import a LeRobot folder (v2.0, v2.1, v3.0) into a new episode store at `out`.

    Frames are resized to `image_size` (height, width). All colour cameras are taken unless `cameras` names some, and
    all episodes unless `episodes` gives their numbers. Where rows, frames and metadata disagree the files decide, and
    the report says so; an episode that cannot be mended is left out. `progress` is called with rows done and rows in
    all.

    Raises:
        LeRobotError: The source cannot be read, nothing in it can be taken, a camera or episode does not exist, or
        `strict`
            is set and something had to be mended or left out.
        StoreError: `out` exists already, is being imported to, or cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise StoreError(f"{out} exists already. Delete it or choose another path.")
    if min(image_size) < 1 or num_workers < 1:
        raise LeRobotError(f"Image size and number of workers must be at least 1, got {image_size} and {num_workers}.")
    started_s = time.monotonic()
    plan = make_plan(open_source(source), cameras, image_size, episodes)
    if strict and plan.notes:
        raise LeRobotError(
            f"{source}: strict import refused: {'; '.join(plan.notes)}. Import without strict to accept this."
        )
    aside = out.with_name(out.name + ".importing")
    _clear(aside)
    try:
        report = _write(plan, aside, num_workers, progress, strict, started_s)
        aside.rename(out)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StoreError(
            f"{out} could not be written: {error}. Free space or choose another path, then import again."
        ) from error
    except BaseException:
        # Ctrl-C too: the next import starts afresh, so what is half done is of no use.
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return report


def _write(
    plan: Plan,
    path: Path,
    num_workers: int,
    progress: Callable[[int, int], None] | None,
    strict: bool,
    started_s: float,
) -> ImportReport:
    """Read all episodes of a plan into a new store."""
    source = plan.source
    metadata = {
        "source": {"format": "lerobot", "version": source.version, "name": source.root.resolve().name},
        "robot": source.robot,
        "tasks": [source.tasks[number] for number in sorted(source.tasks)],
        "cameras": {name: _camera_details(source.features[name]) for name in (*plan.videos, *plan.images)},
        "complete": False,
    }
    repaired: list[tuple[int, str]] = []
    skipped: list[tuple[int, str]] = []
    done, total = 0, sum(episode.num_rows for episode in plan.episodes)
    with EpisodeStore.create(path, features=plan.features, fps=source.fps, metadata=metadata) as store:
        for group in read_in_order(plan, num_workers):
            repaired += [(read.index, repair) for read in group for repair in read.repairs]
            skipped += [(read.index, read.skipped) for read in group if read.skipped]
            if strict and (repaired or skipped):
                index, reason = (repaired + skipped)[0]
                raise LeRobotError(
                    f"{source.root}: strict import refused: episode {index}: {reason}. Import without strict to "
                    "accept this."
                )
            store.append([read.episode for read in group if read.episode is not None])
            done += sum(read.num_rows for read in group)
            if progress is not None:
                progress(done, total)
        if not store.num_episodes:
            reasons = "; ".join(f"episode {index}: {reason}" for index, reason in skipped[:5])
            raise LeRobotError(f"{source.root}: none of {len(plan.episodes)} episodes could be taken. {reasons}")
        report = ImportReport(
            episodes=store.num_episodes,
            frames=store.num_frames,
            cameras=(*plan.videos, *plan.images),
            repaired=tuple(repaired),
            skipped=tuple(skipped),
            notes=plan.notes,
            seconds=time.monotonic() - started_s,
        )
        told = {key: value for key, value in asdict(report).items() if key in ("repaired", "skipped", "notes")}
        store.update_metadata({"import": told, "complete": True})
    return report


def _camera_details(feature: Any) -> dict[str, Any]:
    return {"declared_shape": list(feature.get("shape") or ()), "intrinsics": None}


def _clear(aside: Path) -> None:
    """Remove what an import that was killed left behind, unless it is still running."""
    if aside.exists():
        unlock(lock_for_writing(str(aside)))
        shutil.rmtree(aside)
