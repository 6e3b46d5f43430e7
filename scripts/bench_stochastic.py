"""Must imagination be diffusion? Flow, regression and masked codes where a hidden coin decides, and where nothing does.

    embodied-wm collect task=fork episodes=400 rows=30 out=fork.zarr
    python scripts/bench_stochastic.py coin fork.zarr --picture fork.png
    python scripts/bench_stochastic.py recorded push.zarr --model RUN_OF_PUSH --seeds 0 1 2

Each predictor has the same tokenizer, network, data and CPU seconds. `coin` trains a tokenizer of FSQ codes on `fork`,
lets each predictor imagine the puck's way over the hidden plank 32 times, and compares the places read from those
samples with both true outcomes, which MuJoCo plays from the same state with the coin either way. `recorded` measures
latent errors and PSNR on held-out episodes of a store on which nothing is left to chance.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.statistics import bootstrap_mean
from embodied_wm.predictor.model import PredictorConfig
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.tokenizer.bottleneck import BottleneckConfig
from embodied_wm.tokenizer.frames import FrameTokenizerConfig, psnr
from embodied_wm.training.latents import LatentEpisodes
from embodied_wm.training.loop import Batch, Conduct, StageConfig, fit
from embodied_wm.training.train import TrainConfig, train_world_model
from embodied_wm.world_model import WorldModel, WorldModelConfig
from sim import get_task
from sim.branch import branch
from sim.tasks.base import Task, state_from_positions
from sim.tasks.fork import AIM_M, START_M, TILT_RAD, with_coin

CONTEXT, HORIZON, LENGTH = 3, 8, 11
NUM_SAMPLES, NEAR_M, SHARE = 32, 0.02, 0.1
WAYS = (("regression", 1), ("flow", 1), ("flow", 4), ("masked", 1), ("masked", 2), ("masked", 4))
"""Kinds of predictor and how many steps, or rounds, they imagine a frame in."""


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


def with_predictor(base: WorldModel, kind: str, seed: int) -> WorldModel:
    """Return a copy of a model with a new predictor of some kind."""
    torch.manual_seed(seed)
    predictor = replace(base.config.predictor, kind=kind)  # type: ignore[arg-type]
    model = WorldModel(replace(base.config, predictor=predictor), base.embodiment)
    kept = {name: tensor for name, tensor in base.state_dict().items() if not name.startswith("predictor.")}
    model.load_state_dict(kept, strict=False)
    return model.eval()


def train_predictor(model: WorldModel, data: LatentEpisodes, seconds: float, seed: int, console: Console) -> None:
    """Train a predictor for some CPU seconds: as many steps as fit, by the time of the first ones."""
    sampler, predictor = data.sampler(length=LENGTH, batch_size=16, seed=seed), model.predictor
    if predictor.masked is not None:
        predictor.masked.codes.fit(model.tokenizer.latent_mean, model.tokenizer.latent_std)
    predictor.fit_change(torch.cat([sampler.numbered(number)["latents"] for number in range(16)]))

    def loss(batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return predictor.loss(batch["latents"], model.action_inputs(batch["action"]), generator)

    def run(num_steps: int) -> float:
        config = StageConfig(
            num_steps=num_steps, batch_size=16, learning_rate=2e-3, warmup_steps=20, ema_decay=0.99, num_threads=1
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
    console.print(f"{model.config.predictor.kind}, seed {seed}: {num_steps} steps in {spent:.0f} CPU seconds")


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
    apart = np.mean([100 * np.linalg.norm(each.places[0] - each.places[1]) for each in points])
    with torch.no_grad():
        read = [model.readout("sim.quantities")(model.encode(each.outcomes)).numpy() for each in points]
    error = np.mean([np.linalg.norm(places - each.places, axis=1) for places, each in zip(read, points, strict=True)])
    shown = torch.cat([psnr(model.decode(model.encode(each.outcomes)), each.outcomes) for each in points])
    truth = {"near %": 100.0, "between %": 0.0, "covered %": 100.0, "best cm": 100 * float(error)}
    return {
        "both outcomes, as encoded": truth | {"energy cm": apart / 4, "best dB": float(shown.mean())},
        "their mean": {"near %": 0.0, "between %": 100.0, "covered %": 0.0, "energy cm": apart / 2},
    }


def print_table(console: Console, title: str, rows: dict[str, dict[str, str]]) -> None:
    """Print measures, one way of imagining a row."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table("", *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(row.get(column, "") for column in columns))
    console.print(table)


def figure(values: Sequence[float]) -> str:
    """Return a mean and its 95% interval (bootstrap)."""
    found = bootstrap_mean(values, seed=0)
    ends = found["ci95"] or (found["value"],) * 2
    return f"{found['value']:.1f} [{ends[0]:.1f}, {ends[1]:.1f}]"


def draw(path: Path, points: Sequence[Branching], pictures: dict[str, list[Tensor]]) -> None:
    """Draw samples beside outcomes, one branching a row."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {name: [ends[:1] if name.startswith("regression") else ends[:4] for ends in all_ends]
             for name, all_ends in pictures.items()}  # fmt: skip
    columns: list[tuple[str, Callable[[int], Tensor]]] = [
        ("last seen", lambda row: points[row].frames[-1]),
        ("if heads", lambda row: points[row].outcomes[0]),
        ("if tails", lambda row: points[row].outcomes[1]),
    ]
    for name, ends in shown.items():
        columns += [(name if not n else "", lambda row, e=ends, n=n: e[row][n]) for n in range(len(ends[0]))]
    rows = min(4, len(points))
    canvas, axes = pyplot.subplots(rows, len(columns), figsize=(1.1 * len(columns), 1.2 * rows + 0.3), squeeze=False)
    for row in range(rows):
        for axis, (name, picture) in zip(axes[row], columns, strict=True):
            axis.imshow(picture(row).numpy())
            axis.axis("off")
            if row == 0:
                axis.set_title(name, fontsize=8)
    canvas.tight_layout(pad=0.3)
    canvas.savefig(path, dpi=110)
    pyplot.close(canvas)


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


def coin(options: argparse.Namespace, console: Console) -> None:
    """Train on the fork and measure what each predictor makes of the coin."""
    store, task = EpisodeStore.open(options.store), get_task("fork")
    size = store.features["observation.images.top"].shape[0]
    stage = StageConfig(num_steps=options.tokenizer_steps, batch_size=24, learning_rate=2e-3, num_threads=1)
    readouts = replace(stage, num_steps=800, batch_size=256)
    config = TrainConfig(tokenizer=stage, readouts=readouts)
    base = train_world_model(
        store, fork_config(size), config, options.out, seed=0, stages=("tokenizer", "readouts"), console=console
    )
    train, _ = split_episodes(store.num_episodes)
    data = LatentEpisodes(store, base.tokenizer, camera=base.embodiment.camera, episodes=train, features=["action"])
    points = branchings(task, options.points, size, seed=1)
    rows = {name: {k: f"{v:.1f}" for k, v in row.items()} for name, row in known(base, points).items()}
    pictures: dict[str, list[Tensor]] = {}
    for kind in dict.fromkeys(kind for kind, _ in WAYS):
        model = with_predictor(base, kind, seed=0)
        train_predictor(model, data, options.seconds, 0, console)
        model.save(options.out / kind)
        for num_steps in (steps for other, steps in WAYS if other == kind):
            found = [judged(model, each, num_steps, seed) for seed, each in enumerate(points)]
            name = f"{kind}, {num_steps} step{'s' * (num_steps > 1)}"
            rows[name] = {key: figure([row[key] for row, _ in found]) for key in found[0][0]}
            pictures[name] = [ends for _, ends in found]
    print_table(console, f"fork, {HORIZON} steps ahead, {len(points)} states x {NUM_SAMPLES} samples", rows)
    if options.picture:
        draw(options.picture, points, {name: pictures[name] for name in pictures if name != "masked, 2 steps"})


def recorded(options: argparse.Namespace, console: Console) -> None:
    """Train on a store of which nothing is left to chance, and measure latent errors and PSNR on held-out episodes."""
    store, base = EpisodeStore.open(options.store), WorldModel.from_pretrained(options.model)
    kinds = ("regression", "flow", *(["masked"] if base.config.tokenizer.code_levels else []))
    train, held_out = split_episodes(store.num_episodes)
    parts = [
        LatentEpisodes(store, base.tokenizer, camera=base.embodiment.camera, episodes=part, features=["action"])
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
        for kind in kinds:
            model = with_predictor(base, kind, seed)
            train_predictor(model, parts[0], options.seconds, seed, console)
            for num_steps in (1,) if kind == "regression" else (1, 4):
                ends = []
                for place in range(len(latents)):
                    context = model.prefill_latents(latents[place, :CONTEXT], actions[place, : CONTEXT - 1])
                    generator = torch.Generator().manual_seed(place)
                    following = actions[place, CONTEXT - 1 : CONTEXT - 1 + HORIZON][None]
                    ends.append(model.imagine(context, following, num_steps=num_steps, generator=generator)[0])
                note(f"{kind}, {num_steps} step{'s' * (num_steps > 1)}", torch.stack(ends)[:, ahead - 1])
    shown = {
        name: {key: f"{figure(np.mean(v, 0))} ({', '.join(f'{x.mean():.1f}' for x in v)})" for key, v in row.items()}
        for name, row in rows.items()
    }
    title = f"{options.store.name}: error x 100 in latent units, dB against the decoded truth; (each seed)"
    print_table(console, title, shown)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    verbs = parser.add_subparsers(required=True)
    for run in (coin, recorded):
        verb = verbs.add_parser(run.__name__, help=run.__doc__)
        verb.set_defaults(run=run)
        verb.add_argument("store", type=Path)
        verb.add_argument("--seconds", type=float, default=150.0, help="CPU seconds for each predictor")
        verb.add_argument("--points", type=int, default=32, help="states, or windows, that are measured")
        if run is coin:
            verb.add_argument("--tokenizer-steps", type=int, default=1000)
            verb.add_argument("--out", type=Path, default=Path("runs/bench_stochastic"))
            verb.add_argument("--picture", type=Path, default=None, help="PNG of samples beside outcomes")
        else:
            verb.add_argument("--model", type=Path, required=True, help="whose tokenizer and sizes are taken")
            verb.add_argument("--episodes", type=int, default=10_000, help="most episodes to train on")
            verb.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=220)
    options.run(options, console)


if __name__ == "__main__":
    main()
