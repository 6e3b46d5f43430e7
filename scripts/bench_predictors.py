"""Flow against regression (and masked codes) where nothing is left to chance, by the same CPU seconds.

    python scripts/bench_predictors.py push.zarr --model RUN_OF_PUSH --seeds 0 1 2

Takes a trained model's tokenizer and trains each predictor anew on its latents; measures latent errors and PSNR at
several horizons on held-out episodes. Where a hidden coin decides: `bench_stochastic.py`, which trains by what is here.

Expected: a tie. What came out on `push` (key points of the model that ships, 50 CPU seconds each, three seeds, 64
windows): eight steps ahead regression has 29.1 dB (29.1, 28.9, 29.2) against the decoded truth, flow 28.0 in one step
(27.9, 28.4, 27.7) and 28.0 in four (27.8, 28.6, 27.5), copying 19.1; errors of latents 0.024, 0.027, 0.025 and 0.52.

`distilled` is flow that never learns large steps, and is distilled to one in the last third of its time (600 episodes,
beside other jobs): 27.2 dB (27.6, 26.8, 27.0), its teacher in four steps 27.3 (27.9, 27.0, 27.2), flow with shortcuts
27.1 (27.0, 27.1, 27.1) in one. Expected was that the student loses a little of its teacher; it lost none that shows.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.statistics import bootstrap_mean
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.training.forcing import DistillationConfig, distilling_loss
from embodied_wm.training.latents import LatentEpisodes, LatentSampler
from embodied_wm.training.loop import Batch, Conduct, Loss, StageConfig, fit
from embodied_wm.world_model import WorldModel

CONTEXT, HORIZON, LENGTH, BATCH = 3, 8, 11, 16
DISTILLED = "distilled"
DISTILLING = 0.3
"""Share of its CPU seconds in which a distilled predictor is distilled; before that it is its own teacher to be."""
STEPS = {"regression": (1,), "flow": (1, 4), "masked": (1, 2, 4)}
"""Kinds of predictor, and how many steps, or rounds, they imagine a frame in."""


def with_predictor(base: WorldModel, seed: int, **changes: Any) -> WorldModel:
    """Return a copy of a model with a new predictor, plain but for some fields."""
    torch.manual_seed(seed)
    # Nothing is held still, and no Fourier features.
    plain = {"shrinkage": 0.0, "stillness": 0.0, "fourier_features": 0}
    predictor = replace(base.config.predictor, **(plain | changes))
    model = WorldModel(replace(base.config, predictor=predictor), base.embodiment)
    kept = {name: tensor for name, tensor in base.state_dict().items() if not name.startswith("predictor.")}
    model.load_state_dict(kept, strict=False)
    return model.eval()


def train_predictor(
    model: WorldModel, data: LatentEpisodes, seconds: float, seed: int, console: Console, *, length: int = LENGTH
) -> None:
    """Train a predictor for some CPU seconds: as many steps as fit, by the time of the first ones.

    Windows are of `length` frames, and fewer in a batch where they are longer.
    """
    predictor, size = model.predictor, BATCH * LENGTH // length
    sampler = data.sampler(length=length, batch_size=size, seed=seed, memory=model.config.predictor.memory)
    if predictor.masked is not None:
        predictor.masked.codes.fit_to(model.tokenizer)
    predictor.fit_change(torch.cat([sampler.numbered(number)["latents"] for number in range(16)]))

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        told = model.action_inputs(batch["action"])
        return predictor.loss(batch["latents"], told, generator, batch.get("memory"))

    settings = model.config.predictor
    name = settings.kind + " with joint actions" * settings.joint_actions + " with a memory" * (settings.memory > 0)
    _fit_for(seconds, name, model, sampler, loss, seed, console)


def distil(model: WorldModel, data: LatentEpisodes, seconds: float, seed: int, console: Console) -> None:
    """Make one denoising step of a predictor's many, by the library's own stage, for some CPU seconds."""
    config = DistillationConfig(denoising_steps=model.predictor.step_counts[-1])
    as_stage, is_labelled = distilling_loss(model, config, 0.0), torch.ones(BATCH, dtype=torch.bool)
    sampler = data.sampler(length=LENGTH, batch_size=BATCH, seed=seed + 1)

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return as_stage(batch | {"labelled": is_labelled}, generator)

    _fit_for(seconds, DISTILLED, model, sampler, loss, seed, console, learning_rate=config.learning_rate)


def _fit_for(
    seconds: float,
    name: str,
    model: WorldModel,
    sampler: LatentSampler,
    loss: Loss,
    seed: int,
    console: Console,
    *,
    learning_rate: float = 2e-3,
) -> None:
    """Train a model's predictor for some CPU seconds: as many steps as fit, by the time of the first ones."""
    predictor = model.predictor

    def run(num_steps: int) -> float:
        config = StageConfig(
            num_steps=num_steps,
            batch_size=sampler.batch_size,
            learning_rate=learning_rate,
            warmup_steps=20,
            ema_decay=0.99,
            num_threads=1,
        )
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            modules = nn.ModuleDict({"predictor": predictor})
            fit("predictor", modules, sampler.batch, loss, config, run_dir=Path(folder), seed=seed, conduct=Conduct())
            return time.process_time() - began

    weights = deepcopy(predictor.state_dict())
    run(2)
    num_steps = max(20, round(seconds / (run(10) / 10)))
    predictor.load_state_dict(weights)
    spent = run(num_steps)
    console.print(f"{name}, seed {seed}: {num_steps} steps in {spent:.0f} CPU seconds")


def ways(
    base: WorldModel, data: LatentEpisodes, seconds: float, seed: int, console: Console, kinds: Sequence[str]
) -> Iterator[tuple[str, WorldModel, int]]:
    """Train predictors for as many CPU seconds each, and yield the names of ways to imagine, the models and the steps.

    DISTILLED is flow that was never taught large steps, in the most steps, and then in the one that was made of them.
    """
    for kind in kinds:
        if kind == DISTILLED:
            model = with_predictor(base, seed, kind="flow", memory=0, shortcut_fraction=0.0)
            most = model.predictor.step_counts[-1]
            train_predictor(model, data, (1 - DISTILLING) * seconds, seed, console)
            yield f"flow without shortcuts, {most} steps", model, most
            distil(model, data, DISTILLING * seconds, seed, console)
            yield "distilled of that, 1 step", model, 1
        else:
            model = with_predictor(base, seed, kind=kind)
            train_predictor(model, data, seconds, seed, console)
            for num_steps in STEPS[kind]:
                yield f"{kind}, {num_steps} step{'s' * (num_steps > 1)}", model, num_steps


def print_table(console: Console, title: str, rows: dict[str, dict[str, str]]) -> None:
    """Print measures, one way of imagining a row."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table("", *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(row.get(column, "") for column in columns))
    console.print(table)


def draw_grid(path: Path, columns: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Draw pictures uint8 [h, w, 3], a column under each heading."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(columns[0][1])
    canvas, axes = pyplot.subplots(rows, len(columns), figsize=(1.3 * len(columns), 1.3 * rows + 0.3), squeeze=False)
    for place, (name, pictures) in enumerate(columns):
        for axis, picture in zip(axes[:, place], pictures, strict=True):
            axis.imshow(picture.numpy())
            axis.axis("off")
        axes[0, place].set_title(name, fontsize=8)
    canvas.tight_layout(pad=0.3)
    canvas.savefig(path, dpi=110)
    pyplot.close(canvas)


def figure(values: Sequence[float]) -> str:
    """Return a mean and its 95% interval (bootstrap)."""
    found = bootstrap_mean(values, seed=0)
    ends = found["ci95"] or (found["value"],) * 2
    return f"{found['value']:.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"


def of_seeds(values: Sequence[np.ndarray]) -> str:
    """Return the mean over seeds of what was measured [states], its interval over states, and each seed's mean."""
    return f"{figure(np.mean(values, 0))} ({', '.join(f'{each.mean():.1f}' for each in values)})"


def main() -> None:
    """Train on a store, and measure latent errors and PSNR on held-out episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("store", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="whose tokenizer and sizes are taken")
    parser.add_argument("--seconds", type=float, default=150.0, help="CPU seconds for each predictor")
    parser.add_argument("--points", type=int, default=64, help="windows that are measured")
    parser.add_argument("--episodes", type=int, default=10_000, help="most episodes to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--kinds", nargs="+", choices=(*STEPS, DISTILLED), help="all that the tokenizer allows by default"
    )
    options, console = parser.parse_args(), Console(width=220)
    torch.set_num_threads(1)
    store, base = EpisodeStore.open(options.store), WorldModel.from_pretrained(options.model)
    possible = ("regression", "flow", DISTILLED, *(["masked"] if base.config.tokenizer.code_levels else []))
    kinds = options.kinds or possible
    if not set(kinds) <= set(possible):
        parser.error(f"--kinds {' '.join(kinds)}: on {options.model}'s latents there can be {', '.join(possible)}")
    train, held_out = split_episodes(store.num_episodes)
    parts = [
        LatentEpisodes(
            store, base.tokenizer, camera=base.embodiment.camera, episodes=part.tolist(), features=["action"]
        )
        for part in (train[: options.episodes], held_out)
    ]
    windows = parts[1].sampler(length=LENGTH, batch_size=options.points, seed=7).batch(0)
    latents, actions = windows["latents"], windows["action"]
    ahead = torch.tensor([1, 4, 8])
    true, last = latents[:, CONTEXT - 1 + ahead], latents[:, CONTEXT - 1, None]
    rows: dict[str, dict[str, list[np.ndarray]]] = {}

    def note(name: str, imagined: Tensor) -> None:
        error = (imagined - true).square().mean((2, 3)).numpy()
        quality = psnr(base.decode(imagined), base.decode(true)).numpy()
        for column, values in (("latent error", 100 * error), ("dB", quality)):
            for index, step in enumerate(ahead.tolist()):
                rows.setdefault(name, {}).setdefault(f"{column}, h={step}", []).append(values[:, index])

    note("copying", last.expand_as(true))
    for seed in options.seeds:
        for name, model, num_steps in ways(base, parts[0], options.seconds, seed, console, kinds):
            ends = []
            for place in range(len(latents)):
                context = model.prefill_latents(latents[place, :CONTEXT], actions[place, : CONTEXT - 1])
                generator = torch.Generator().manual_seed(place)
                following = actions[place, CONTEXT - 1 : CONTEXT - 1 + HORIZON][None]
                ends.append(model.imagine(context, following, num_steps=num_steps, generator=generator)[0])
            note(name, torch.stack(ends)[:, ahead - 1])
    shown = {name: {key: of_seeds(values) for key, values in row.items()} for name, row in rows.items()}
    title = f"{options.store.name}: error x 100 in latent units, dB against the decoded truth; (each seed)"
    print_table(console, title, shown)


if __name__ == "__main__":
    main()
