"""What would make a decision cheaper at equal success: the same pairs of start and goal, one saving after another.

    python scripts/bench_savings.py runs/train/LATEST/model --task reach --pairs 20

Each variant prints success and the processor time of a decision (one thread, so that a busy machine does not count).
`prefilled` is what benchmarks do; `rolling` rolls the context on with each frame; `two steps` denoises twice; `int8`
quantises the weights of the transformer's products per channel and their inputs per product, as torch's dynamic
quantisation does: the products alone are 1.2 to 1.8 times faster here (oneDNN, 512 and 1280 tokens, nano and small), at
an error of 2% each. The last line is for pruning candidates half-way: of those that CEM kept as elites, how many were
among the better half, or quarter, when only half of the horizon had been imagined.

On `reach`, a nano model, a busy machine: `rolling` 1.00 of 16 pairs like `prefilled`, in 110 and 107 ms. `int8`,
twice in turn with `prefilled` on 5 pairs, 1.00 like it, in 107 and 98 ms against 83 and 106: nothing that stands out
of the noise, so it was left out. Pruning the worse half half-way would lose 7% of the elites for at most a quarter of
the work (in the three searches of a decision), pruning to a quarter 32%: left out, too (`planners.cem` has what it did
to plans on `push`).

Denoising steps, on the `push` model that shipped before (`--task push --horizon 8 --choose mean --candidates 64 --pairs
20 --variants prefilled "two steps"`): success 0.90 in 177 ms with one step, 1.00 in 262 ms with two. A throw-away
schedule, one step in the first two searches and two in the last, had 1.00 of the same 20 pairs in 191 ms. On the 14
pairs that follow it was 1.00, 0.93 and 1.00, so over 34 pairs 32, 33 and 34 successes: no difference that shows.
Planning takes one step everywhere, and there is nothing to take away from the early searches; hence no schedule.

int8 keys and values (a throw-away prototype: a byte each and a scale per token and head, made where they are written
and undone where they are read; one thread, ratios within one run) win nothing on a CPU. The candidates' own: 1.08
times the time of imagination on `push` (96 candidates, 8 and 12 frames), 0.99 with `small` (32 candidates, 8 frames).
The context's: 1.02 and 1.02. They are exact enough (latents on `push` change by under 0.1%) and take a quarter of the
memory, but that is 2.7 MB for 96 candidates of `push` to begin with, and torch has no batched product of int8 matrices.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.judged import JudgedModel, JudgedWorldModel
from embodied_wm.evaluation.lineup import PlanningSetup, load_judged
from embodied_wm.evaluation.planning import Arena
from embodied_wm.evaluation.statistics import wilson
from embodied_wm.predictor import extension
from planners import CEM, StepWeights
from planners.base import Objective
from sim.manifest import evaluation_pairs
from sim.tasks import get_task
from sim.tasks.base import Task

VARIANTS = ("prefilled", "rolling", "two steps", "int8")


@contextmanager
def int8_weights() -> Iterator[None]:
    """Let the products of imagination be of int8 weights, each packed when it is first met."""
    packed: dict[tuple[int, int], Any] = {}

    def quantised(x: Tensor, weight: Tensor) -> Tensor:
        key = (weight.data_ptr(), len(weight))
        if key not in packed:
            scales = weight.abs().amax(1).double() / 127
            zeros = torch.zeros(len(weight), dtype=torch.long)
            int8 = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
            packed[key] = torch.ops.quantized.linear_prepack(int8, None)
        return torch.ops.quantized.linear_dynamic(x, packed[key], True)

    with patch.object(extension, "linear", quantised):
        yield


class Halfway:
    """An objective that also looks at the first half of the horizon and counts whose elites that would have kept."""

    def __init__(self, objective: Objective, num_elites: int) -> None:
        self.objective, self.num_elites = objective, num_elites
        self.kept: list[tuple[float, float]] = []

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return the costs, as if nobody looked."""
        costs = self.objective(trajectory, actions)
        half = trajectory.shape[1] // 2
        order = self.objective(trajectory[:, :half], actions[:, :half]).argsort().argsort()
        elites = order[costs.topk(self.num_elites, largest=False).indices]
        self.kept.append(tuple(float((elites < len(costs) // part).float().mean()) for part in (2, 4)))  # type: ignore[arg-type]
        return costs


def run(agent: ModelAgent, arena: Arena, task: Task, pairs: list[Any]) -> str:
    """Return a line of figures of one variant."""
    ends = np.array([arena.run(agent, pair)[0][-1] for pair in pairs])
    success = wilson(int((ends <= task.tolerance_m).sum()), len(ends))
    low, high = success["ci95"]
    ms = 1e3 * np.array(agent.seconds)
    return (
        f"success {success['value']:.2f} ({low:.2f} to {high:.2f}), end {100 * np.median(ends):.2f} cm, "
        f"decision {np.median(ms):.1f} ms (least {ms.min():.1f})"
    )


def watched(model: JudgedModel, num_elites: int) -> list[Halfway]:
    """Let a model's objectives count elites; return where they will be found."""
    made: list[Halfway] = []
    make: Callable[[Tensor], Objective] = model.objective

    def objective(goal: Tensor) -> Objective:
        made.append(Halfway(make(goal), num_elites))
        return made[-1]

    model.objective = objective  # type: ignore[method-assign]
    return made


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", default="reach")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=6)
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--choose", default="best", choices=["best", "mean"])
    parser.add_argument("--context", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    planner = CEM(horizon=options.horizon, num_candidates=options.candidates, num_elites=8, choose=options.choose)
    setup = PlanningSetup(task=options.task, planner=planner, objective="state", weights=StepWeights())
    task, model = get_task(options.task), load_judged(options.checkpoint, setup)
    assert isinstance(model, JudgedWorldModel)
    arena = Arena(task, image_size=model.image_size, camera=model.camera)
    pairs = evaluation_pairs(task.name, options.pairs, 0)
    for name in options.variants:
        model.dynamics.num_steps = 2 if name == "two steps" else 1
        agent = ModelAgent(model, planner, context=options.context, rolling=name == "rolling", clock=time.thread_time)
        with int8_weights() if name == "int8" else nullcontext():
            print(f"{name}: {run(agent, arena, task, pairs)}", flush=True)
    model.dynamics.num_steps = 1
    looks = watched(model, planner.num_elites)
    run(ModelAgent(model, planner, context=options.context), arena, task, pairs[: max(2, len(pairs) // 4)])
    half, quarter = np.mean([kept for look in looks for kept in look.kept], axis=0)
    print(f"pruning half-way: the better half holds {half:.2f} of the elites, the better quarter {quarter:.2f}")
    arena.close()


if __name__ == "__main__":
    main()
