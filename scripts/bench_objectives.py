"""Which objective works on which task? One model, the same pairs of start and goal, one objective after another.

    python scripts/bench_objectives.py pretrained:push push.zarr out

Fits a readout of temporal distance on the latents of the store, which needs no labels, and saves the model with it
under `out`; then plans by each objective (`benchmark planning`) and ranks candidates by it (`benchmark imagination`).

Models that shipped before, 100 goals each, success and rank correlation with physical cost (expected: `state` first,
temporal distance between it and `latent`, which forgets what is in the way; RESULTS.md has those that ship now):

|                  | reach                  | push                   | push_t                 | drawer                 |
|------------------|------------------------|------------------------|------------------------|------------------------|
| state            | 1.00 [0.96, 1.00] 0.99 | 0.99 [0.95, 1.00] 0.86 | 0.96 [0.90, 0.98] 0.76 | 0.95 [0.89, 0.98] 0.88 |
| mixed            | 1.00 [0.96, 1.00] 0.99 | 0.97 [0.92, 0.99] 0.84 | 0.95 [0.89, 0.98] 0.76 | 0.95 [0.89, 0.98] 0.88 |
| latent           | 0.62 [0.52, 0.71] 0.13 | 0.21 [0.14, 0.30] 0.36 | 0.10 [0.06, 0.17] 0.42 | 0.52 [0.42, 0.62] 0.70 |
| temporal, 1,500  | 1.00 [0.96, 1.00] 0.74 | 0.34 [0.25, 0.44] 0.63 | 0.36 [0.27, 0.46] 0.52 | 0.57 [0.47, 0.66] 0.15 |
| temporal, 12,000 |                        | 0.54 [0.44, 0.63] 0.77 | 0.40 [0.31, 0.50] 0.51 | 0.69 [0.59, 0.77] 0.14 |
| temporal, 40,000 |                        | 0.52 [0.42, 0.62] 0.73 |                        |                        |

`temporal` is temporal distance after so many steps of its training (`--steps`), one training each. Only `state` and
`mixed` need a readout of physical quantities, and so labels. They also know what counts: a temporal distance is to all
of the goal image, the place of the pusher too, of which the success here is none.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from embodied_wm.data.store import EpisodeStore
from embodied_wm.temporal_distance import TemporalDistanceConfig
from embodied_wm.training.loop import StageConfig
from embodied_wm.training.processes import Processes
from embodied_wm.training.train import TrainConfig, Trainer
from embodied_wm.world_model import WorldModel

OBJECTIVES = ("state", "latent", "mixed", "temporal_distance")


def add_temporal_distance(model: WorldModel, store: EpisodeStore, out: Path, *, num_steps: int, seed: int) -> None:
    """Fit a readout of temporal distance to a model that may have none, and save it in `out / "model"`, once."""
    folder = out / "model"
    if (folder / "config.json").is_file():
        return
    config = replace(model.config, temporal_distance=TemporalDistanceConfig(components=8))
    more = WorldModel(config, model.embodiment)
    more.load_state_dict(model.state_dict(), strict=False)
    more.card = dict(model.card)
    stage = StageConfig(num_steps=num_steps, batch_size=256, num_threads=1)
    training = TrainConfig(camera=model.embodiment.camera, temporal_distance=stage)
    out.mkdir(parents=True, exist_ok=True)
    Trainer(store, more, training, out, seed=seed, processes=Processes(), console=Console()).train_temporal_distance()
    more.eval().save(folder)


def measured(verb: str, task: str, objective: str, out: Path, *options: str) -> dict[str, str]:
    """Return "value [low, high]" of what one benchmark says of one objective; what was measured already is read."""
    run_dir = out / f"{verb}_{objective}"
    if not (run_dir / "report.json").is_file():
        given = [f"task={task}", f"checkpoint={out / 'model'}", f"objective={objective}", f"run_dir={run_dir}"]
        command = [sys.executable, "-m", "embodied_wm.cli", "benchmark", verb, *given, "card=false", *options]
        subprocess.run(command, check=True)
    figures = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["tasks"][task]
    return {
        name: "{:.2f} [{:.2f}, {:.2f}]".format(figure["value"], *figure["ci95"])
        for name, figure in figures.items()
        if name in ("success", "spearman", "elite_regret")
    }


def main() -> None:
    """Fit, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a model or run, pretrained:TASK, or OWNER/NAME")
    parser.add_argument("store", type=Path, help="episodes that the readout is fitted on")
    parser.add_argument("out", type=Path)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--steps", type=int, default=12_000, help="of the readout")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--branch-points", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, store = WorldModel.from_pretrained(options.checkpoint), EpisodeStore.open(options.store)
    add_temporal_distance(model, store, options.out, num_steps=options.steps, seed=options.seed)
    task = model.embodiment.robot
    table = Table("objective", "success", "spearman", "elite_regret", title=options.checkpoint)
    for objective in options.objectives:
        planned = [f"planning.num_pairs={options.pairs}", "planning.controllers=[model]", f"seed={options.seed}"]
        found = measured("planning", task, objective, options.out, *planned)
        branched = [f"imagination.num_branch_points={options.branch_points}", f"seed={options.seed}"]
        found |= measured("imagination", task, objective, options.out, *branched)
        table.add_row(objective, found["success"], found["spearman"], found["elite_regret"])
        Console().print(table)


if __name__ == "__main__":
    main()
