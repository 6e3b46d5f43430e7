"""Our model against stable-worldmodel's LeWM and PLDM, trained on the same episodes for the same time: one table.

    bash scripts/peers/setup.sh                                    # an environment with the peer in it
    PEER=.venv-peers/bin/python
    .venv/bin/embodied-wm collect task=push episodes=600 out=push.zarr
    .venv/bin/embodied-wm train data.path=push.zarr run_dir=runs/push OPTIONS   # of make_pretrained.RECIPES["push"]
    SMALL="--minutes 22 --size small --batch-size 64"
    $PEER scripts/peers/train_lewm.py push.zarr lewm_a.pt $SMALL --learning-rate 1e-3
    $PEER scripts/peers/train_lewm.py push.zarr lewm_b.pt $SMALL --learning-rate 3e-4
    $PEER scripts/peers/head_to_head.py --ours runs/push --lewm lewm_a.pt lewm_b.pt --out runs/peers

Every entrant meets the same frozen states and the same frozen pairs of start and goal, through `embodied-wm benchmark`;
what is finished in `--out` is not measured again. LeWM is entered three times:

- "our planner, state": our planner and objective, the task's cost of what a probe reads from imagined embeddings, as
  many steps ahead as ours, rounded up to whole steps of LeWM's;
- "our planner, own cost": our planner, and LeWM's own cost, the distance of the last embedding to the goal image's;
- "own settings": its own cost and the settings of its released evaluation: CEM over 5 of its steps with 300 candidates
  and 30 elites, mean of the last refit, all 5 steps executed before the next plan; 10 refits where theirs are 30.

What was expected, before anything was trained: on `push` a LeWM that gets our model's CPU time (a quarter of an hour)
reads the box from real frames to 2 to 4 cm where ours does to 0.3 cm, so its state error is that of its probe at every
horizon; it solves less than a fifth of the pairs with either cost, ours more than four fifths; `spearman` 0.5 with our
objective and 0.2 with its own cost; a decision of its takes 3 to 5 times as long with our planner (no cache, and a
predictor of 2 M parameters or 11 M), and less for each executed action with its own settings, which plan seldom.
A GPU and 100 epochs, for which its recipe is made, are not what is compared here.

What came out (600 episodes of `push`; ours with the steps of scripts/make_pretrained.py, 9 minutes on one thread; LeWM
small, patches of 16, frameskip 5, batch 64, 22 minutes of one thread's CPU time, 4,578 steps, at the better of two
rates: 1e-3 missed by 3.51 cm ten steps ahead on held-out episodes, 3e-4 by 3.54; 30 pairs, 32 states; one seed):

    who plans                    success            decision  spearman           box off at 1 / 10 steps
    ours                         1.00 [0.89, 1.00]  0.032 s   0.86 [0.82, 0.90]  0.26 / 1.1 cm
    LeWM, our planner, state     0.00 [0.00, 0.11]  0.027 s   0.00 [-0.13, 0.13] 1.9 / 5.3 cm
    LeWM, our planner, own cost  0.03 [0.01, 0.17]  0.026 s   -0.04              1.9 / 5.3 cm
    LeWM, own settings           0.00 [0.00, 0.11]  1.54 s    0.01               1.9 / 4.8 cm
    PLDM, our planner, state     0.00 [0.00, 0.11]  0.079 s   -0.03              7.6 / 12 cm
    PLDM, our planner, own cost  0.00 [0.00, 0.11]  0.067 s   -0.01              7.6 / 12 cm
    PLDM, own settings           0.00 [0.00, 0.11]  2.81 s    -0.01              7.6 / 12 cm

PLDM was trained later, beside other jobs: as long, by its CPU time (5,323 steps), at 1e-3 alone. From true frames its
probe reads the box to 7.3 cm, hardly better than guessing. The oracle solves 1.00 of them, behaviour cloning on our
latents 0.37, random actions none. As expected LeWM's probe limits it (the box is read from true frames to 1.7 cm, ours
to 0.13), and decisions with its own settings take 48 times as long; not expected: with our planner its decisions are as
fast as ours, as one step of it is five actions, and neither cost ranks candidates better than chance. It had learnt
little yet: a window costs 7 ms of training on a CPU (16 ms with patches of 8; 140 ms at the reference widths, which are
50 steps of 128 windows in a quarter of an hour).

On `reach` (`--task reach`; the 400 episodes and the model of `embodied-wm demo seed=1`, whose training took 4 minutes;
the peers 10 minutes of CPU time each, else as above; expected was that LeWM solves a fifth to three fifths):

    who plans                    success            decision  spearman           tip off at 10 steps
    ours                         1.00 [0.89, 1.00]  0.036 s   1.00 [0.99, 1.00]  0.75 cm
    LeWM, our planner, state     0.10 [0.03, 0.26]  0.090 s   0.44 [0.34, 0.53]  7.6 cm
    LeWM, our planner, own cost  0.07 [0.02, 0.21]  0.103 s   0.05               7.4 cm
    LeWM, own settings           0.00 [0.00, 0.11]  5.74 s    0.04               7.5 cm
    PLDM, our planner, state     0.00 [0.00, 0.11]  0.112 s   0.57 [0.47, 0.67]  8.4 cm
    PLDM, our planner, own cost  0.00 [0.00, 0.11]  0.099 s   0.03               8.3 cm
    PLDM, own settings           0.07 [0.02, 0.21]  3.84 s    -0.01              8.3 cm

LeWM at a rate of 1e-3 (3e-4: 0.03, 0.03 and 0.03), PLDM at 1e-3 alone; beside other jobs, so times compare but roughly.
The oracle solves 1.00, behaviour cloning on our latents 0.57. From true frames the tip is read to 3.4 (LeWM), 3.3
(PLDM) and 0.12 cm (ours).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from embodied_wm.checkpoint import model_folder
from embodied_wm.evaluation.report import load_report
from embodied_wm.world_model import WorldModel

ADAPTER = f"{Path(__file__).resolve().parents[1] / 'judge_lewm.py'}:load"
OWN_STEPS, OWN_CANDIDATES, OWN_ELITES, OWN_ITERATIONS = 5, 300, 30, 10
"""Of the peer's released evaluation (config/eval/solver/cem.yaml, pusht.yaml); it refits 30 times."""
PEERS = {"lewm": "LeWM", "pldm": "PLDM"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """Say who is measured, and how.

    Attributes:
        name: Heading of its column, and name of its folder.
        checkpoint: What is loaded.
        options: Options of both benchmarks.
        planning: Options of planning alone.
        facts: Rows that are not measured: parameters, training.
    """

    name: str
    checkpoint: Path
    options: tuple[str, ...] = ()
    planning: tuple[str, ...] = ("planning.controllers=[model]",)
    facts: Mapping[str, str]


def our_entrant(checkpoint: Path) -> Entrant:
    """Return our model, with the baselines that need it and the oracle."""
    model = WorldModel.load(model_folder(checkpoint))
    minutes = sum(model.card.get("seconds", {}).values()) / 60
    facts = {
        "parameters": f"{sum(each.numel() for each in model.parameters()):,}",
        "training": f"{minutes:.0f} min by the clock",
    }
    controllers = ("planning.controllers=[model,oracle,behaviour_cloning,random]",)
    return Entrant(name="ours", checkpoint=checkpoint, planning=controllers, facts=facts)


def lewm_entrants(checkpoint: Path, task: str) -> list[Entrant]:
    """Return a LeWM with our planner and objective, with its own cost, and with its own settings."""
    saved = torch.load(checkpoint, weights_only=True)
    recipe, weights = saved["recipe"], saved["weights"]
    count = sum(each.numel() for name, each in weights.items() if name.split(".")[-1] not in STATISTICS)
    facts = {
        "parameters": f"{count:,}",
        "training": f"{saved['minutes']:g} min of CPU time, {saved['steps']:,} steps",
        "recipe": f"{recipe['size']}, frameskip {recipe['frameskip']}, rate {recipe['learning_rate']:g}, "
        f"batch {recipe['batch_size']}",
    }
    frameskip, std = saved["frameskip"], float(saved["action_std"].mean())
    horizon = yaml.safe_load((CONFIGS / "task" / f"{task}.yaml").read_text())["horizon"]
    ahead, steps = f"planner.horizon={-(-horizon // frameskip) * frameskip}", OWN_STEPS * frameskip
    own = [
        f"planner.horizon={steps}",
        f"planner.num_candidates={OWN_CANDIDATES}",
        f"planner.num_elites={OWN_ELITES}",
        f"planner.num_iterations={OWN_ITERATIONS}",
        f"planner.initial_std={std:.3f}",  # 1 in units of the actions' std
        "planner.min_std=0.0",
        "planner.noise_correlation=0.0",
        "planner.momentum=0.0",
        "planner.num_kept=0",
        "planner.include_mean=false",
        "planner.include_zero=false",
        "planner.choose=mean",
    ]
    adapter, name = f"adapter={ADAPTER}", f"{PEERS[recipe.get('peer', 'lewm')]} {checkpoint.stem}"
    settings = {
        "our planner, state": (("objective=state", ahead), ()),
        "our planner, own cost": (("objective=latent", ahead), ()),
        "own settings": (("objective=latent", *own), (f"control.replan_every={steps}",)),
    }
    return [
        Entrant(
            name=f"{name}: {how}",
            checkpoint=checkpoint,
            options=(adapter, *options),
            planning=("planning.controllers=[model]", *planning),
            facts=facts,
        )
        for how, (options, planning) in settings.items()
    ]


def measure(entrant: Entrant, kind: str, options: Sequence[str], out: Path) -> dict[str, Any]:
    """Run one benchmark of one entrant, or read what an earlier call with the same options left; return its report."""
    name = "".join(letter if letter.isalnum() else "_" for letter in entrant.name)
    folder = out / name / kind
    wanted = [f"checkpoint={entrant.checkpoint.resolve()}", *options, *entrant.options, f"run_dir={folder.resolve()}"]
    command = list({option.split("=")[0]: option for option in wanted}.values())  # the last one of a name counts
    done = folder / "options.json"
    if not done.exists() or json.loads(done.read_text()) != command:
        subprocess.run([sys.executable, "-m", "embodied_wm.cli", "benchmark", kind, *command], check=True)
        done.write_text(json.dumps(command))
    return load_report(folder)


def shown(estimate: Mapping[str, Any] | None, scale: float = 1.0, digits: int = 2) -> str:
    """Return an estimate and its interval as text."""
    if estimate is None:
        return ""
    value = f"{scale * estimate['value']:.{digits}f}"
    ends = estimate["ci95"]
    return value if ends is None else f"{value} [{scale * ends[0]:.{digits}f}, {scale * ends[1]:.{digits}f}]"


def rows_of(
    entrant: Entrant, reports: Mapping[str, dict[str, Any]], task: str, horizons: Sequence[int]
) -> dict[str, str]:
    """Return the rows of one entrant's column."""
    imagined, planned = reports["imagination"]["tasks"][task], reports["planning"]["tasks"][task]
    rows = dict(entrant.facts)
    rows["success"] = f"{shown(planned['success'])}, {planned['success']['n']} pairs"
    rows["success at any step"] = shown(planned["success_any"])
    rows["end distance (cm)"] = shown(planned["final_cost_m"], 100, 1)
    for agent in ("oracle", "behaviour_cloning", "random"):
        if f"success.{agent}" in planned:
            rows[f"success of {agent.replace('_', ' ')}"] = shown(planned[f"success.{agent}"])
    rows["seconds per decision"] = shown(planned["seconds_per_decision"], digits=3)
    rows["sequences x steps per decision"] = f"{planned['candidate_steps_per_decision']['value']:.0f}"
    for key, label in (
        ("state_error", "state error (cm)"),
        ("state_error_true", "the same, of true frames"),
        ("state_error_copy", "the same, if nothing moved"),
        ("ghost_motion", "untouched things moved (cm)"),
    ):
        by_horizon = imagined.get(key, {}).get("by_horizon", {})
        for step in horizons:
            if str(step) in by_horizon:
                rows[f"{label}, h = {step}"] = shown(by_horizon[str(step)], 100)
    for key in ("spearman", "spearman_true", "elite_regret", "contact_f1"):
        rows[key] = shown(imagined.get(key))
    return rows


def table_of(columns: Mapping[str, Mapping[str, str]], title: str) -> Table:
    """Return the table: one column for each entrant."""
    table = Table(title=title)
    table.add_column("")
    for name in columns:
        table.add_column(name)
    for label in dict.fromkeys(label for column in columns.values() for label in column):
        table.add_row(label, *(column.get(label, "") for column in columns.values()))
    return table


def main() -> None:
    """Measure who is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="push")
    parser.add_argument("--ours", type=Path, help="checkpoint or run folder of our model")
    parser.add_argument("--lewm", type=Path, nargs="*", default=[], help="checkpoints that train_lewm.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=30, help="start and goal pairs")
    parser.add_argument("--states", type=int, default=32, help="physical states that imagination branches from")
    parser.add_argument("--horizon", type=int, default=10, help="imagined steps that are judged")
    parser.add_argument("--show", type=int, nargs="+", default=[1, 5, 10], help="of those, the ones in the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="options of all benchmarks, such as planner.choose=mean")
    options = parser.parse_args()
    entrants = [our_entrant(options.ours)] if options.ours else []
    entrants += [entrant for checkpoint in options.lewm for entrant in lewm_entrants(checkpoint, options.task)]
    common = [f"task={options.task}", f"seed={options.seed}", "card=false", *options.overrides]
    judged = [f"imagination.num_branch_points={options.states}", f"imagination.horizon={options.horizon}"]
    columns = {}
    for entrant in entrants:
        reports = {
            "imagination": measure(entrant, "imagination", [*common, *judged], options.out),
            "planning": measure(
                entrant, "planning", [*common, f"planning.num_pairs={options.pairs}", *entrant.planning], options.out
            ),
        }
        columns[entrant.name] = rows_of(entrant, reports, options.task, options.show)
    (options.out / "table.json").write_text(json.dumps(columns, indent=1))
    Console(width=max(120, 32 + 34 * len(columns))).print(table_of(columns, f"{options.task}, seed {options.seed}"))


if __name__ == "__main__":
    main()
