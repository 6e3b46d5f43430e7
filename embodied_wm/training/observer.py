"""What people see of a training while it runs: trackers, and picture grids in the run folder.

Trackers are accelerate's. One that is not installed, or has no network, is named once and left out from then on:
nothing that only looks on may stop a training.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from embodied_wm.training.processes import Metrics

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "embodied_wm"
SPEED = "speed.jsonl"
"""How fast training was, beside metrics.jsonl, which is the same however often a run was stopped."""

GRIDS = "grids"
ENLARGED = 2
"""Screen pixels per pixel of a small picture."""
GAP = 4

Draw = Callable[[], NDArray[np.uint8]]
"""Returns rows x columns x height x width x 3 frames; the rows are to be compared."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Say what is shown of a training while it runs.

    Attributes:
        trackers: Any of "tensorboard" (event files in the run folder), "wandb" and "trackio".
        picture_every: Steps between picture grids; 0 draws none.
    """

    trackers: tuple[str, ...] = ()
    picture_every: int = 0

    def __post_init__(self) -> None:
        """Take a list for a tuple, and refuse unknown trackers."""
        object.__setattr__(self, "trackers", tuple(self.trackers))
        unknown = [name for name in self.trackers if name not in TRACKERS]
        if unknown:
            raise ValueError(f"trackers={list(self.trackers)}: no tracker {unknown[0]!r}; choose from {list(TRACKERS)}")


class RunObserver:
    """Send metrics and pictures to trackers, and pictures to the run folder."""

    def __init__(self, config: WatchConfig, run_dir: Path, *, console: Console | None) -> None:
        self.config, self.run_dir, self.console = config, run_dir, console
        self.drawing: dict[str, Draw] = {}
        self._trackers: dict[str, Any] = {}
        for name in config.trackers:
            self._attempt(name, lambda name=name: self._start(name))

    def log(self, stage: str, step: int, metrics: Metrics) -> None:
        """Send a step's metrics to every tracker; note "frames_per_s", and "seconds" since the last log, in a file."""
        values = {f"{stage}/{key}": value for key, value in metrics.items() if key != "seconds"}
        for name, tracker in list(self._trackers.items()):
            self._attempt(name, lambda tracker=tracker: tracker.log(values, step=step))
        speed = {key: round(metrics[key], 2) for key in ("frames_per_s", "seconds")}
        line = json.dumps({"stage": stage, "step": step, **speed})
        with suppress(OSError), (self.run_dir / SPEED).open("a") as file:  # on a full disk metrics.jsonl says so
            file.write(line + "\n")

    def is_due(self, step: int, num_steps: int) -> bool:
        """Tell whether pictures are wanted after a step: every so many, and after a stage that had some."""
        every = self.config.picture_every
        return bool(every) and (step % every == 0 or (step == num_steps and num_steps > every))

    def draw(self, stage: str, step: int) -> None:
        """Draw the stage's grid, if it has one, into the run folder and every tracker that takes pictures."""
        if stage not in self.drawing:
            return
        grid = arrange(self.drawing[stage]())
        folder = self.run_dir / GRIDS
        folder.mkdir(exist_ok=True)
        size = (grid.shape[1] * ENLARGED, grid.shape[0] * ENLARGED)
        path = folder / f"{stage}-{step:07d}.png"
        Image.fromarray(grid).resize(size, Image.Resampling.NEAREST).save(path)
        for name, tracker in list(self._trackers.items()):
            if name == "tensorboard":
                self._attempt(
                    name,
                    lambda tracker=tracker: tracker.log_images({stage: grid[None]}, step=step, dataformats="NHWC"),
                )
            elif name == "wandb":
                self._attempt(name, lambda tracker=tracker: tracker.log_images({stage: [grid]}, step=step))

    def close(self) -> None:
        """Finish every tracker."""
        for name, tracker in list(self._trackers.items()):
            self._attempt(name, tracker.finish)
        self._trackers.clear()

    def _start(self, name: str) -> None:
        from accelerate import PartialState, tracking

        PartialState(cpu=True)  # the trackers' own logging asks for it; processes that were joined have one already
        run = self.run_dir.name
        made: Mapping[str, Callable[[], Any]] = {
            "tensorboard": lambda: tracking.TensorBoardTracker("tensorboard", self.run_dir),
            "wandb": lambda: tracking.WandBTracker(PROJECT, name=run, dir=str(self.run_dir), resume="allow", id=run),
            "trackio": lambda: tracking.TrackioTracker(PROJECT, name=run, resume="allow"),
        }
        tracker = made[name]()
        tracker.start()
        self._trackers[name] = tracker

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # trackers' errors have no base in common, and none may stop a training
            self._trackers.pop(name, None)
            if self.console:
                self.console.print(
                    f"note: tracker {name} is left out from here on: {type(error).__name__}: {error}. Training goes "
                    "on; metrics.jsonl has everything.",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )


def speed_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return what a run folder says of its speed: stage, step, frames per second, and seconds since the last record."""
    path, found = run_dir / SPEED, list[dict[str, Any]]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # cut short by a kill
            found.append(json.loads(line))
    return found


def seconds_spent(run_dir: Path, stage: str) -> float:
    """Return the seconds that a stage took so far, resumed or not, up to the last step that was logged."""
    return sum(record.get("seconds", 0.0) for record in speed_log(run_dir) if record["stage"] == stage)


def arrange(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one picture [height, width, 3] of rows x columns of frames, parted by white gaps."""
    rows, columns, height, width = frames.shape[:4]
    picture = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + GAP), column * (width + GAP)
            picture[top : top + height, left : left + width] = frames[row, column]
    return picture
