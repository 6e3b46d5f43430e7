"""Do latent actions make up for missing labels? Video of many episodes of one task, labels of few of them.

    python scripts/study_few_labels.py pretrained:push push.zarr --task push --out DIR [--fractions 0.01 0.05 0.2]

Tokenizer and latent actions are a trained model's; they never see a label. Actions and states (for the readouts) are
known of a fraction of the training episodes. Three predictors, with as many steps each, plan for the same goals:

- codes: trained on all episodes, by codes where there is no label; planning through an adapter that the labels train;
- labelled alone: trained on the labelled episodes' real actions, as if there were no other video;
- all labels: trained on all episodes' real actions.

It keeps what it has in its folder, and goes on from there when it is called again. What came out stands in RESULTS.md
("Latent actions").
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from study_latent_actions import CONSOLE, kept, print_table, settings, shown
from study_latent_transfer import few_episodes, success_of

from embodied_wm.data.store import EpisodeStore
from embodied_wm.training.train import train_world_model
from embodied_wm.world_model import ActionKind, WorldModel


def planned(options: argparse.Namespace, name: str, fraction: float, kind: ActionKind) -> dict[str, Any]:
    """Train a predictor and readouts, and for codes an adapter; plan; return the success."""
    _, trainer = settings(options)
    start = WorldModel.from_pretrained(options.model)
    store = EpisodeStore.open(options.target)
    stages: Sequence[str] = ("predictor", "readouts")
    if kind == "adapted":
        trainer, stages = replace(trainer, labelled_fraction=fraction), ("adapter", *stages)
    elif fraction < 1:
        store = few_episodes(options, fraction)
        trainer = replace(trainer, held_out_fraction=1 / store.num_episodes)
    folder = options.out / f"{name.replace(' ', '_')}_{fraction:g}_{options.seed}"
    train_world_model(
        store, start.config, trainer, folder, seed=options.seed, stages=stages, start_from=start, console=CONSOLE
    )
    return success_of(folder / "model", kind, start.config.tokenizer.image_size, options)


def main() -> None:
    """Train and plan in every way; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model or run, pretrained:TASK, or OWNER/NAME")
    parser.add_argument("target", help="store of the task to plan")
    parser.add_argument("--task", required=True, help="its name")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is done")
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.01, 0.05, 0.2], help="of labelled episodes")
    parser.add_argument("--pairs", type=int, default=100, help="goals")
    parser.add_argument("--seed", type=int, default=0, help="of training, of which episodes have labels, of goals")
    parser.add_argument("--set", nargs="*", default=[], help="options of `embodied-wm train`")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def found(name: str, fraction: float, kind: ActionKind) -> str:
        path = options.out / f"{name}_{fraction:g}_{options.seed}.json"
        return shown(kept(path, partial(planned, options, name, fraction, kind)))

    whole = found("all labels", 1.0, "real")
    rows = [
        [f"{fraction:.0%}", found("codes", fraction, "adapted"), found("labelled alone", fraction, "real"), whole]
        for fraction in options.fractions
    ]
    columns = ["labels", "codes", "labelled episodes alone", "all labels"]
    print_table(f"{options.task}: success at the end, {options.pairs} pairs", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
