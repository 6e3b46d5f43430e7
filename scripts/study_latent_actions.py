"""What do latent actions carry, and do they hold up across robots?

    python scripts/study_latent_actions.py figures --model RUN --store push.zarr --out DIR
    python scripts/study_latent_actions.py robots --stores reach.zarr push.zarr cr5.zarr --out DIR

`figures`: PROTOCOL section 4 for a trained model, and a picture of the same codes in different scenes. `robots`: one
tokenizer and one codebook on several robots, an adapter each; R2 of each robot's true actions from the shared codebook
beside a codebook of its own on the same latents. Every part keeps what it has in its folder, and goes on from there
when it is called again. Sizes of codes and ways to train them: `study_latent_codes.py`; few labels:
`study_latent_transfer.py`.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from embodied_wm.cli import compose_config, instantiate_config
from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.latent_actions import measure_latent_actions, probe_r2, same_codes
from embodied_wm.family import Family
from embodied_wm.training.observer import arrange
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.training.train import TrainConfig
from embodied_wm.world_model import WorldModel, WorldModelConfig

CONSOLE = Console(width=140)
PROBED_EPISODES = 60
"""Training episodes that a probe is fitted on, as in `embodied-wm benchmark latent_actions`."""


def settings(options: argparse.Namespace, **steps: int) -> tuple[WorldModelConfig, TrainConfig]:
    """Return the configurations of the model and the training, with other numbers of steps for some stages."""
    overrides = {f"trainer.{stage}.num_steps": str(number) for stage, number in steps.items()}
    overrides |= {"data.path": "none", "trainer.watch.trackers": "[]"}
    overrides |= dict(text.split("=", 1) for text in options.set)
    composed, _ = compose_config("train", overrides)
    config = instantiate_config(composed)
    return config["model"], config["trainer"]


def kept[Value](path: Path, make: Callable[[], Value]) -> Value:
    """Return what a JSON file holds; make it first where it is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        value = make()
        path.with_suffix(".part").write_text(json.dumps(value, indent=1))
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text())


def shown(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Return a figure with its interval."""
    low, high = figure["ci95"] or (float("nan"),) * 2
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def adapter_r2(model: WorldModel, store: EpisodeStore, held_out: list[int], *, seed: int) -> dict[str, Any]:
    """Measure how well the model's own adapter reads real actions from codes, on held-out episodes."""
    residual, total = [], []
    for episode in held_out:
        rows = store.episode(episode).features
        true = np.asarray(rows["action"], dtype=np.float64)[:-1]
        inferred = model.infer_actions(torch.from_numpy(rows[model.embodiment.camera])).numpy()
        residual.append(np.square(inferred - true).sum(0))
        total.append(np.square(true - model.actions.mean.numpy()).sum(0))
    residuals, totals = np.stack(residual), np.stack(total)
    moving = totals.sum(0) > 1e-9
    draws = np.random.default_rng(seed).integers(len(held_out), size=(1000, len(held_out)))

    def r2(chosen: np.ndarray) -> float:
        left, all_of_it = residuals[chosen][:, moving].sum(0), totals[chosen][:, moving].sum(0)
        return float((1 - left / np.maximum(all_of_it, 1e-9)).mean())

    ends = np.quantile([r2(draw) for draw in draws], [0.025, 0.975])
    return {"value": r2(np.arange(len(held_out))), "ci95": [float(end) for end in ends], "n": len(held_out)}


def read_actions(model: WorldModel, store: EpisodeStore, *, seed: int) -> dict[str, Any]:
    """Return R2 by the benchmark's linear probe and by the model's own adapter."""
    train, held_out = (part.tolist() for part in split_episodes(store.num_episodes))
    return {
        "r2": probe_r2(model, store, train[:PROBED_EPISODES], held_out, seed=seed),
        "adapter": adapter_r2(model, store, held_out, seed=seed),
    }


def remembered(encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what encodes the same frames once only."""
    known: dict[bytes, Tensor] = {}

    def encode_once(frames: Tensor, felt: Tensor | None = None) -> Tensor:
        key = hashlib.blake2b(frames.numpy().tobytes(), digest_size=16).digest()
        if key not in known:
            known[key] = encode(frames, felt)
        return known[key]

    return encode_once


def figures(options: argparse.Namespace) -> None:
    """Print PROTOCOL section 4 of a trained model, and draw the same codes in different scenes."""
    model, store = WorldModel.from_pretrained(options.model), EpisodeStore.open(options.store)
    model.encode = remembered(model.encode)  # pyright: ignore[reportAttributeAccessIssue]
    train, held_out = (part.tolist() for part in split_episodes(store.num_episodes))

    def measure() -> dict[str, Any]:
        found = measure_latent_actions(
            model, store, train=train[:PROBED_EPISODES], held_out=held_out, context=3, seed=options.seed
        )
        return found | {"adapter_r2": adapter_r2(model, store, held_out, seed=options.seed)}

    rows = [[key, shown(value, 4)] for key, value in kept(options.out / "figures.json", measure).items()]
    print_table(f"latent actions of {model.embodiment.robot}", ["figure", "value"], rows)
    scenes, after = same_codes(model, store, held_out, context=3, seed=options.seed)
    grid = arrange(torch.cat([scenes[:, None], after], dim=1).numpy())
    Image.fromarray(grid).resize((grid.shape[1] * 2, grid.shape[0] * 2), Image.Resampling.NEAREST).save(
        options.out / "same_codes.png"
    )
    CONSOLE.print(f"wrote {options.out / 'same_codes.png'}: scenes now, then each code four times in a row")


def with_fresh_codes(model: WorldModel, seed: int) -> WorldModel:
    """Return an untrained model around a trained one's tokenizer."""
    torch.manual_seed(seed)
    fresh = WorldModel(model.config, model.embodiment)
    fresh.tokenizer.load_state_dict(model.tokenizer.state_dict())
    return fresh


def alone(
    model: WorldModel, name: str, store: EpisodeStore, trainer: TrainConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """Train a codebook and an adapter on one robot's store, around the shared tokenizer, and read actions from it."""
    family = train_together(
        {name: RobotStore(store=store)},
        model.config,
        replace(trainer, latent_actions=replace(trainer.latent_actions, num_steps=options.steps)),
        options.out / name / "own",
        seed=options.seed,
        stages=("latent_actions", "adapter"),
        start_from=Family({name: with_fresh_codes(model, options.seed)}),
        console=CONSOLE,
    )
    return read_actions(family.for_robot(name), store, seed=options.seed)


def robots(options: argparse.Namespace) -> None:
    """Train one codebook on all stores, and one for each alone on the same latents; print R2 of each robot."""
    model, trainer = settings(options, latent_actions=options.steps * len(options.stores))
    stores = {Path(path).stem: EpisodeStore.open(path) for path in options.stores}
    stages = ("tokenizer", "latent_actions", "adapter")
    family = train_together(
        {name: RobotStore(store=store) for name, store in stores.items()},
        model,
        trainer,
        options.out / "shared",
        seed=options.seed,
        stages=stages,
        console=CONSOLE,
    )
    rows = []
    for name, store in stores.items():
        folder = options.out / name
        together = kept(folder / "shared.json", partial(read_actions, family.for_robot(name), store, seed=options.seed))

        own = kept(folder / "own.json", partial(alone, family.for_robot(name), name, store, trainer, options))
        size = str(store.features["action"].shape[0])
        rows.append([name, size, *(shown(each[key]) for key in ("r2", "adapter") for each in (together, own))])
    columns = ["robot", "action size", "linear probe, shared", "own", "adapter, shared codebook", "own codebook"]
    print_table("R2 of true actions, held-out episodes", columns, rows)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parts = parser.add_subparsers(required=True)
    for name, run in {"robots": robots, "figures": figures}.items():
        part = parts.add_parser(name, help=run.__doc__)
        part.set_defaults(run=run)
        part.add_argument("--out", type=Path, required=True, help="folder of what this part makes")
        part.add_argument("--seed", type=int, default=0)
        if name == "robots":
            part.add_argument("--stores", nargs="+", required=True, help="episode stores, one for each robot")
            part.add_argument("--steps", type=int, default=1500, help="steps of a codebook, for each robot")
            part.add_argument("--set", nargs="*", default=[], help="options of `embodied-wm train`, such as model=nano")
        else:
            part.add_argument("--model", type=Path, required=True, help="run or model folder")
            part.add_argument("--store", required=True, help="the store it was trained on")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    sys.exit(main())
