"""Which shape of predictor plans best for its price? Trains each from nothing on one tokenizer's latents.

    python scripts/study_shape.py CHECKPOINT STORE --shapes 192x2 192x2- 192x2-= 128x2-=

A shape is width x depth; a minus leaves the action's token out (`predictor.action_token=false`), an equals sign the
clean pass of known frames (`predictor.clean_pass=false`). Every shape sees the same batches, steps and learning rate.
Printed: parameters, seconds of training, errors on held-out episodes that were imagined from three frames and recorded
actions (`scripts/bench_drift.py`), and the CPU time of the imagination of one decision (candidates x iterations x
horizon) on one thread. Models are kept in --runs and measured again from there.

What came out on `push` (key points, 2,000 steps, one seed, a busy machine; means over 60 held-out episodes; the first
row in an earlier session):

    | shape   | parameters | latents at h = 8, 16 | box that moves, at h = 4, 8, 16 (cm) | pusher, at h = 8, 16 (cm) |
    |---------|------------|----------------------|--------------------------------------|---------------------------|
    | 192x2   | 1,217,057  | 0.064, 0.21          | 0.72, 1.45, 3.3                      | 1.5, 3.0                  |
    | 192x2-  | 1,217,057  | 0.063, 0.20          | 0.76, 1.35, 3.1                      | 1.5, 2.5                  |
    | 192x2-= | 1,220,129  | 0.058, 0.19          | 0.73, 1.36, 2.9                      | 1.5, 2.3                  |
    | 128x2-= | 559,520    | 0.064, 0.19          | 0.74, 1.41, 2.9                      | 1.6, 2.4                  |

All intervals overlap: nothing is lost without a token for the action, nothing without the clean pass (expected was a
little more error, as context then is what targets made of noise), and hardly anything at half the weights. Imagining 96
candidates eight frames ahead takes 97, 72, 47 and 36 ms of processor time in this order (one run, busy machine). So
the last is what `nano` and `nano_keypoints` are now.
"""

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_drift import HORIZONS, Drift  # beside this script
from rich.console import Console
from rich.table import Table

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.statistics import bootstrap_mean
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import TrainConfig, train_world_model
from embodied_wm.world_model import WorldModel


def shaped(config: PredictorConfig, shape: str) -> PredictorConfig:
    """Return the configuration of a shape such as 128x3-; heads are 32 wide, SwiGLU 8/3 of the width."""
    found = re.fullmatch(r"(\d+)x(\d+)(-?)(=?)", shape)
    if found is None:
        raise SystemExit(
            f"--shapes {shape}: expected WIDTHxDEPTH, a - where actions have no token, a = without clean pass: 128x2-="
        )
    width, depth = int(found[1]), int(found[2])
    transformer = replace(
        config.transformer, width=width, depth=depth, num_heads=width // 32, hidden=round(width * 8 / 3 / 32) * 32
    )
    return replace(config, transformer=transformer, action_token=not found[3], clean_pass=not found[4])


def trained(
    base: WorldModel, store: EpisodeStore, run: Path, shape: str, training: TrainConfig, seed: int
) -> WorldModel:
    """Return a predictor of a shape, trained from nothing on the base model's latents, or read from an earlier call."""
    finished = run / "with_readouts"
    if not (finished / "config.json").is_file():
        config = replace(base.config, predictor=shaped(base.config.predictor, shape))
        model = train_world_model(
            store, config, training, run, seed=seed, stages=("predictor",), start_from=base, console=Console(width=160)
        )
        for part in ("adapter", "readouts"):  # not trained again, since latents are the same
            getattr(model, part).load_state_dict(getattr(base, part).state_dict())
        model.save(finished)
    return WorldModel.load(finished)


def decision_ms(model: WorldModel, num_candidates: int, num_iterations: int, horizon: int) -> float:
    """Return the CPU milliseconds of imagining what one decision imagines, one thread."""
    size, shape = model.embodiment.action_size, model.latent_actions.latent_shape
    generator = torch.Generator().manual_seed(0)
    context = model.prefill_latents(torch.randn(3, *shape, generator=generator), torch.zeros(2, size))
    actions = torch.rand(num_candidates, horizon, size, generator=generator)
    times = []
    for _ in range(7):
        began = time.process_time()
        for _ in range(num_iterations):
            model.imagine(context, actions, generator=generator, shared_noise=True)
        times.append(1e3 * (time.process_time() - began))
    return median(times[1:])


def mean_of(values: np.ndarray, episodes: np.ndarray) -> dict[str, Any]:
    """Return the mean where it applies (a thing moves), with its interval over episodes."""
    applies = ~np.isnan(values)
    return bootstrap_mean(values[applies], seed=0, groups=episodes[applies])


def main() -> None:
    """Train and measure the shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["192x2", "192x2-", "192x2-=", "128x2-="])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--decision", type=int, nargs=3, default=(96, 3, 8), help="candidates, iterations, horizon")
    parser.add_argument("--runs", type=Path, default=Path("runs/study_shape"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    base, store = WorldModel.from_pretrained(arguments.checkpoint), EpisodeStore.open(arguments.store)
    drift = Drift(base, store, held_out=split_episodes(store.num_episodes)[1].tolist())
    stage = StageConfig(
        num_steps=arguments.steps, batch_size=32, learning_rate=2e-3, ema_decay=0.995, num_threads=1, warmup_steps=50
    )
    columns = ["shape", "parameters", "training s", "decision ms", *(f"latents h={h}" for h in HORIZONS)]
    columns += [f"{name} that moves, cm, h={h}" for name in drift.things for h in HORIZONS[1:]]
    table = Table(*columns, title="Predictor's shape; mean and 95% interval over held-out episodes")
    for shape in arguments.shapes:
        for seed in arguments.seeds:
            training = TrainConfig(predictor=stage)
            model = trained(base, store, arguments.runs / f"{shape}_{seed}", shape, training, seed)
            figures = drift.measure(model, seed=0)
            names = [f"{name} that moves (cm)" for name in drift.things]
            cells = [(figures["latents"], index) for index in range(len(HORIZONS))]
            cells += [(figures[name], index) for name in names for index in range(1, len(HORIZONS))]
            found = [mean_of(values[:, index], drift.episodes) for values, index in cells]
            table.add_row(
                f"{shape} seed {seed}",
                f"{sum(p.numel() for p in model.predictor.parameters()):,}",
                f"{model.card['seconds']['predictor']:.0f}",
                f"{decision_ms(model, *arguments.decision):.0f}",
                *(f"{each['value']:.3g} [{each['ci95'][0]:.3g}, {each['ci95'][1]:.3g}]" for each in found),
            )
            console.print(table)


if __name__ == "__main__":
    main()
