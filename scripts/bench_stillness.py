"""What `model.predictor.stillness` does to imagined videos of a recorded robot, by how the robot moves.

    python scripts/bench_stillness.py RUN episodes.zarr [--stillness 0 0.1 0.2 0.3]

A frame whose imagined change is smaller than so many usual changes is the frame before. That keeps what rests at rest,
and may stop what moves slowly, or starts slowly. So windows of held-out episodes (four frames seen, eight imagined)
are told apart by their true latents' change from frame to frame (root mean square, in usual changes): "rests" (under
0.15 in what is seen, under 0.2 later), "starts" (under 0.15 in what is seen, and 0.7 away at the end), "stops" (over
0.4 in what is seen, under 0.15 in the last four frames), "slow" (0.15 to 0.4 on average, never over 0.6), "moves" (over
0.6 on average), "other". Printed: PSNR over copying the last frame seen, after 1, 4 and 8 frames.

The model of `cr5_banana_v30` at 128x96 (RESULTS.md has the recipe; trained with 0.3, which counts in self-forcing):

    | windows     | stillness 0       | 0.1               | 0.2              | 0.3              |
    |-------------|-------------------|-------------------|------------------|------------------|
    | all, 435    | +1.7, +0.2, +0.4  | +1.7, +0.3, +0.5  | +1.8, +1.2, +1.5 | +1.9, +1.5, +1.8 |
    | rests, 19   | -0.6, -9.0, -13.8 | -0.6, -8.6, -12.8 | 0.0, 0.0, 0.0    | 0.0, 0.0, 0.0    |
    | starts, 32  | -0.6, -3.6, 0.0   | -0.6, -3.1, 0.0   | -0.2, -0.7, +1.0 | -0.1, 0.0, +1.2  |
    | stops, 14   | +0.4, -2.2, -5.0  | +0.4, -2.1, -4.5  | +0.3, -2.2, -3.4 | +0.6, +0.7, 0.0  |
    | slow, 31    | -0.1, -2.8, -3.6  | -0.1, -2.8, -3.5  | 0.0, -1.4, -1.9  | +0.2, -0.3, -0.9 |
    | moves, 252  | +2.8, +2.6, +2.8  | +2.8, +2.6, +2.8  | +2.8, +2.6, +2.8 | +2.8, +2.6, +2.8 |
    | other, 87   | +0.8, -1.7, -0.9  | +0.8, -1.7, -0.7  | +0.8, -0.6, +0.2 | +1.0, 0.0, +0.9  |

A model trained with 0, whose rollouts crept, gave the same picture: 0.9 dB for all after 8 frames with 0, 1.9 with 0.3.
Expected was that motion which starts slowly is lost. In these windows it is not: a robot at rest whose frames crept was
a worse start than one whose first frame of motion is missed.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.tokenizer.frames import psnr
from embodied_wm.world_model import WorldModel

CONTEXT, HORIZON, EVERY = 4, 8, 4
SHOWN = (1, 4, 8)
KINDS = ("rests", "starts", "stops", "slow", "moves", "other")


@dataclass(frozen=True)
class Window:
    """Hold a window of a held-out episode.

    Attributes:
        kind: One of KINDS.
        latents: Of the frames that are seen, [C, K, D].
        actions: [C + H - 1, A].
        frames: The last frame seen, and the H frames after it, uint8 [1 + H, h, w, 3].
    """

    kind: str
    latents: Tensor
    actions: Tensor
    frames: Tensor


def kind_of(latents: Tensor, usual: Tensor) -> str:
    """Tell how a window [C + H, K, D] moves."""
    change = latents.diff(dim=0).square().mean((1, 2)).sqrt() / usual
    seen, later = change[: CONTEXT - 1], change[CONTEXT - 1 :]
    away = (latents[-1] - latents[CONTEXT - 1]).square().mean().sqrt() / usual
    tests = {
        "rests": seen.max() < 0.15 and later.max() < 0.2,
        "starts": seen.max() < 0.15 and away > 0.7,
        "stops": seen.max() > 0.4 and later[-4:].max() < 0.15,
        "slow": 0.15 < later.mean() < 0.4 and later.max() < 0.6,
        "moves": later.mean() > 0.6,
    }
    return next((kind for kind, holds in tests.items() if holds), "other")


@torch.no_grad()
def windows(model: WorldModel, store: EpisodeStore) -> Iterator[Window]:
    """Yield every EVERY-th window of the held-out episodes."""
    for episode in split_episodes(store.num_episodes)[1]:
        stop = int(store.episode_ends[episode])
        start = stop - int(store.episode_lengths[episode])
        frames = torch.from_numpy(store.read(model.embodiment.camera, start, stop))
        actions = torch.from_numpy(store.read("action", start, stop))
        latents = model.encode(frames)
        for first in range(0, len(frames) - CONTEXT - HORIZON + 1, EVERY):
            last, end = first + CONTEXT - 1, first + CONTEXT + HORIZON
            yield Window(
                kind=kind_of(latents[first:end], model.predictor.change_std),
                latents=latents[first : last + 1],
                actions=actions[first : end - 1],
                frames=frames[last:end],
            )


@torch.no_grad()
def gain(model: WorldModel, window: Window, seed: int) -> Tensor:
    """Return the PSNR of imagined frames less that of the last frame seen, at each of SHOWN."""
    known = model.prefill_latents(window.latents, window.actions[: CONTEXT - 1])
    generator = torch.Generator().manual_seed(seed)
    imagined = model.imagine(known, window.actions[None, CONTEXT - 1 :], generator=generator)[0]
    at = torch.tensor(SHOWN)
    seen, true = window.frames[0], window.frames[at]
    return psnr(model.decode(imagined[at - 1], seen), true) - psnr(seen.expand_as(true), true)


def main() -> None:
    """Print a row for each kind of motion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run or model that wants no proprioception")
    parser.add_argument("store", help="its episodes; the last tenth was held out")
    parser.add_argument("--stillness", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, console = WorldModel.from_pretrained(options.run), Console(width=140)
    found = list(windows(model, EpisodeStore.open(options.store)))
    gains: dict[float, Tensor] = {}
    for stillness in options.stillness:
        model.predictor.config = replace(model.predictor.config, stillness=stillness)
        gains[stillness] = torch.stack([gain(model, window, seed) for seed, window in enumerate(found)])
    table = Table("windows", "number", *(f"stillness {stillness:g}" for stillness in gains))
    for kind in ("all", *KINDS):
        chosen = torch.tensor([kind in ("all", window.kind) for window in found])
        if chosen.any():
            means = (rows[chosen].mean(0).tolist() for rows in gains.values())
            table.add_row(kind, str(int(chosen.sum())), *(", ".join(f"{value:+.1f}" for value in row) for row in means))
    console.print(table)


if __name__ == "__main__":
    main()
