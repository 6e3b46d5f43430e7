"""Attention over a window against the gated delta rule (constant memory), at equal steps, on one store and tokenizer.

    python scripts/bench_mixers.py RUN STORE [--steps 1000] [--seeds 0 1 2] [--mixers attention gated_delta]

RUN is a trained run of `embodied-wm train`, STORE what it was trained on; RUN's tokenizer and latent actions are taken
over, and the predictor is trained anew for each mixer and seed. Errors are mean squared errors of imagined latents (in
units of their variance) on the held-out episodes, from four frames of context, one denoising step: after 1, 8 and 16
imagined frames; copying the last frame beside it. Times are the thread's processor time for one imagined frame of one
candidate (256 candidates, horizon 8), alternating, medians.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.predictor import sampler
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import TrainConfig, train_world_model
from embodied_wm.world_model import WorldModel, WorldModelConfig

CONTEXT, HORIZON, AHEAD = 4, 16, (1, 8, 16)
CANDIDATES, TIMED_HORIZON, REPEATS = 256, 8, 9


def with_mixer(config: WorldModelConfig, mixer: str) -> WorldModelConfig:
    """Return a model's configuration with another mixer; `attention+W` is attention with a window of W frames."""
    name, _, window = mixer.partition("+")
    transformer = dataclasses.replace(config.predictor.transformer, mixer=name)
    changes = {"transformer": transformer, "clean_pass": True} | ({"window": int(window)} if window else {})
    predictor: PredictorConfig = dataclasses.replace(config.predictor, **changes)
    return dataclasses.replace(config, predictor=predictor)


def train(start: WorldModel, mixer: str, options: argparse.Namespace, seed: int) -> WorldModel:
    """Train a predictor on the run's store."""
    stage = StageConfig(num_steps=options.steps, batch_size=32, learning_rate=2e-3, num_threads=1, ema_decay=0.995)
    with tempfile.TemporaryDirectory() as folder:
        return train_world_model(
            EpisodeStore.open(options.store),
            with_mixer(start.config, mixer),
            TrainConfig(predictor=stage, sequence_length=options.sequence_length),
            Path(folder),
            seed=seed,
            stages=["predictor"],
            start_from=start,
            console=Console(quiet=True),
        )


def held_out_windows(model: WorldModel, store: EpisodeStore, count: int) -> tuple[Tensor, Tensor]:
    """Return latents [N, C + H, K, D] and actions [N, C + H, A] of random windows of the held-out episodes."""
    _, held_out = split_episodes(store.num_episodes)
    data = LatentEpisodes(
        store, model.tokenizer, camera=model.embodiment.camera, episodes=held_out.tolist(), features=["action"]
    )
    batch = data.sampler(length=CONTEXT + HORIZON, batch_size=count, seed=0).numbered(0)
    return batch["latents"], batch["action"]


@torch.no_grad()
def errors(model: WorldModel, latents: Tensor, actions: Tensor) -> dict[str, float]:
    """Return the mean squared error after each of AHEAD frames."""
    contexts = [
        model.prefill_latents(past[:CONTEXT], acted[: CONTEXT - 1])
        for past, acted in zip(latents, actions, strict=True)
    ]
    noise = sampler.draw_noise(model.predictor, len(latents), HORIZON, torch.Generator().manual_seed(0), shared=False)
    steps = iter(range(HORIZON))
    frames = model.imagine_frames(contexts, lambda: actions[:, CONTEXT - 1 + next(steps)], noise)
    missed = torch.stack(list(frames), dim=1) - latents[:, CONTEXT:]
    return {f"h={ahead}": float(missed[:, ahead - 1].square().mean()) for ahead in AHEAD}


def microseconds(models: dict[str, WorldModel]) -> dict[str, float]:
    """Return the processor time of a candidate's frame, for each model."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(REPEATS + 1):
        for name, model in models.items():
            size = (CANDIDATES, TIMED_HORIZON, model.embodiment.action_size)
            tokens, width = model.config.tokenizer.num_tokens, model.config.tokenizer.token_width
            context = model.prefill_latents(torch.zeros(CONTEXT, tokens, width), None)
            began = time.thread_time()
            model.imagine(context, torch.zeros(size), generator=torch.Generator())
            if repeat:
                times[name].append((time.thread_time() - began) * 1e6 / (CANDIDATES * TIMED_HORIZON))
    return {name: statistics.median(row) for name, row in times.items()}


def main() -> None:
    """Train, measure, print a line per model and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder or model folder whose tokenizer is used")
    parser.add_argument("store", help="store that it was trained on")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mixers", nargs="+", default=["attention", "gated_delta"])
    parser.add_argument("--sequence-length", type=int, default=10)
    parser.add_argument("--windows", type=int, default=256, help="held-out windows")
    parser.add_argument("--out", type=Path, default=None, help="folder for the trained models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, console = WorldModel.from_pretrained(options.run), Console(width=120, highlight=False)
    store = EpisodeStore.open(options.store)
    latents, actions = held_out_windows(start, store, options.windows)
    copied = (latents[:, CONTEXT - 1 : CONTEXT] - latents[:, CONTEXT:]).square().mean((0, 2, 3))
    console.print("copying: " + ", ".join(f"h={ahead} {copied[ahead - 1]:.4f}" for ahead in AHEAD))
    found: dict[str, list[dict[str, float]]] = {mixer: [] for mixer in options.mixers}
    models: dict[str, WorldModel] = {}
    for seed in options.seeds:
        for mixer in options.mixers:
            began = time.process_time()
            model = models[mixer] = train(start, mixer, options, seed)
            spent = time.process_time() - began
            found[mixer].append(errors(model, latents, actions))
            if options.out is not None:
                model.save(options.out / f"{mixer}_{seed}")
            words = ", ".join(f"{key} {value:.4f}" for key, value in found[mixer][-1].items())
            console.print(f"{mixer} seed {seed}: {words}, trained in {spent:.0f} s of processor time")
    times = microseconds(models)
    for mixer, rows in found.items():
        means = ", ".join(f"{key} {statistics.fmean(row[key] for row in rows):.4f}" for key in rows[0])
        size = sum(parameter.numel() for parameter in models[mixer].predictor.parameters())
        console.print(f"{mixer}: mean {means}; {times[mixer]:.0f} us per candidate-step; {size:,} parameters")


if __name__ == "__main__":
    main()
