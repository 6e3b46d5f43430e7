"""Which tokenizer? Bottlenecks x tokens x further terms, each trained for the same CPU time; one table.

    embodied-wm collect task=push out=push.zarr
    python scripts/study_tokenizer.py push.zarr --out study
    python scripts/study_tokenizer.py push_t.zarr --task push_t --out study_t --variants keypoints-32 turning-32

Every variant encodes a 64x64 frame into 64 numbers (1 token of 64, 4 of 16, 16 of 4; 32 key points; 16 key points are
32 numbers), by the convolutions of `model=nano`; "turning" are key points with `turning_weight` 0.2. "+" trains with
the terms of `embodied_wm/tokenizer/plannable.py` (predictability 0.1, inverse dynamics 0.02).
Variants that are done are kept in `--out` and not trained again. Columns:

- `frame`, `objects`, `pusher`: PSNR in dB of decoded held-out frames (without blending), over all pixels, over those
  where MuJoCo's segmentation shows pusher or box, and over the pusher's alone; each area grown by one pixel.
- `pusher`, `box` (or T), `yaw`: what a readout reads from latents of held-out episodes, mean distance to the
  truth.
- `foretold`: what a fresh small network, given the action, foretells of the latents' change in one step, 1 is all.
- with `--predictor`: a nano predictor trained for the same CPU time on the frozen latents; `spearman` is the rank
  correlation of imagined with physical cost, `8 steps` the box's error after 8 imagined steps, `solved` the success of
  planning.

Expected before: key points read best; the further terms read the pusher better and cost some dB; KL is about as good as
SIGReg, FSQ a little worse and LFQ, with one bit a channel, worst; more tokens decode better and are foretold worse.
It came out so on `push` (60 CPU seconds each, 90 for predictors, readouts without a line; RESULTS.md has the table):
pusher and box are read to 0.31 and 0.23 cm from turning key points, to 2.84 and 1.64 by SIGReg, 3.35 and 1.80 by KL,
4.81 and 2.03 by FSQ, and 5.70 and 2.60 by LFQ with four tokens, costs are ranked at 0.82 by key points and not at all
by the others, and 0.97 of 30 goals are solved, by the others 0.00 to 0.07. The further terms read the pusher better
from four tokens (2.28 cm), for 1.6 dB, and worse from key points (0.46 cm).
"""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_objectives import measured
from rich.console import Console
from torch import Tensor, nn

from embodied_wm.checkpoint import read_tensors, write_json, write_tensors
from embodied_wm.data.loader import WindowLoader, split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.branches import BranchConfig
from embodied_wm.evaluation.imagination import judge_imagination
from embodied_wm.evaluation.judged import JudgedWorldModel
from embodied_wm.evaluation.tokenizers import area_quality, fit_reading, foretold, train_for
from embodied_wm.heads import Readout
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from embodied_wm.tokenizer.plannable import Labels, PlannableConfig, PlannableTerms
from embodied_wm.training.embodiment import choose_camera, describe_embodiment
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.losses import predictor_loss
from embodied_wm.world_model import WorldModel, WorldModelConfig
from planners.cem import CEM
from planners.objectives import StepWeights
from sim.segments import body_masks
from sim.tasks import get_task

NUMBERS = 64
BOTTLENECKS = {
    "continuous": BottleneckConfig(width=NUMBERS),
    "kl": BottleneckConfig(kind="kl", width=NUMBERS, weight=1e-4),
    "fsq": BottleneckConfig(kind="fsq", width=NUMBERS, levels=(8, 5, 5, 5), codebooks=NUMBERS // 4),
    "lfq": BottleneckConfig(kind="lfq", width=NUMBERS, codebooks=NUMBERS // 4),
}
GRIDS = {1: (1, 1), 4: (2, 2), 16: (4, 4)}
TURNING = {"keypoints": 0.0, "turning": 0.2}
"""Kinds of key points to their `turning_weight`."""
TERMS = PlannableConfig(predictability_weight=0.1, inverse_weight=0.02)
BATCH, STATISTICS_BATCHES = 8, 120
PROBE_EPISODES, HELD_OUT_EPISODES, FRAMES_APART, PROBE_STEPS = 100, 40, 5, 600
JUDGED = BranchConfig(num_branch_points=24, num_candidates=24, horizon=8)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Name one tokenizer of the study."""

    kind: str
    tokens: int
    further: bool

    @property
    def name(self) -> str:
        """Return the name that options and files use."""
        return f"{self.kind}-{self.tokens}{'+' if self.further else ''}"

    @property
    def config(self) -> FrameTokenizerConfig:
        """Return the tokenizer's configuration."""
        if self.kind in TURNING:
            places = BottleneckConfig(width=2 * self.tokens, weight=0.0)
            weight = TURNING[self.kind]
            return FrameTokenizerConfig(
                channels=(16, 32), keypoints=self.tokens, bottleneck=places, turning_weight=weight
            )
        whole = BOTTLENECKS[self.kind]
        bottleneck = replace(whole, width=whole.width // self.tokens, codebooks=max(1, whole.codebooks // self.tokens))
        return FrameTokenizerConfig(token_grid=GRIDS[self.tokens], bottleneck=bottleneck)


VARIANTS = {
    variant.name: variant
    for kind, counts in [*((kind, tuple(GRIDS)) for kind in BOTTLENECKS), *((kind, (16, 32)) for kind in TURNING)]
    for tokens in counts
    for further in (False, True)
    for variant in [Variant(kind=kind, tokens=tokens, further=further)]
}


class Data:
    """Hold what all variants are trained and measured on."""

    def __init__(self, store: EpisodeStore, task: str) -> None:
        self.store, self.task = store, get_task(task)
        self.camera = choose_camera(store, "")
        train, held_out = (part.tolist() for part in split_episodes(store.num_episodes))
        self.held_out = held_out[:HELD_OUT_EPISODES]
        self.loader = WindowLoader(
            store, episodes=train, length=3, batch_size=BATCH, features=[self.camera, "action"], seed=0
        )
        self.probed = train[:PROBE_EPISODES]
        rows = np.concatenate([self.rows_of(episode)[::FRAMES_APART] for episode in self.held_out])
        self.frames = torch.from_numpy(np.concatenate([store.read(self.camera, row, row + 1) for row in rows]))
        physics = np.concatenate([store.read("sim.physics", row, row + 1) for row in rows])
        height, width = self.frames.shape[1:3]
        shown = body_masks(self.task, physics, height, width, self.camera.removeprefix("observation.images."))
        grown = {body: _grown(torch.from_numpy(mask)) for body, mask in shown.items()}
        either = torch.stack(list(grown.values())).any(0)
        self.areas = {"frame": torch.ones_like(either), "objects": either, "pusher": grown["pusher"]}
        self.embodiment = describe_embodiment(store, self.camera)

    def rows_of(self, episode: int) -> np.ndarray:
        """Return the rows of an episode."""
        stop = int(self.store.episode_ends[episode])
        return np.arange(stop - int(self.store.episode_lengths[episode]), stop)

    def latents(self, tokenizer: FrameTokenizer, episodes: Sequence[int]) -> LatentEpisodes:
        """Encode some episodes."""
        features = ["action", "sim.quantities"]
        return LatentEpisodes(self.store, tokenizer, camera=self.camera, episodes=episodes, features=features)


def _grown(masks_NHW: Tensor) -> Tensor:
    """Grow each area by a pixel, so that its edges count."""
    return nn.functional.max_pool2d(masks_NHW[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def train_tokenizer(variant: Variant, data: Data, seconds: float, seed: int) -> tuple[FrameTokenizer, int]:
    """Train one variant; return it and the steps that the time allowed."""
    torch.manual_seed(seed)
    tokenizer = FrameTokenizer(variant.config)
    rows, columns = variant.config.cell_grid
    size = rows * columns * variant.config.bottleneck.width
    terms = PlannableTerms(TERMS, latent_size=size, action_size=2) if variant.further else None
    start = torch.cat(
        [torch.from_numpy(data.loader.batch(number)[data.camera][:, 0]) for number in range(STATISTICS_BATCHES)]
    )
    tokenizer.fit_background(start)

    def loss_of(step: int) -> Tensor:
        batch = {name: torch.from_numpy(values) for name, values in data.loader.batch(step).items()}
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        scaled = batch["action"] / 0.5  # actions lie in [-1, 1]
        known = Labels(scaled, torch.ones(len(scaled), dtype=torch.bool))
        further = None if terms is None else partial(terms, labels=known)
        return tokenizer.loss(batch[data.camera], generator, further)[0]

    steps = train_for(seconds, [tokenizer] if terms is None else [tokenizer, terms], loss_of, rate=2e-3)
    tokenizer.fit_statistics(start)
    return tokenizer, steps


def errors_of(readout: Readout, test: LatentEpisodes) -> dict[str, float]:
    """Return how far what is read lies from the truth, on average: places in metres, the yaw in radians."""
    with torch.no_grad():
        found, truth = readout(test.latents), test.features["sim.quantities"]
    off = found - truth
    turn = torch.atan2(found[:, 5], found[:, 4]) - torch.atan2(truth[:, 5], truth[:, 4])
    turn = (turn + math.pi) % (2 * math.pi) - math.pi
    errors = {"pusher_m": off[:, :2].norm(dim=1), "box_m": off[:, 2:4].norm(dim=1), "yaw_rad": turn.abs()}
    return {name: float(error.mean()) for name, error in errors.items()}


def judge_predictor(
    tokenizer: FrameTokenizer,
    latents: LatentEpisodes,
    readout: Readout,
    data: Data,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train a nano predictor on frozen latents; return how it imagines what a planner compares, and how it plans."""
    torch.manual_seed(0)
    kept = {"sim.quantities": data.embodiment.readouts["sim.quantities"]}
    config = WorldModelConfig(
        tokenizer=tokenizer.config, predictor=PredictorConfig(action_token=False, clean_pass=False)
    )
    model = WorldModel(config, replace(data.embodiment, readouts=kept))
    model.tokenizer.load_state_dict(tokenizer.state_dict())
    model.readout("sim.quantities").load_state_dict(readout.state_dict())
    model.actions.std.fill_(0.5)
    sampler = latents.sampler(length=10, batch_size=2 * BATCH, seed=0)
    model.predictor.fit_change(torch.cat([sampler.batch(number)["latents"] for number in range(16)]))

    loss = predictor_loss(model, 0.0)

    def loss_of(step: int) -> Tensor:
        batch = sampler.batch(step) | {"labelled": torch.ones(2 * BATCH, dtype=torch.bool)}
        return loss(batch, torch.Generator().manual_seed(step))[0]

    steps = train_for(options.predictor_seconds, [model.predictor], loss_of, rate=2e-3)
    weights = StepWeights()
    judged = JudgedWorldModel(model.eval(), data.task, objective="state", weights=weights)
    planner = CEM(horizon=8, num_candidates=64, num_iterations=3)
    found = judge_imagination(data.task, judged, planner, JUDGED, weights=weights, seed=0).measures
    ends = found["spearman"]["ci95"] or [math.nan, math.nan]
    at = {name: found[f"state_error.{name}"]["by_horizon"]["8"]["value"] for name in data.task.quantity_names[2:4]}
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted call had planned with other weights
    model.save(folder / "model")
    pairs = (f"planning.num_pairs={options.pairs}", "planning.controllers=[model]")
    planned = measured("planning", data.task.name, "state", folder, *pairs)
    return {
        "predictor_steps": steps,
        "spearman": found["spearman"]["value"],
        "spearman_ci95": ends,
        "box_8_m": math.hypot(*at.values()),
        "solved": planned["success"],
    }


def study(variant: Variant, data: Data, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured of a variant; do what is not done yet."""
    path, weights = out / f"{variant.name}.json", out / f"{variant.name}.safetensors"
    settings = {"cpu_s": options.cpu_seconds, "seed": options.seed, "store": data.store.fingerprint()}
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    how = {"predictor_cpu_s": options.predictor_seconds, "pairs": options.pairs}
    wants_predictor = variant.name in options.predictor and any(found.get(key) != how[key] for key in how)
    if found and found["settings"] != settings:
        raise ValueError(f"{path} was made with {found['settings']}, not {settings}; choose another --out")
    if found and not wants_predictor:
        return found
    tokenizer = FrameTokenizer(variant.config).eval()
    if found:
        tokenizer.load_state_dict(read_tensors(weights))
    else:
        tokenizer, steps = train_tokenizer(variant, data, options.cpu_seconds, options.seed)
        write_tensors(weights, tokenizer.state_dict())
        quality = area_quality(tokenizer, data.frames, data.areas)
        found = {"settings": settings, "steps": steps} | {f"psnr_{name}": value for name, value in quality.items()}
    parts = data.latents(tokenizer, data.probed), data.latents(tokenizer, data.held_out)
    readout = fit_reading(parts[0], "sim.quantities", data.task.quantity_names, num_steps=PROBE_STEPS)
    if "foretold" not in found:
        found |= errors_of(readout, parts[1]) | {"foretold": foretold(*parts, num_steps=PROBE_STEPS)}
    if wants_predictor:
        found |= how | judge_predictor(tokenizer, parts[0], readout, data, out / f"{variant.name}_planned", options)
    write_json(path, found)
    return found


COLUMNS: dict[str, tuple[str, float, str]] = {
    "steps": ("steps", 1, ".0f"),
    "frame": ("psnr_frame", 1, ".1f"),
    "objects": ("psnr_objects", 1, ".1f"),
    "pusher": ("psnr_pusher", 1, ".1f"),
    "pusher cm": ("pusher_m", 100, ".2f"),
    "box cm": ("box_m", 100, ".2f"),
    "yaw rad": ("yaw_rad", 1, ".2f"),
    "foretold": ("foretold", 1, ".2f"),
    "8 steps cm": ("box_8_m", 100, ".1f"),
    "spearman": ("spearman", 1, ".2f"),
}


def row_of(name: str, found: dict[str, Any]) -> str:
    """Return a variant's row of the table."""
    cells = [format(found[key] * unit, style) if key in found else "" for key, unit, style in COLUMNS.values()]
    if "spearman_ci95" in found:
        cells[-1] += " [{:.2f}, {:.2f}]".format(*found["spearman_ci95"])
    row = f"{name:<14}" + " ".join(f"{cell:>{len(column)}}" for cell, column in zip(cells, COLUMNS, strict=True))
    return f"{row}  {found.get('solved', '')}"


def main() -> None:
    """Train, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("store", type=Path, help="store of the task")
    parser.add_argument("--task", default="push", choices=["push", "push_t"], help="a pusher and one thing")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is done")
    parser.add_argument("--cpu-seconds", type=float, default=30.0, help="CPU time of each tokenizer's training")
    parser.add_argument("--predictor-seconds", type=float, default=90.0, help="CPU time of each predictor's training")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--predictor", nargs="*", default=[], choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--pairs", type=int, default=30, help="goals that those with a predictor plan for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    data, console = Data(EpisodeStore.open(options.store), options.task), Console(width=140, highlight=False)
    rows = []
    for name in options.variants:
        rows.append(row_of(name, study(VARIANTS[name], data, options.out, options)))
        console.print(rows[-1], markup=False)
    console.print(f"\n{'variant':<14}" + " ".join([*COLUMNS, " solved"]))
    console.print("\n".join(rows), markup=False)


if __name__ == "__main__":
    main()
