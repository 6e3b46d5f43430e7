"""How do error and planning success scale with a predictor's parameters and with episodes? A grid, a fit, a look ahead.

    python scripts/study_scaling.py pretrained:push push.zarr runs/scaling            the grid below, an hour or two
    python scripts/study_scaling.py pretrained:push push.zarr runs/scaling --seeds 0 1 2 --pairs 0    without planning

Every cell trains a predictor from nothing, on latents of one tokenizer, on the first so many episodes of a store; all
see as many batches. The rate falls with the square root of the width. Errors are those of held-out episodes, imagined
from three frames and recorded actions (scripts/bench_drift.py); success is that of `embodied-wm benchmark planning`.
What is finished in the folder is read, not trained again. The fit is Hoffmann et al.'s (2022): error = E + A / N^a +
B / D^b with N parameters of the transformer and D frames, least squares of the logarithm.

Expected was that both more parameters and more episodes would still pay at the far end, success saturating first. What
came out on `push` (four shapes, 13,568 to 1,559,680 parameters; 16 to 1,620 episodes; one seed; the table stands in
RESULTS.md): past 500 episodes and 100,000 parameters nothing falls any more at 2,000 steps; the box that moves is off
by 4.4 cm at the near end and 1.3 at the far one, eight steps ahead, success of 30 goals is 0.33 and 1.00. Fits, off by
4 to 6%: 0.0038 + 0.675 / N^0.70 + 0.59 / D^0.70 (latents, one step), 0.040 + 20.3 / N^0.69 + 425 / D^1.14 (eight
steps), 1.28 + 1,430 / N^0.84 + 4,960 / D^1.11 (cm). What is left is the number of steps: 16,000 of them and 3,000 of
self-forcing take `nano` to 0.75 cm.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_drift import HORIZONS, Drift  # beside this script
from bench_objectives import measured
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares
from sizes import FPS, MODELS, size_of
from study_shape import mean_of, trained

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import TrainConfig
from embodied_wm.world_model import WorldModel

SHAPES = ("32x1-=", "32x2-=", "64x2-=", "128x2-=", "256x2-=")
EPISODES = (16, 50, 160, 500, 1620)
HOURS = 10_000
STARTS = 64
"""First guesses of the fit, of which the best end is kept."""


def training(shape: str, steps: int, held_out_fraction: float) -> TrainConfig:
    """Return how a shape is trained: as many batches as any other, at a rate by its width."""
    width = int(shape.partition("x")[0])
    rate = 2e-3 * (128 / width) ** 0.5
    stage = StageConfig(
        num_steps=steps, batch_size=32, learning_rate=rate, ema_decay=0.995, num_threads=1, warmup_steps=50
    )
    return TrainConfig(predictor=stage, held_out_fraction=held_out_fraction)


def cell(drift: Drift, model: WorldModel, run: Path, task: str, pairs: int, frames: int) -> dict[str, Any]:
    """Return the figures of one trained predictor."""
    figures = drift.measure(model, seed=0)
    moving = figures[f"{next(reversed(drift.things))} that moves (cm)"]
    found = {
        "parameters": sum(p.numel() for p in model.predictor.transformer.parameters()),
        "frames": frames,
        "seconds": model.card["seconds"]["predictor"],
        "errors": {h: mean_of(figures["latents"][:, i], drift.episodes) for i, h in enumerate(HORIZONS)},
        "moving_cm": {h: mean_of(moving[:, i], drift.episodes) for i, h in enumerate(HORIZONS)},
    }
    if pairs:
        options = (f"planning.num_pairs={pairs}", "planning.controllers=[model]")
        found["success"] = measured("planning", task, "state", run, *options)["success"]
    return found


def fitted(cells: list[dict[str, Any]], error: Any) -> np.ndarray:
    """Return E, A, a, B, b of error = E + A / N^a + B / D^b, by least squares of its logarithm."""
    sizes = np.array([each["parameters"] for each in cells], dtype=float)
    frames = np.array([each["frames"] for each in cells], dtype=float)
    errors = np.array([error(each) for each in cells])

    def residual(free: np.ndarray) -> np.ndarray:
        return np.log(predicted(free, sizes, frames)) - np.log(errors)

    draws = np.random.default_rng(0)
    low, high = np.array([-20.0, -20.0, 0.0, -20.0, 0.0]), np.array([5.0, 20.0, 2.0, 20.0, 2.0])
    starts = draws.uniform([-8.0, -5.0, 0.1, -5.0, 0.1], [0.0, 5.0, 1.0, 5.0, 1.0], (STARTS, 5))
    return min((least_squares(residual, start, bounds=(low, high)) for start in starts), key=lambda end: end.cost).x


def predicted(free: np.ndarray, sizes: Any, frames: Any) -> Any:
    """Return the error that a fit foretells; E, A and B are given by their logarithms."""
    return np.exp(free[0]) + np.exp(free[1]) / sizes ** free[2] + np.exp(free[3]) / frames ** free[4]


def grid(cells: dict[str, dict[str, Any]], shapes: list[str], episodes: list[int], title: str, show: Any) -> Table:
    """Return a table of shapes by episodes, each entry the mean over what seeds there are."""
    table = Table("transformer", "parameters", *(f"{each} episodes" for each in episodes), title=title)
    for shape in shapes:
        rows = [[v for k, v in cells.items() if k.startswith(f"{shape}_{each}_")] for each in episodes]
        table.add_row(shape, f"{rows[0][0]['parameters']:,}", *(show(row) for row in rows))
    return table


def mean_shown(name: str, horizon: int, digits: int) -> Any:
    """Return what shows the mean of a figure over seeds, with its least and greatest where there are several."""

    def show(row: list[dict[str, Any]]) -> str:
        values = [each[name][horizon]["value"] for each in row]
        spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    return show


def report(cells: dict[str, dict[str, Any]], shapes: list[str], episodes: list[int], console: Console) -> None:
    """Print the grids, the fits and where they lead."""
    far = 8
    console.print(grid(cells, shapes, episodes, "error of latents, 1 step ahead", mean_shown("errors", 1, 4)))
    console.print(grid(cells, shapes, episodes, f"error of latents, {far} steps ahead", mean_shown("errors", far, 3)))
    console.print(
        grid(cells, shapes, episodes, f"what moves is off by (cm), {far} steps", mean_shown("moving_cm", far, 2))
    )
    if all("success" in each for each in cells.values()):
        console.print(grid(cells, shapes, episodes, "success", lambda row: " | ".join(each["success"] for each in row)))
    every = list(cells.values())
    sizes = {name: size_of(name, MODELS[name]).transformer for name in ("small", "base", "large")}
    frames = HOURS * 3600 * FPS
    for label, error in {
        "latents, 1 step": lambda each: each["errors"][1]["value"],
        f"latents, {far} steps": lambda each: each["errors"][far]["value"],
        f"cm, {far} steps": lambda each: each["moving_cm"][far]["value"],
    }.items():
        free = fitted(every, error)
        misses = [np.log(predicted(free, each["parameters"], each["frames"]) / error(each)) for each in every]
        console.print(
            f"{label}: {np.exp(free[0]):.3g} + {np.exp(free[1]):.3g} / N^{free[2]:.2f} + {np.exp(free[3]):.3g} / "
            f"D^{free[4]:.2f}, off by {100 * np.std(misses):.0f}%"
        )
        ahead = {name: float(predicted(free, size, frames)) for name, size in sizes.items()}
        foretold = ", ".join(f"{name} {value:.3g}" for name, value in ahead.items())
        ahead_of = f"on {frames:.3g} frames ({HOURS:,} hours at {FPS} a second, were they as these are)"
        console.print(f"  {ahead_of}: {foretold}; best here {min(map(error, every)):.3g}")


def main() -> None:
    """Train the grid, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="whose tokenizer and readouts all share: a folder, or pretrained:TASK")
    parser.add_argument("store", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="as scripts/study_shape.py names them")
    parser.add_argument("--episodes", nargs="+", type=int, default=list(EPISODES))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", type=int, default=30, help="goals that each plans; 0 plans none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base, store = WorldModel.from_pretrained(arguments.checkpoint), EpisodeStore.open(arguments.store)
    train, held_out = split_episodes(store.num_episodes)
    if max(arguments.episodes) > len(train):
        parser.error(f"--episodes {max(arguments.episodes)}: {arguments.store} has {len(train)} to train on")
    drift, cells = Drift(base, store, held_out=held_out.tolist()), {}
    for episodes in arguments.episodes:
        for shape in arguments.shapes:
            for seed in arguments.seeds:
                name = f"{shape}_{episodes}_{seed}_{arguments.steps}"
                run = arguments.runs / name
                how = training(shape, arguments.steps, 1 - episodes / store.num_episodes)
                model = trained(base, store, run, shape, how, seed)
                frames = int(store.episode_lengths[:episodes].sum())
                cells[name] = cell(drift, model, run, base.embodiment.robot, arguments.pairs, frames)
                Console().print(name, {h: round(each["value"], 4) for h, each in cells[name]["errors"].items()})
    (arguments.runs / "cells.json").write_text(json.dumps(cells, indent=1), encoding="utf-8")
    report(cells, arguments.shapes, arguments.episodes, Console(width=160))


if __name__ == "__main__":
    main()
