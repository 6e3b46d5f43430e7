"""Does video of other tasks help where labels are few? Pretrain on it, then plan with 1%, 5% and 20% of the labels.

    python scripts/study_latent_transfer.py --mix push_t.zarr drawer.zarr --target push.zarr --task push --out DIR

Ways to use the labelled episodes of the target, each planning by the same planner on the same pairs:

- alone: everything is trained on them from nothing, on real actions;
- video of other tasks: tokenizer, codes and predictor first learn from the mix, without its labels; the tokenizer stays
  as it is, and the predictor goes on with the labelled episodes, on their real actions;
- through codes: the same, but planning through the adapter's codes, in which the predictor has learnt from the mix;
- and video of its own: the same, and the target's unlabelled episodes are in the mix.

On the labelled episodes each is trained for as many steps (`--tuning`, in parts of those on the mix).

It keeps what it has in its folder, and goes on from there when it is called again.

What came out with these stores (600 episodes each), `--pairs 100 --set model=nano_keypoints
trainer.tokenizer.num_steps=3000 trainer.latent_actions.num_steps=3000 trainer.adapter.num_steps=3000
trainer.predictor.num_steps=9000 trainer.readouts.num_steps=1500 trainer.readouts.learning_rate=0.004`, one seed:

    | labels     | alone             | video of other tasks | through codes     |
    |------------|-------------------|----------------------|-------------------|
    | 1% (5)     | 0.02 [0.01, 0.07] | 0.06 [0.03, 0.12]    | 0.05 [0.02, 0.11] |
    | 5% (27)    | 0.35 [0.26, 0.45] | 0.42 [0.33, 0.52]    | 0.29 [0.21, 0.39] |
    | 20% (108)  | 0.96 [0.90, 0.98] | 0.83 [0.74, 0.89]    | 0.71 [0.61, 0.79] |

Expected was that video of other tasks helps with 1% and 5% (0.05 against 0.02, 0.4 against 0.3) and does no harm with
20%. With few labels it makes no difference that shows; with 20% it does harm, probably because the tokenizer that stays
is one of other things (it reads the box of `push` to 0.4 cm by a line, one that goes on with five episodes to 0.15). A
predictor that stays as it is too, under an adapter and readouts of 27 episodes, solves 0.02 of 50 goals; through codes
3,000 steps on the labels 0.24 of 50, 1,000 steps 0.32. In an earlier form, in which the tokenizer went on too and the
target's own unlabelled video was in the mix, 0.26 of 50 (5%; 800 and 3,000 steps). Where tokenizer and codes have seen
much video of the task itself, codes are worth 0.33 (`study_few_labels.py`).
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from study_latent_actions import CONSOLE, kept, print_table, settings, shown

from embodied_wm.cli import compose_config, instantiate_config
from embodied_wm.commands.benchmarks import setup_of
from embodied_wm.data.edit import Conditions, filter_store
from embodied_wm.data.loader import split_episodes
from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.lineup import line_up
from embodied_wm.evaluation.planning import run_agents
from embodied_wm.evaluation.statistics import wilson
from embodied_wm.family import Family
from embodied_wm.training.stages import STAGES
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.world_model import ActionKind
from sim.tasks import get_task

TARGET = "target"
ALONE, ITS_OWN = "alone", "and video of its own"
WAYS: dict[str, ActionKind] = {
    ALONE: "real",
    "video of other tasks": "real",
    "through codes": "adapted",
    ITS_OWN: "adapted",
}
TUNED = ("adapter", "predictor", "readouts")
"""Stages that go on with the labelled episodes after the mix."""


def few_episodes(options: argparse.Namespace, fraction: float) -> EpisodeStore:
    """Return a store of a fraction of the target's training episodes, and one more that is held out as always."""
    place = options.out / f"labelled_{fraction:g}_{options.seed}.zarr"
    if not place.exists():
        train, held_out = split_episodes(EpisodeStore.open(options.target).num_episodes)
        chosen = np.random.default_rng(options.seed).permutation(train)[: max(1, round(fraction * len(train)))]
        episodes = [*sorted(int(index) for index in chosen), int(held_out[0])]
        filter_store(options.target, place, Conditions(episodes=episodes))
    return EpisodeStore.open(place)


def pretrained(options: argparse.Namespace, *, with_target: bool) -> Family:
    """Train tokenizer, codes and predictor on the video of the mix."""
    model, trainer = settings(options)
    places = [*options.mix, *([options.target] if with_target else [])]
    robots = {Path(each).stem: RobotStore(store=EpisodeStore.open(each), labelled_fraction=0) for each in places}
    folder = options.out / f"{'mix_with_target' if with_target else 'mix'}_{options.seed}"
    stages = ("tokenizer", "latent_actions", "predictor")
    return train_together(robots, model, trainer, folder, seed=options.seed, stages=stages, console=CONSOLE)


def planned(options: argparse.Namespace, fraction: float, way: str) -> dict[str, Any]:
    """Train by one of the ways on a fraction of the labels, and plan; return the success."""
    model, trainer = settings(options)
    store = few_episodes(options, fraction)
    before = None if way == ALONE else pretrained(options, with_target=way == ITS_OWN)
    shorter = {}
    for name in ("tokenizer", "predictor"):
        stage = getattr(trainer, name)
        shorter[name] = replace(stage, num_steps=round(options.tuning * stage.num_steps))
    folder = options.out / f"{way.replace(' ', '_')}_{fraction:g}_{options.seed}"
    train_together(
        {TARGET: RobotStore(store=store)},
        model,
        replace(trainer, **shorter, held_out_fraction=1 / store.num_episodes),
        folder,
        seed=options.seed,
        stages=STAGES if before is None else TUNED,
        start_from=before,
        console=CONSOLE,
    )
    return success_of(folder / "robots" / TARGET / "model", WAYS[way], model.tokenizer.image_size, options)


def success_of(
    model: Path, kind: ActionKind, image_size: tuple[int, int], options: argparse.Namespace
) -> dict[str, Any]:
    """Plan with a model folder, by real actions or through codes, as `benchmark planning` does; return the success."""
    composed, _ = compose_config("benchmark_planning", {"task": options.task, "checkpoint": "none"})
    setup = replace(setup_of(instantiate_config(composed)), kind=kind)
    task = get_task(options.task)
    runs = run_agents(
        task,
        {"model": line_up(model, setup)["model"]},
        num_episodes=options.pairs,
        seed=options.seed,
        image_size=image_size,
        camera=task.cameras[0],
        num_workers=1,
        console=CONSOLE,
    )
    return wilson(int(runs["model"].success.sum()), len(runs["model"].success))


def main() -> None:
    """Train and plan by every way with every fraction; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mix", nargs="+", required=True, help="stores of other tasks; their labels are not read")
    parser.add_argument("--target", required=True, help="store of the task to plan")
    parser.add_argument("--task", required=True, help="its name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.01, 0.05, 0.2])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--tuning", type=float, default=1 / 3, help="steps of tokenizer and predictor on the labels")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="options of `embodied-wm train`, such as model=nano")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for way in options.ways:
        found = [
            kept(options.out / f"{way}_{fraction:g}_{options.seed}.json", partial(planned, options, fraction, way))
            for fraction in options.fractions
        ]
        rows.append([way, *(shown(each) for each in found)])
    columns = ["", *(f"{fraction:.0%} of the labels" for fraction in options.fractions)]
    print_table(f"{options.task}: success at the end, {options.pairs} pairs", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
