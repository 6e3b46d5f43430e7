"""Flow, regression and masked codes where a hidden coin decides: which of them imagines what can really happen?

    embodied-wm collect task=fork episodes=400 rows=30 out=fork.zarr
    python scripts/bench_stochastic.py fork.zarr --picture fork.png --seeds 0 1 2

Trains a tokenizer of FSQ codes on `fork`, and on it each predictor with the same network, data and CPU seconds. Each
imagines the puck's way over the hidden plank 32 times; the places read from those samples are compared with both true
outcomes, which MuJoCo plays from the same state with the coin either way. Where nothing is left to chance:
`bench_predictors.py`. (At a rate of 2e-3 the tokenizer collapsed: one code for all frames, which every predictor
foretells without error. So the rate is 7e-4, and codes that do not tell where the puck is are refused.)

Expected: regression imagines the mean, flow and masked codes find either side. What came out (50 CPU seconds each,
three seeds, energy score of places, 3.5 cm at best, 7.0 for the mean): regression 8.3 cm (8.0, 8.8, 8.0), flow 5.6 in
one step (5.3, 5.6, 6.1) and 5.5 in four, masked codes 4.3 (4.3, 4.2, 4.5); outcomes covered 17, 28, 31 and 78%.
One step distilled of four, in the last third of its time (`--kinds flow distilled`, beside other jobs): 5.8 cm [5.6,
6.1] (5.5, 5.5, 6.4), as its teacher (5.7, 5.5, 6.1), flow with shortcuts 5.9 [5.7, 6.1] (5.3, 5.9, 6.5); outcomes
covered 30, 28 and 18%.
RESULTS.md has the table and the picture.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bench_predictors
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizerConfig, psnr
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.train import TrainConfig, train_world_model
from embodied_wm.world_model import WorldModel, WorldModelConfig
from sim import get_task
from sim.branch import branch
from sim.tasks.base import Task, state_from_positions
from sim.tasks.fork import AIM_M, START_M, TILT_RAD, with_coin

CONTEXT, HORIZON = bench_predictors.CONTEXT, bench_predictors.HORIZON
NUM_SAMPLES, NEAR_M, SHARE = 32, 0.02, 0.1
KINDS = ("regression", "flow", bench_predictors.DISTILLED, "masked")


@dataclass(frozen=True)
class Branching:
    """Hold one state before the plank, and what follows by either side of the coin.

    Attributes:
        frames: Context, uint8 [C, h, w, 3].
        actions: [C - 1 + H, A], those that led through the context and those that follow.
        outcomes: Both ends, uint8 [2, h, w, 3].
        places: The puck at both ends, [2, 2] in metres.
    """

    frames: Tensor
    actions: Tensor
    outcomes: Tensor
    places: np.ndarray


def branchings(task: Task, number: int, image_size: int, seed: int) -> list[Branching]:
    """Drive at the plate from all four sides; the last context frame is just before the plank."""
    renderer, found = task.renderer(image_size, image_size), []
    for index in range(number):
        rng = np.random.default_rng([seed, index])
        quarter = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), index % 4)
        place, heading = quarter @ [rng.uniform(-AIM_M, AIM_M), -START_M], quarter @ [0.0, 1.0]
        state = state_from_positions(task.model, np.array([TILT_RAD, *place]))
        actions = np.tile(heading * rng.uniform(0.9, 1.0), (2, CONTEXT - 1 + HORIZON, 1)).astype(np.float32)
        start = np.stack([with_coin(state, coin) for coin in (True, False)])
        result = branch(task, start, actions)
        assert not result.contacts[:, : CONTEXT - 1].any()
        seen = np.concatenate([start[:1], result.states[0, : CONTEXT - 1]])
        found.append(
            Branching(
                frames=torch.from_numpy(renderer.render_states(seen)),
                actions=torch.from_numpy(actions[0]),
                outcomes=torch.from_numpy(renderer.render_states(result.states[:, -1])),
                places=result.quantities[:, -1],
            )
        )
    renderer.close()
    return found


def energy_score(samples: np.ndarray, outcome: np.ndarray) -> float:
    """Return the energy score (Gneiting and Raftery 2007) of samples [N, D] for an outcome [D]; less is better.

    It is proper: the least is expected from the true distribution. The spread is that of distinct samples.
    """
    spread = np.linalg.norm(samples[:, None] - samples[None], axis=-1).sum() / (len(samples) * (len(samples) - 1))
    return float(np.linalg.norm(samples - outcome, axis=-1).mean() - spread / 2)


def judged(model: WorldModel, each: Branching, num_steps: int, seed: int) -> tuple[dict[str, float], Tensor]:
    """Imagine one branching many times; return its measures and the pictures of the samples' ends."""
    context = model.prefill(each.frames, each.actions[: CONTEXT - 1])
    actions = each.actions[CONTEXT - 1 :].expand(NUM_SAMPLES, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    latents = model.imagine(context, actions, num_steps=num_steps, generator=generator)[:, -1]
    with torch.no_grad():
        places = model.readout("sim.quantities")(latents).numpy()
    pictures = model.decode(latents)
    apart = np.linalg.norm(places[:, None] - each.places, axis=-1)
    line = each.places[1] - each.places[0]
    along = (places - each.places[0]) @ line / (line @ line)
    mean_picture = pictures.float().mean(0).round().to(torch.uint8)
    quality = psnr(pictures[:, None].expand(-1, 2, -1, -1, -1), each.outcomes.expand(NUM_SAMPLES, -1, -1, -1, -1))
    return {
        "near %": 100 * float((apart.min(1) < NEAR_M).mean()),
        "between %": 100 * float(((along > 0.25) & (along < 0.75)).mean()),
        "covered %": 100 * float(((apart < NEAR_M).mean(0) >= SHARE).mean()),
        "best cm": 100 * float(apart.min(0).mean()),
        "mean cm": 100 * float(np.linalg.norm(places.mean(0) - each.places, axis=-1).mean()),
        "energy cm": 100 * float(np.mean([energy_score(places, place) for place in each.places])),
        "one dB": float(quality.mean()),
        "best dB": float(quality.max(0).values.mean()),
        "mean dB": float(psnr(mean_picture.expand(2, -1, -1, -1), each.outcomes).mean()),
    }, pictures


def known(model: WorldModel, points: Sequence[Branching]) -> dict[str, dict[str, float]]:
    """Return the same measures of what needs no predictor: the truth as this tokenizer shows it, and its mean."""
    apart = float(np.mean([100 * np.linalg.norm(each.places[0] - each.places[1]) for each in points]))
    with torch.no_grad():
        read = [model.readout("sim.quantities")(model.encode(each.outcomes)).numpy() for each in points]
    error = np.mean([np.linalg.norm(places - each.places, axis=1) for places, each in zip(read, points, strict=True)])
    shown = torch.cat([psnr(model.decode(model.encode(each.outcomes)), each.outcomes) for each in points])
    truth = {"near %": 100.0, "between %": 0.0, "covered %": 100.0, "best cm": 100 * float(error)}
    return {
        "both outcomes, as encoded": truth | {"energy cm": apart / 4, "best dB": float(shown.mean())},
        "their mean": {"near %": 0.0, "between %": 100.0, "covered %": 0.0, "energy cm": apart / 2},
    }


def draw(path: Path, points: Sequence[Branching], pictures: dict[str, list[Tensor]]) -> None:
    """Draw samples beside outcomes, one branching a row."""
    rows = range(min(4, len(points)))
    columns = [
        ("last seen", [points[row].frames[-1] for row in rows]),
        ("if heads", [points[row].outcomes[0] for row in rows]),
        ("if tails", [points[row].outcomes[1] for row in rows]),
    ]
    for name, ends in pictures.items():
        for sample in range(1 if name.startswith("regression") else 4):
            columns.append((name if not sample else "", [ends[row][sample] for row in rows]))
    bench_predictors.draw_grid(path, columns)


def fork_config(image_size: int) -> WorldModelConfig:
    """Return sizes for the fork: four FSQ codes a frame and a predictor of a quarter of a million weights."""
    return WorldModelConfig(
        tokenizer=FrameTokenizerConfig(
            image_size=(image_size, image_size),
            channels=(16, 32, 64),
            token_grid=(2, 2),
            bottleneck=BottleneckConfig(kind="fsq", width=4, levels=(8, 5, 5, 5)),
        ),
        predictor=PredictorConfig(transformer=TransformerConfig(width=96, depth=2, num_heads=4, hidden=256)),
    )


def main() -> None:
    """Train on the fork and measure what each predictor makes of the coin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("store", type=Path)
    parser.add_argument("--seconds", type=float, default=150.0, help="CPU seconds for each predictor")
    parser.add_argument("--points", type=int, default=32, help="states before the plank")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the predictors; pictures show the first")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of predictors")
    parser.add_argument("--tokenizer-steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_stochastic"))
    parser.add_argument("--picture", type=Path, default=None, help="PNG of samples beside outcomes")
    options, console = parser.parse_args(), Console(width=220)
    torch.set_num_threads(1)
    store, task = EpisodeStore.open(options.store), get_task("fork")
    size = store.features["observation.images.top"].shape[0]
    stage = StageConfig(num_steps=options.tokenizer_steps, batch_size=24, learning_rate=7e-4, num_threads=1)
    readouts = replace(stage, num_steps=800, batch_size=256, learning_rate=2e-3)
    config = TrainConfig(tokenizer=stage, readouts=readouts)
    base = train_world_model(
        store, fork_config(size), config, options.out, seed=0, stages=("tokenizer", "readouts"), console=console
    )
    train, _ = split_episodes(store.num_episodes)
    data = LatentEpisodes(
        store, base.tokenizer, camera=base.embodiment.camera, episodes=train.tolist(), features=["action"]
    )
    points = branchings(task, options.points, size, seed=1)
    encoded = known(base, points)
    if (error := encoded["both outcomes, as encoded"]["best cm"]) > 100 * NEAR_M:
        parser.error(f"the codes tell the puck's place to {error:.1f} cm only: train longer, --tokenizer-steps")
    rows = {name: {k: f"{v:.1f}" for k, v in row.items()} for name, row in encoded.items()}
    pictures: dict[str, list[Tensor]] = {}
    measures: dict[str, list[list[dict[str, float]]]] = {}  # of each way, of each seed, of each state
    for seed in options.seeds:
        for name, model, num_steps in bench_predictors.ways(base, data, options.seconds, seed, console, options.kinds):
            found = [judged(model, each, num_steps, number) for number, each in enumerate(points)]
            measures.setdefault(name, []).append([row for row, _ in found])
            pictures.setdefault(name, [ends for _, ends in found])
    for name, seeds in measures.items():
        rows[name] = {
            key: bench_predictors.of_seeds([np.array([row[key] for row in states]) for states in seeds])
            for key in seeds[0][0]
        }
    bench_predictors.print_table(
        console, f"fork, {HORIZON} steps ahead, {len(points)} states x {NUM_SAMPLES} samples; (each seed)", rows
    )
    if options.picture:
        left_out = ("masked, 2 steps", "flow without shortcuts, 4 steps", "distilled of that, 1 step")
        draw(options.picture, points, {name: ends for name, ends in pictures.items() if name not in left_out})


if __name__ == "__main__":
    main()
