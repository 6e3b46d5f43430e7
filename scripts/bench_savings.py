"""What would make a decision cheaper at equal success: the same pairs of start and goal, one saving after another.

    python scripts/bench_savings.py runs/train/LATEST/model --task reach --pairs 20
    python scripts/bench_savings.py pretrained:push --task push --horizon 8 --int8
    python scripts/bench_savings.py pretrained:push --task push --horizon 8 --compiled
    python scripts/bench_savings.py pretrained:push --task push --horizon 8 --choose mean --candidates 64 \
        --batches 1 4 16

Each variant prints success and the processor time of a decision (one thread, so that a busy machine does not count).
`prefilled` is what benchmarks do; `rolling` rolls the context on with each frame; `two steps` denoises twice;
`scheduled` twice in the last of three searches alone; `int8` imagines with `precision=int8`. The last line is for
pruning candidates half-way: of those that CEM kept as elites, how many were among the better half, or quarter, when
only half of the horizon had been imagined.

On `reach`, a nano model, a busy machine: `rolling` 1.00 of 16 pairs like `prefilled`, in 110 and 107 ms. Pruning the
worse half half-way would lose 7% of the elites for at most a quarter of the work (in the three searches of a decision),
pruning to a quarter 32%: left out (`planners.cem` has what it did to plans on `push`).

`--int8`, imagination alone, alternately with fp32 (one thread, processor time): 1.03, 0.81 and 0.85 of its 7, 13 and 58
ms on `push` at 32, 96 and 512 candidates, 0.82, 0.60 and 0.70 of 11, 22 and 114 ms on `push_t`, latents 0.4% and 0.2%
off; by `scripts/sizes.py --imagine 256 --precision int8` 110,000 and 116,000 candidate-steps/s instead of 73,000 and
69,000 with untrained `nano`, 1,420 instead of 450 with `small`. A decision of `push_t` takes 45 instead of 61 ms
(`scripts/bench_anytime.py`, 64x3, 30 pairs, beside other jobs: 0.97 and 0.93 solved); one of `push`, few candidates of
a narrow model, gains nothing (64x2, 100 pairs: 24.4 and 23.8 ms, 1.00 and 0.99 solved). That is
`embodied_wm.predictor.int8`: torch's `_int_mm` takes an eighth of the time of a product of fp32 on this CPU (AVX-512
VNNI; 56 against 451 microseconds for 512 x 128 by 128 x 384), rounding what goes in and scaling what comes out as much
again. The int8 of torch's dynamic quantisation, which was tried before, is 1.2 to 1.8 times as fast as fp32 in
products, and won nothing in a decision. torchao 0.18 calls the same `_int_mm`: products in 0.79 and 1.32 of the time of
fp32 with `nano`, 0.34 and 0.69 with `small` (512 and 1280 tokens), and in 0.35, 0.26, 0.16 and 0.17 once compiled; with
weights alone in int8 0.97 to 1.11.

Denoising steps, on the `push` model that ships (`--task push --horizon 8 --choose mean --candidates 64 --pairs 20
--variants prefilled "two steps" scheduled`): success 0.95 (0.76 to 0.99) in 53 ms with one step, in 84 ms with two, in
59 ms with one, one and two. The model that shipped before had 32, 33 and 34 of 34 pairs, in 177, 262 and 191 ms. No
difference that shows: planning takes one step everywhere, there is nothing to take away from the early searches, and
hence no schedule. Nor can features kept from one denoising step for the next win anything: there is no next one, as one
step is as good as four (0.12 dB [0.06, 0.18] better, eight frames ahead on `push`, by `scripts/bench_drift.py`).

`--compiled`, imagination alone, every pass through the network by torch.compile for its fixed shapes, alternately with
the same without (`push`, one thread, processor time, two runs): 0.82 and 0.83 of 9 ms at 32 candidates, 0.81 and 0.83
of 17 ms at 96, 0.73 and 0.73 of 70 ms at 512, and the same latents to 2e-7. Left out: it needs a C++ compiler, and one
to two minutes for each number of candidates and of context frames, which pay after 4,000 searches of 512 candidates
or after 90,000 of 32.

`--batches`, plans in one pass (`planners.plan_batch`) against one environment after the other, contexts given, `push`,
64 candidates three times, 8 steps, one thread, processor time, three runs: for 1 environment 19 to 22 decisions/s both
ways, for 4 together 29 to 30 against 20 to 21, for 16 together 33 to 34 against 19 to 22; the plans are the same.

int8 keys and values, of a prototype that is not kept (a byte each and a scale per token and head, made where they are
written and undone where they are read; one thread, ratios within one run), win nothing on a CPU. The candidates' own:
1.08 times the time of imagination on `push` (96 candidates, 8 and 12 frames), 0.99 with `small` (32 candidates, 8
frames). The context's: 1.02 and 1.02. They are exact enough (latents on `push` change by under 0.1%) and take a quarter
of the memory, but that is 2.7 MB for 96 candidates of `push` to begin with, and torch has no batched product of int8
matrices.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.judged import JudgedModel, JudgedWorldModel
from embodied_wm.evaluation.lineup import PlanningSetup, load_judged
from embodied_wm.evaluation.planning import Arena
from embodied_wm.evaluation.speed import imagination_pair, median_seconds
from embodied_wm.evaluation.statistics import wilson
from embodied_wm.hub import fetch
from embodied_wm.predictor import extension
from embodied_wm.predictor.int8 import set_precision
from embodied_wm.world_model import WorldModel
from planners import CEM, Plan, StepWeights, plan_batch
from planners.base import Objective
from sim.manifest import evaluation_pairs
from sim.tasks import get_task
from sim.tasks.base import Task

VARIANTS = ("prefilled", "rolling", "two steps", "scheduled", "int8")
SCHEDULE = (1, 1, 2)
"""Denoising steps in each search of a decision, of the variant "scheduled"."""
TIMED = (32, 96, 512)
"""Candidates with which compiled and int8 imagination is timed."""


@contextmanager
def scheduled(model: JudgedWorldModel) -> Iterator[None]:
    """Let each search of a decision denoise by its own number of steps; a decision begins with its context."""
    prefill, imagine, steps = model.prefill, model.imagine, iter(SCHEDULE)

    def begin(*known: Tensor) -> Any:
        nonlocal steps
        steps = iter(SCHEDULE)
        return prefill(*known)

    def search(context: Any, actions: Tensor) -> Tensor:
        model.dynamics.num_steps = next(steps, SCHEDULE[-1])  # the mean that CEM imagines last is as its last search
        return imagine(context, actions)

    with patch.object(model, "prefill", begin), patch.object(model, "imagine", search):
        yield


def compare_compiled(model: WorldModel, horizon: int, context: int) -> None:
    """Print how long imagination takes with every pass through the network compiled, over how long it takes without."""
    compiled = torch.compile(extension.Extension.__call__, dynamic=False)  # kernels for the shapes of every frame

    def div(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
        return out.copy_(left / right)  # inductor mistakes the strides of a quotient that is written to `out`

    def with_compiled(run: Callable[[], Tensor]) -> Tensor:
        with patch.object(extension.Extension, "__call__", compiled), patch.object(torch, "div", div):
            return run()

    torch._dynamo.config.recompile_limit = 64
    for num_candidates in TIMED:
        plain, _ = imagination_pair(model, num_candidates=num_candidates, context=context, horizon=horizon, num_steps=1)
        began = time.perf_counter()
        difference = float((with_compiled(plain) - plain()).abs().max() / plain().abs().max())
        compiling_s = time.perf_counter() - began
        runs = [plain, lambda plain=plain: with_compiled(plain)]
        before, after = median_seconds(runs, 15, time.process_time)
        print(
            f"compiled, {num_candidates} candidates: {after['value'] / before['value']:.2f} of "
            f"{1e3 * before['value']:.1f} ms, difference {difference:.0e}, {compiling_s:.0f} s to compile",
            flush=True,
        )


def compare_int8(model: WorldModel, horizon: int, context: int) -> None:
    """Print how long imagination takes with int8 weights, over how long it takes without."""

    def rounded(run: Callable[[], Tensor]) -> Tensor:
        set_precision(model.predictor.transformer, "int8")
        try:
            return run()
        finally:
            set_precision(model.predictor.transformer, "fp32")

    for num_candidates in TIMED:
        plain, _ = imagination_pair(model, num_candidates=num_candidates, context=context, horizon=horizon, num_steps=1)
        difference = float((rounded(plain) - plain()).norm() / plain().norm())
        before, after = median_seconds([plain, lambda plain=plain: rounded(plain)], 15, time.process_time)
        print(
            f"int8, {num_candidates} candidates: {after['value'] / before['value']:.2f} of "
            f"{1e3 * before['value']:.1f} ms, difference {difference:.1%}",
            flush=True,
        )


def compare_batches(model: JudgedWorldModel, planner: CEM, task: Task, sizes: list[int]) -> None:
    """Print decisions a second for several environments planned in one pass, and one after the other."""
    pairs = evaluation_pairs(task.name, max(sizes), 0)
    renderer = task.renderer(*model.image_size, model.camera)
    frames = torch.from_numpy(renderer.render_states(np.stack([start for start, _, _ in pairs])))
    goals = torch.from_numpy(renderer.render_states(np.stack([goal for _, goal, _ in pairs])))
    renderer.close()
    nothing = torch.zeros(0, task.action_size)
    contexts = [model.prefill(code[None], nothing) for code in model.encode(frames)]
    objectives = [model.objective(goal) for goal in goals]

    def together(size: int) -> list[Plan]:
        model.reseed(0)
        seeded = [torch.Generator().manual_seed(seed) for seed in range(size)]
        return plan_batch(planner, model.dynamics, contexts[:size], objectives[:size], generators=seeded)

    def in_turn(size: int) -> list[Plan]:
        plans = []
        for seed in range(size):
            model.reseed(0)
            generator = torch.Generator().manual_seed(seed)
            plans.append(planner.plan(model.dynamics, contexts[seed], objectives[seed], generator=generator))
        return plans

    for size in sizes:
        found = zip(together(size), in_turn(size), strict=True)
        difference = max(float((one.actions - other.actions).abs().max()) for one, other in found)
        runs = [lambda size=size: together(size), lambda size=size: in_turn(size)]
        rates = [size / each["value"] for each in median_seconds(runs, 5, time.process_time)]
        print(
            f"{size} environments: {rates[0]:.1f} decisions/s in one pass, {rates[1]:.1f} one after the other; plans "
            f"differ by {difference:.0e}",
            flush=True,
        )


class Halfway:
    """An objective that also looks at the first half of the horizon and counts whose elites that would have kept."""

    def __init__(self, objective: Objective, num_elites: int) -> None:
        self.objective, self.num_elites = objective, num_elites
        self.kept: list[tuple[float, float]] = []

    def __call__(self, trajectory: Tensor, actions: Tensor) -> Tensor:
        """Return the costs, as if nobody looked."""
        costs = self.objective(trajectory, actions)
        if len(costs) <= self.num_elites:  # the mean that CEM imagines last
            return costs
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
    parser.add_argument("checkpoint", help="folder of a model or run, pretrained:TASK, or OWNER/NAME")
    parser.add_argument("--task", default="reach")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=6)
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--choose", default="best", choices=["best", "mean"])
    parser.add_argument("--context", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--int8", action="store_true", help="time imagination with int8 weights, and no variants")
    parser.add_argument("--compiled", action="store_true", help="time imagination by torch.compile, and no variants")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[], help="environments that are planned for in one pass; no variants"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    planner = CEM(
        horizon=options.horizon,
        num_candidates=options.candidates,
        num_iterations=options.iterations,
        num_elites=8,
        choose=options.choose,
    )
    setup = PlanningSetup(task=options.task, planner=planner, objective="state", weights=StepWeights())
    task, model = get_task(options.task), load_judged(fetch(options.checkpoint), setup)
    assert isinstance(model, JudgedWorldModel)
    if options.batches:
        compare_batches(model, planner, task, options.batches)
    if options.compiled:
        compare_compiled(model.world_model, options.horizon, options.context)
    if options.int8:
        compare_int8(model.world_model, options.horizon, options.context)
    if options.batches or options.compiled or options.int8:
        return
    arena = Arena(task, image_size=model.image_size, camera=model.camera)
    pairs = evaluation_pairs(task.name, options.pairs, 0)
    for name in options.variants:
        model.dynamics.num_steps = 2 if name == "two steps" else 1
        agent = ModelAgent(model, planner, context=options.context, rolling=name == "rolling", clock=time.thread_time)
        set_precision(model.world_model.predictor.transformer, "int8" if name == "int8" else "fp32")
        with scheduled(model) if name == "scheduled" else nullcontext():
            print(f"{name}: {run(agent, arena, task, pairs)}", flush=True)
    model.dynamics.num_steps = 1
    set_precision(model.world_model.predictor.transformer, "fp32")
    looks = watched(model, planner.num_elites)
    run(ModelAgent(model, planner, context=options.context), arena, task, pairs[: max(2, len(pairs) // 4)])
    half, quarter = np.mean([kept for look in looks for kept in look.kept], axis=0)
    print(f"pruning half-way: the better half holds {half:.2f} of the elites, the better quarter {quarter:.2f}")
    arena.close()


if __name__ == "__main__":
    main()
