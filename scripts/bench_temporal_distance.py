"""How well does the temporal-distance readout know the steps to a goal? Against exact ones, on held-out `reach` frames.

    python scripts/bench_temporal_distance.py RUN_OF_REACH

Fits the readout on the latents of the episodes that a trained `reach` model was trained on (play, no goals), and ranks
pairs of held-out frames by it. The arm's joints turn at most 0.2 rad a step, the shoulder either way round, so the
least number of steps between two poses is known. Beside it: the Euclidean distance of latents.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.statistics import bootstrap_mean, spearman
from embodied_wm.temporal_distance import TemporalDistance, TemporalDistanceConfig
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig, fit
from embodied_wm.world_model import WorldModel

STEP_RAD = 0.2
NUM_GOALS, NUM_STARTS = 100, 64


def true_steps(pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the least number of steps [N] from joint angles [N, 2] (rad) to a goal's [2]."""
    turn = np.abs((goal - pose + np.pi) % (2 * np.pi) - np.pi)
    return np.maximum(turn[:, 0], np.abs(goal - pose)[:, 1]) / STEP_RAD


def main() -> None:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path, help="run folder of a model trained on reach")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, console = WorldModel.from_pretrained(options.run), Console()
    store = EpisodeStore.open(model.card["store"])
    tokenizer = model.config.tokenizer
    distance = TemporalDistance(
        TemporalDistanceConfig(components=8), latent_size=tokenizer.num_tokens * tokenizer.token_width
    )
    parts = [
        LatentEpisodes(
            store, model.tokenizer, camera=model.embodiment.camera, episodes=part.tolist(), features=["sim.physics"]
        )
        for part in split_episodes(store.num_episodes)
    ]
    sampler = parts[0].sampler(length=2, batch_size=256, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            "temporal_distance",
            nn.ModuleDict({"distance": distance}),
            sampler.batch,
            lambda batch, generator: distance.loss(batch["latents"], generator),
            StageConfig(num_steps=options.steps, batch_size=256, num_threads=1),
            run_dir=Path(folder),
            seed=options.seed,
            console=console,
        )
    latents, pose = parts[1].latents, parts[1].features["sim.physics"][:, 1:3].numpy().astype(float)
    rng = np.random.default_rng(options.seed)
    found: dict[str, list[float]] = {"temporal distance": [], "latent distance": []}
    for goal in rng.choice(len(latents), NUM_GOALS, replace=False):
        starts = torch.from_numpy(rng.choice(len(latents), NUM_STARTS, replace=False))
        true = true_steps(pose[starts], pose[goal])
        with torch.no_grad():
            learnt = distance(latents[starts], latents[goal]).numpy()
        straight = (latents[starts] - latents[goal]).flatten(1).norm(dim=1).numpy()
        found["temporal distance"].append(spearman(learnt, true))
        found["latent distance"].append(spearman(straight, true))
    for name, values in found.items():
        figure = bootstrap_mean(values, seed=options.seed)
        low, high = figure["ci95"]
        console.print(f"{name}: Spearman with the true steps {figure['value']:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
