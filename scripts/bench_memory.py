"""What comes to light again: what does a memory of frames from before the window know, and what does it cost?

    embodied-wm collect task=curtain episodes=600 rows=45 out=curtain.zarr
    python scripts/bench_memory.py curtain.zarr --seeds 0 1 2 --picture curtain.png

In `curtain` a curtain that hides half of a table slides to and fro over four boxes that lie still. From held-out
episodes come points at which a box will be whole again within eight steps that was whole before the last three frames,
and of which none of these shows anything. Predictors of the same CPU seconds on one tokenizer imagine those steps with
the recorded actions: with a window of four frames; with the same window and six remembered frames; and with a window of
36, which holds nearly all that was seen. Measured where and when the box is back:

- boxes found: whether of the four boxes' colours, the table's and the curtain's the right one is nearest to what is
  imagined in its middle;
- the box's place, read from imagined latents, in cm;
- PSNR of the 9 x 9 pixels around it, and of the whole frame.

Frames are remembered by several choices: those furthest apart (what the library does), those nearest to the present,
random ones, all of the past, and none.

Expected: that the memory finds most boxes, as the large window does, random frames nearly as many, and nearest ones
few. What came out (102 points, 150 CPU seconds each, mean of three seeds and each; the tokenizer itself shows 98%):

    who imagines                    boxes found         dB around them     128 candidates
    window of 4                     3% (4, 3, 3)        9.4                64 ms
    6 remembered, furthest apart    28% (36, 25, 22)    12.7               73 ms
    6 remembered, at random         25% (33, 23, 19)    12.3               71 ms
    6 remembered, nearest           7% (10, 4, 7)       10.0               71 ms
    all of the past remembered      25% (28, 27, 20)    12.4               82 ms
    none remembered                 0% (0, 0, 1)        9.3                76 ms
    window of 36                    41% (53, 6, 63)     13.4               72 ms

With 500 CPU seconds each (seed 0): 3% (window of 4), 69%, 69%, 18%, 69%, 2% and 70%; 9.2 dB around the boxes without a
memory, 16.0 with it, 16.1 by the large window; 57, 64 and 70 ms. So what is remembered is used, and a few frames that
differ do as well as all.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bench_predictors import (
    CONTEXT,
    HORIZON,
    LENGTH,
    draw_grid,
    figure,
    of_seeds,
    print_table,
    train_predictor,
    with_predictor,
)
from rich.console import Console
from torch import Tensor

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.memory import furthest_apart
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizerConfig, psnr
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import TrainConfig, train_world_model
from embodied_wm.world_model import WorldModel, WorldModelConfig
from sim.tasks.curtain import BOX_M, BOXES, HIDES_M

CAMERA = "observation.images.top"
WINDOW, MEMORY, LONG, SHOWN = 4, 6, 36, 5
WHOLE_M, HIDDEN_M = 1.03 * HIDES_M + BOX_M + 0.005, 1.03 * HIDES_M - BOX_M
"""A box whose middle is that far from the curtain's is whole in the picture, that near it is hidden."""
VIEW_M, AROUND = 0.408, 4
"""Width of the picture at the height of the boxes; pixels to each side of a box's middle."""
COLOURS = {"table": (245, 245, 241), "curtain": (92, 107, 153), "red": (219, 51, 36), "green": (41, 158, 71),
           "yellow": (230, 184, 26), "black": (31, 31, 36)}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Hold one moment of an episode before a box comes back.

    Attributes:
        frames: Of the whole episode, uint8 [T, h, w, 3].
        latents: Of the same, [T, K, D].
        actions: [T, A].
        quantities: By MuJoCo, [T, Q], in metres.
        row: Of the episode, the last frame that is seen.
        box: Index of the box.
        ahead: Steps, from 1, after which it is whole again.
    """

    frames: Tensor
    latents: Tensor
    actions: Tensor
    quantities: np.ndarray
    row: int
    box: int
    ahead: int

    def place(self) -> tuple[int, int]:
        """Return the pixel (row, column) of the box's middle when it is back."""
        x, y = self.quantities[0, 1 + 2 * self.box : 3 + 2 * self.box]
        size = self.frames.shape[1]
        return round(size * (0.5 - y / VIEW_M) - 0.5), round(size * (0.5 + x / VIEW_M) - 0.5)


def points_of(
    data: LatentEpisodes, store: EpisodeStore, episode: int, place: int, rng: np.random.Generator
) -> list[Point]:
    """Return the points of one held-out episode: three at most, each of a box that comes back."""
    stop = int(store.episode_ends[episode])
    start = stop - int(store.episode_lengths[episode])
    quantities, frames = store.read("sim.quantities", start, stop), torch.from_numpy(store.read(CAMERA, start, stop))
    gaps = np.abs(quantities[:, 1::2] - quantities[:, :1])
    rows, found = data.rows_of(place), []
    for row in rng.permutation(np.arange(12, len(gaps) - HORIZON)):
        context, before, after = gaps[row + 1 - CONTEXT : row + 1], gaps[: row + 1 - CONTEXT], gaps[row + 1 :][:HORIZON]
        back = (context < HIDDEN_M).all(0) & (before > WHOLE_M).any(0) & (after > WHOLE_M).any(0)
        for box in np.flatnonzero(back):
            found.append(
                Point(
                    frames=frames,
                    latents=data.latents[rows],
                    actions=data.features["action"][rows],
                    quantities=quantities,
                    row=int(row),
                    box=int(box),
                    ahead=int((after[:, box] > WHOLE_M).argmax()) + 1,
                )
            )
        if len(found) >= 3:
            break
    return found[:3]


Choice = Callable[[Tensor, Tensor], Tensor]


def nearest(past: Tensor, seen: Tensor) -> Tensor:
    """Return the frames of the past that are most like the present one."""
    return (past - seen[-1]).flatten(1).norm(dim=1).argsort()[:MEMORY]


CHOICES: dict[str, Choice] = {
    "furthest apart": lambda past, seen: furthest_apart(past, seen, MEMORY),
    "nearest": nearest,
    "random": lambda past, seen: torch.randperm(len(past), generator=torch.Generator().manual_seed(len(past)))[:MEMORY],
    "all": lambda past, seen: torch.arange(len(past)),
}


def imagine(model: WorldModel, point: Point, actions: Tensor, choice: Choice | None) -> Tensor:
    """Return the latents [S, H, K, D] after actions [S, H, A] from a point."""
    context = CONTEXT if model.config.predictor.window < LONG else LONG - 1
    first = max(0, point.row + 1 - context)
    seen, past = point.latents[first : point.row + 1], point.latents[:first]
    memory = past[choice(past, seen)] if choice and model.config.predictor.memory else None
    with nullcontext() if memory is None else patch.object(model.predictor, "recall", lambda *_: memory[None]):
        known = model.prefill_latents(seen, point.actions[first : point.row], past=memory)
    return model.imagine(known, actions, generator=torch.Generator().manual_seed(point.row))


def measured(model: WorldModel, point: Point, choice: Choice | None) -> tuple[dict[str, float], Tensor]:
    """Return the measures of a point and the picture that is imagined when the box is back."""
    following = point.actions[point.row : point.row + point.ahead][None]
    return judged(model, imagine(model, point, following, choice)[0, -1], point)


@torch.no_grad()
def judged(model: WorldModel, latents: Tensor, point: Point) -> tuple[dict[str, float], Tensor]:
    """Return what latents [K, D] of the moment when the box is back say of it, and their picture."""
    imagined = model.decode(latents)
    true, (row, column) = point.frames[point.row + point.ahead], point.place()
    middle = imagined[row - 1 : row + 2, column - 1 : column + 2].float().mean((0, 1))
    gaps = (middle - torch.tensor(list(COLOURS.values())).float()).norm(dim=1)
    around = tuple(slice(max(0, at - AROUND), at + AROUND + 1) for at in (row, column))
    read = model.readout("sim.quantities")(latents).numpy()
    place = slice(1 + 2 * point.box, 3 + 2 * point.box)
    return {
        "found %": 100.0 * (list(COLOURS)[int(gaps.argmin())] == BOXES[point.box]),
        "place, cm": 100.0 * float(np.linalg.norm(read[place] - point.quantities[0, place])),
        "box dB": float(psnr(imagined[around][None], true[around][None])),
        "frame dB": float(psnr(imagined[None], true[None])),
    }, imagined


def milliseconds(model: WorldModel, point: Point, choice: Choice | None) -> float:
    """Return the processor time of imagining 128 candidates, prefill included; median of 15."""
    actions, times = torch.zeros(128, HORIZON, 1), []
    for _ in range(16):
        began = time.thread_time()
        imagine(model, point, actions, choice)
        times.append(1000 * (time.thread_time() - began))
    return float(np.median(times[1:]))


def config_for(image_size: int) -> WorldModelConfig:
    """Return sizes for the curtain: four tokens a frame."""
    return WorldModelConfig(
        tokenizer=FrameTokenizerConfig(
            image_size=(image_size, image_size),
            channels=(16, 32, 64),
            token_grid=(2, 2),
            cells_per_token=(2, 2),
            rare_weight=5.0,
            bottleneck=BottleneckConfig(width=8),
        ),
        predictor=PredictorConfig(
            transformer=TransformerConfig(width=128, depth=2, num_heads=4, hidden=352),
            window=WINDOW,
            action_token=False,
            clean_pass=False,
        ),
    )


def main() -> None:
    """Train on `curtain`, and measure what each predictor knows of views that come back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("store", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU seconds for each predictor")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the predictors; pictures show the first")
    parser.add_argument("--tokenizer-steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_memory"))
    parser.add_argument("--picture", type=Path, default=None, help="PNG of what is imagined")
    options, console = parser.parse_args(), Console(width=200)
    torch.set_num_threads(1)
    store = EpisodeStore.open(options.store)
    stage = StageConfig(num_steps=options.tokenizer_steps, batch_size=24, learning_rate=2e-3, num_threads=1)
    base = train_world_model(
        store,
        config_for(store.features[CAMERA].shape[0]),
        TrainConfig(tokenizer=stage, camera=CAMERA),
        options.out,
        seed=0,
        stages=("tokenizer", "readouts"),
        console=console,
    )
    train, held_out = split_episodes(store.num_episodes)
    data, unseen = (
        LatentEpisodes(
            store,
            base.tokenizer,
            camera=CAMERA,
            episodes=part.tolist(),
            features=["action"],
        )
        for part in (train, held_out)
    )
    rng = np.random.default_rng(0)
    points = [
        point
        for place, episode in enumerate(held_out.tolist())
        for point in points_of(unseen, store, episode, place, rng)
    ]
    console.print(f"{len(points)} boxes come back in {len(held_out)} held-out episodes")
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    pictures: dict[str, list[Tensor]] = {}

    def note(name: str, found: list[tuple[dict[str, float], Tensor]], **extra: float) -> None:
        keys = found[0][0]
        row = {key: np.array([each[key] for each, _ in found]) for key in keys}
        rows.setdefault(name, []).append(row | {key: np.array([value]) for key, value in extra.items()})
        pictures.setdefault(name, [picture for _, picture in found])

    seen = [judged(base, point.latents[point.row + point.ahead], point) for point in points]
    note("encoded and decoded", seen)
    for seed in options.seeds:
        for name, window, memory, choices in (
            (f"window of {WINDOW}", WINDOW, 0, {"": None}),
            (f"window of {WINDOW}, {MEMORY} remembered", WINDOW, MEMORY, CHOICES | {"none": None}),
            (f"window of {LONG}", LONG, 0, {"": None}),
        ):
            model = with_predictor(base, seed, window=window, memory=memory)
            train_predictor(model, data, options.seconds, seed, console, length=40 if window == LONG else LENGTH)
            model.save(options.out / f"{window}_{memory}_{seed}")
            for how, choice in choices.items():
                found = [measured(model, point, choice) for point in points]
                spent = milliseconds(model, points[0], choice)
                note(f"{name}{': ' * bool(how)}{how}", found, **{"ms for 128": spent})
    table = {
        name: {
            key: of_seeds([row[key] for row in each]) if len(each) > 1 else figure(each[0][key].tolist())
            for key in each[0]
        }
        for name, each in rows.items()
    }
    print_table(console, f"{options.store.name}: boxes that come back; (each seed)", table)
    if options.picture:
        remembers = f"window of {WINDOW}, {MEMORY} remembered: furthest apart"
        shown = np.linspace(0, len(points) - 1, min(SHOWN, len(points))).round().astype(int)  # of many episodes
        columns = [
            ("last seen", [points[place].frames[points[place].row] for place in shown]),
            ("what came", [points[place].frames[points[place].row + points[place].ahead] for place in shown]),
        ]
        for name in ("encoded and decoded", f"window of {WINDOW}", remembers, f"window of {LONG}"):
            columns.append((name.replace(": ", ":\n"), [pictures[name][place] for place in shown]))
        draw_grid(options.picture, columns)


if __name__ == "__main__":
    main()
