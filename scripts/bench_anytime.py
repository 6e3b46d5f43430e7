"""Success and lateness of a world model's planner against its latency: the frontier of success by milliseconds.

Every budget, and every size of search (candidates x iterations of CEM, without a budget), meets the same pairs of start
and goal, alone and on one thread. On a machine that others use, too, `--clock cpu` counts the thread's own processor
time instead of time that passes, so that what is measured is the planner and not its neighbours; a robot's time is
`wall`.

    python scripts/bench_anytime.py runs/train/LATEST/model --task reach --budgets 10 20 40 --pairs 100
    python scripts/bench_anytime.py pretrained:push --task push --horizon 8 --choose mean --plans 96x3 64x2 32x2
"""

import argparse
import time
from typing import Literal, get_args

import numpy as np
import torch

from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.lineup import PlanningSetup, load_judged
from embodied_wm.evaluation.planning import LATE, Arena
from embodied_wm.evaluation.statistics import wilson
from embodied_wm.hub import fetch
from embodied_wm.predictor.transformer import Precision
from planners import CEM, Control, StepWeights
from sim.manifest import evaluation_pairs
from sim.tasks import get_task

NUM_ELITES = 8
"""As in configs/planner/cem.yaml."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def _planner(plan: str, horizon: int, choose: Literal["best", "mean"]) -> CEM:
    """Return the CEM of a size such as 96x3: candidates x iterations."""
    candidates, iterations = (int(number) for number in plan.split("x"))
    return CEM(
        horizon=horizon,
        num_candidates=candidates,
        num_iterations=iterations,
        num_elites=NUM_ELITES,
        choose=choose,
        imagine_mean=False,
    )


def main() -> None:
    """Print one line for each budget; the last has none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a model or run, pretrained:TASK, or OWNER/NAME")
    parser.add_argument("--task", default="reach")
    parser.add_argument("--budgets", type=float, nargs="*", default=[], help="milliseconds; each with the first plan")
    parser.add_argument("--plans", nargs="+", default=["48x3"], help="candidates x iterations")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=6)
    parser.add_argument("--choose", default="best", choices=["best", "mean"])
    parser.add_argument("--min-candidates", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    planners = {plan: _planner(plan, options.horizon, options.choose) for plan in options.plans}
    first = options.plans[0]
    setup = PlanningSetup(
        task=options.task,
        planner=planners[first],
        objective="state",
        weights=StepWeights(),
        precision=options.precision,
    )
    task, model = get_task(options.task), load_judged(fetch(options.checkpoint), setup)
    arena = Arena(task, image_size=model.image_size, camera=model.camera)
    pairs = evaluation_pairs(task.name, options.pairs, 0)
    print(f"{task.name}, {len(pairs)} pairs, {options.clock} clock")
    runs = [(first, budget) for budget in options.budgets] + [(plan, None) for plan in options.plans]
    for plan, budget_ms in runs:
        control = Control(budget_ms=budget_ms, min_candidates=options.min_candidates)
        agent = ModelAgent(model, planners[plan], control=control, clock=CLOCKS[options.clock])
        ends = np.array([arena.run(agent, pair)[0][-1] for pair in pairs])
        success = wilson(int((ends <= task.tolerance_m).sum()), len(ends))
        low, high = success["ci95"]
        ms = 1e3 * np.array(agent.seconds)
        compared = np.mean([decision.plan.num_imagined for decision in agent.record])
        line = f"success {success['value']:.2f} ({low:.2f} to {high:.2f}), {compared:.0f} candidates a decision, "
        line += f"median {np.median(ms):.1f} ms ("
        parts = ("encode_s", "imagine_s", "objective_s", "rest_s")
        spent = [1e3 * np.median([getattr(decision.times, part) for decision in agent.record]) for part in parts]
        line += ", ".join(f"{part[:-2]} {ms:.1f}" for part, ms in zip(parts, spent, strict=True)) + ")"
        if budget_ms is not None:
            late, p99 = float((ms > LATE * budget_ms).mean()), float(np.quantile(ms, 0.99)) / budget_ms
            empty = np.mean([decision.status == "warm_start" for decision in agent.record])
            line += f", p99 {p99:.2f} budgets, {late:.1%} later than {LATE}, {empty:.1%} without a search"
        print(f"{plan}, {'no budget' if budget_ms is None else f'{budget_ms:g} ms'}: {line}", flush=True)
    arena.close()


if __name__ == "__main__":
    main()
