"""Measure training, always as ratios within one run.

    python scripts/bench_training.py latents                    predictor stage on latents from memory, zarr, tokenizer
    python scripts/bench_training.py products                   a nano predictor step against its matrix products alone
    python scripts/bench_training.py releases --other ../older  steps of this checkout and of another one, in turns
    python scripts/bench_training.py loader --model small       reading frames against the step that wants them
    python scripts/bench_training.py feed --model small         what a device must compute to outrun the reading

Times are this process's CPU seconds on one thread, so another job on the machine lengthens the run, not the figures;
those of `loader` are by the clock, as `--device cuda` computes elsewhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from embodied_wm.cli import compose_config, instantiate_config
from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import Embodiment
from embodied_wm.predictor.inputs import REAL, ActionInputs
from embodied_wm.training.frames import TOKENIZER_WINDOW
from embodied_wm.training.loop import StageConfig, fit, step_generator
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel

ACTION_SIZE, BATCH, TIME = 4, 32, 10
SEQUENCE, FED = 16, 256
"""Frames per window and windows per batch of the predictor stage on a GPU (configs/trainer/gpu.yaml)."""

CAMERA = "observation.images.top"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_flash_attention_for_cpu")
PRODUCTS_BACK = ("aten::_scaled_dot_product_flash_attention_for_cpu_backward",)


def build(name: str) -> WorldModel:
    """Return an untrained model of a configuration."""
    composed, _ = compose_config("train", {"model": name, "data.path": "none"})
    torch.manual_seed(0)
    return WorldModel(instantiate_config(composed)["model"], Embodiment(camera=CAMERA, action_size=ACTION_SIZE))


def predictor_loss(
    model: WorldModel,
) -> Callable[[dict[str, Tensor], torch.Generator], tuple[Tensor, dict[str, float]]]:
    """Return the predictor's loss of a batch of latents and actions."""

    def loss(batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        kind = torch.full(batch["action"].shape[:2], REAL)
        return model.predictor.loss(batch["latents"], ActionInputs(kind, real=batch["action"]), generator)

    return loss


def timed_fit(model: WorldModel, batch_of: Callable[[int], dict[str, Tensor]], num_steps: int) -> float:
    """Return the CPU seconds of a step of the predictor stage."""
    config = StageConfig(num_steps=num_steps, batch_size=BATCH, ema_decay=0.995, num_threads=1)
    parts = nn.ModuleDict({"predictor": model.predictor})
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        fit("predictor", parts, batch_of, predictor_loss(model), config, run_dir=Path(folder), seed=0)
        return (time.process_time() - began) / num_steps


def synthetic_store(path: Path, size: int) -> EpisodeStore:
    """Write episodes of moving noise, whose content no speed depends on."""
    features = {
        CAMERA: FeatureSpec(dtype="uint8", shape=(size, size, 3)),
        "action": FeatureSpec(dtype="float32", shape=(ACTION_SIZE,)),
    }
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, features=features, fps=10.0) as store:
        for _ in range(12):
            frames = np.cumsum(rng.integers(0, 3, (50, size, size, 3)), axis=0).astype(np.uint8)
            actions = rng.normal(size=(50, ACTION_SIZE)).astype(np.float32)
            store.append([Episode(features={CAMERA: frames, "action": actions})])
    return EpisodeStore.open(path)


def bench_latents(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the predictor stage on each source of latents, in turns."""
    from embodied_wm.training.latents import MODES, LatentEpisodes  # here, for `releases` runs older checkouts, too

    model = build(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder) / "s.zarr", model.config.tokenizer.image_size[0])
        samplers = {
            mode: LatentEpisodes(
                store,
                model.tokenizer,
                camera=CAMERA,
                episodes=range(store.num_episodes),
                features=["action"],
                mode=mode,
                folder=Path(folder) / "l.zarr",
                console=Console(quiet=True),
            ).sampler(length=TIME, batch_size=BATCH, seed=0)
            for mode in MODES
        }
        seconds: dict[str, list[float]] = {mode: [] for mode in samplers}
        for _ in range(arguments.rounds):
            for mode, sampler in samplers.items():
                seconds[mode].append(timed_fit(model, sampler.batch, arguments.steps))
    figures = {f"ms per step, {mode}": 1e3 * median(values) for mode, values in seconds.items()}
    ratios = {
        f"online over {mode}": median(a / b for a, b in zip(seconds["online"], seconds[mode], strict=True))
        for mode in ("memory", "zarr")
    }
    return figures | ratios


def bench_loader(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time reading 16-frame windows on one thread, and the predictor's step on them through the tokenizer, in turns."""
    device = torch.device(arguments.device)
    model = build(arguments.model).to(device)
    optimiser = torch.optim.AdamW(model.predictor.parameters(), lr=1e-4, fused=True)
    loss_of = predictor_loss(model)

    def step(batch: dict[str, np.ndarray], number: int) -> None:
        frames, actions = (torch.from_numpy(batch[name]).to(device) for name in (CAMERA, "action"))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                latents = model.tokenizer.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            loss, _ = loss_of({"latents": latents, "action": actions}, step_generator(0, number))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        float(loss.detach())  # waits for the device

    read, trained = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder) / "s.zarr", model.config.tokenizer.image_size[0])
        loader = WindowLoader(
            store,
            episodes=range(store.num_episodes),
            length=16,
            batch_size=BATCH,
            features=[CAMERA, "action"],
            seed=0,
            memory_budget_bytes=0,
        )
        step(loader.batch(0), 0)
        for number in range(1, arguments.rounds + 1):
            began = time.perf_counter()
            batch = loader.batch(number)
            between = time.perf_counter()
            step(batch, number)
            read.append(BATCH / (between - began))
            trained.append(BATCH / (time.perf_counter() - between))
    return {
        "windows/s read, one thread": median(read),
        f"windows/s trained on {device}": median(trained),
        "read over trained": median(a / b for a, b in zip(read, trained, strict=True)),
    }


def bench_feed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time reading for both large stages as a GPU is fed, and say which FLOP/s the device must reach to wait for it.

    The tokenizer stage reads windows of three frames from memory or from the store, the predictor stage windows of
    latents from memory or from a store. Where the rate that is needed lies above the peak of a device, that device
    never waits; the peak of one H100 or H200 is 989 TFLOP/s (dense bf16, NVIDIA's data sheet).
    """
    from sizes import MODELS, size_of  # beside this script

    from embodied_wm.training.latents import LatentEpisodes

    model, size = build(arguments.model), size_of(arguments.model, MODELS[arguments.model])
    flops = {"tokenizer": TOKENIZER_WINDOW * size.tokenizer.both, "predictor": SEQUENCE * size.predictor_training}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder) / "s.zarr", model.config.tokenizer.image_size[0])
        sources: dict[str, tuple[str, Callable[[int], Any]]] = {}
        for place, budget in (("memory", 2**34), ("store", 0)):
            loader = WindowLoader(
                store,
                episodes=range(store.num_episodes),
                length=TOKENIZER_WINDOW,
                batch_size=FED,
                features=[CAMERA],
                seed=0,
                memory_budget_bytes=budget,
            )
            sources[f"frames, {place}"] = ("tokenizer", loader.batch)
        for mode in ("memory", "zarr"):
            sampler = LatentEpisodes(
                store,
                model.tokenizer,
                camera=CAMERA,
                episodes=range(store.num_episodes),
                features=["action"],
                mode=mode,
                folder=Path(folder) / "l.zarr",
                console=Console(quiet=True),
            ).sampler(length=SEQUENCE, batch_size=FED, seed=0)
            sources[f"latents, {mode}"] = ("predictor", sampler.batch)
        rates: dict[str, list[float]] = {name: [] for name in sources}
        for number in range(arguments.rounds + 1):
            for name, (_, read) in sources.items():
                began = time.process_time()
                read(number)
                rates[name].append(FED / (time.process_time() - began))
    for name, (stage, _) in sources.items():
        rate = median(rates[name][1:])  # the first fills memory
        figures[f"{name}: windows/s, one thread"] = rate
        figures[f"{name}: TFLOP/s to outrun it"] = rate * flops[stage] / 1e12
    return figures


class _Recorder(TorchDispatchMode):
    """Note every matrix product with the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in (*PRODUCTS, *PRODUCTS_BACK):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def bench_products(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time training steps, and their matrix products replayed on the same tensors, in turns."""
    model = build(arguments.model)
    width = (model.config.tokenizer.num_tokens, model.config.tokenizer.token_width)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "latents": torch.randn(BATCH, TIME, *width, generator=generator),
        "action": torch.randn(BATCH, TIME, ACTION_SIZE, generator=generator),
    }
    with _Recorder() as recorder:
        predictor_loss(model)(batch, step_generator(0, 0))[0].backward()
    steps: list[float] = []
    products: list[float] = []
    for _ in range(arguments.rounds):
        steps.append(timed_fit(model, lambda _: batch, arguments.steps))
        began = time.process_time()
        with torch.no_grad():
            for _ in range(arguments.steps):
                for func, args, kwargs in recorder.calls:
                    func(*args, **kwargs)
        products.append((time.process_time() - began) / arguments.steps)
    share = median(b / a for a, b in zip(steps, products, strict=True))
    return {
        "matrix products per step": len(recorder.calls),
        "ms per step": 1e3 * median(steps),
        "ms of its products alone": 1e3 * median(products),
        "products' share of a step": share,
    }


def bench_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one round of steps of the checkout that is imported."""
    model = build(arguments.model)
    width = (model.config.tokenizer.num_tokens, model.config.tokenizer.token_width)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(64, BATCH, TIME, *width, generator=generator)
    actions = torch.randn(64, BATCH, TIME, ACTION_SIZE, generator=generator)
    batches = [{"latents": latents[index], "action": actions[index]} for index in range(64)]
    timed_fit(model, lambda step: batches[step % 64], 10)
    return {"seconds": timed_fit(model, lambda step: batches[step % 64], arguments.steps)}


def bench_releases(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time steps of two checkouts, in turns, each in a process of its own."""
    roots = {"this": Path(__file__).resolve().parents[1], "other": Path(arguments.other).resolve()}
    seconds: dict[str, list[float]] = {name: [] for name in roots}
    for _ in range(arguments.rounds):
        for name, root in roots.items():
            command = [sys.executable, str(Path(__file__).resolve()), "step", "--steps", str(arguments.steps), "--json"]
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True
            )
            seconds[name].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
    return {
        "ms per step, this": 1e3 * median(seconds["this"]),
        "ms per step, other": 1e3 * median(seconds["other"]),
        "other over this": median(b / a for a, b in zip(seconds["this"], seconds["other"], strict=True)),
    }


def main() -> None:
    """Run one of the benchmarks."""
    benches = {
        "latents": bench_latents,
        "products": bench_products,
        "releases": bench_releases,
        "step": bench_step,
        "loader": bench_loader,
        "feed": bench_feed,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(benches))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=100, help="training steps of each turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--other", default="", help="the other checkout, for releases")
    parser.add_argument("--device", default="cpu", help="where the step of `loader` is computed: cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = benches[arguments.what](arguments)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<44} {value:.4g}")


if __name__ == "__main__":
    main()
