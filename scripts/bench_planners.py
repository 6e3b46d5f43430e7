"""Compare all planners at an equal number of imagined sequences.

    python scripts/bench_planners.py analytic            problems whose optimum is known: cost over the optimum's
    python scripts/bench_planners.py reach push          tasks, with MuJoCo as the model: success, and milliseconds

Analytic problems: `quadratic` (a target partly outside the bounds), `double_integrator` (a point mass to rest; the
optimum is the Riccati recursion's), `detour` (round a hill on one side or the other, two optima, and between them a
straight way that no slope leads away from). Every plan starts from nothing. Tasks run in closed loop, each decision
from the last plan. Times are by the clock of a shared machine; costs and successes do not depend on it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_wm.evaluation.agents import OracleAgent
from embodied_wm.evaluation.planning import Arena
from embodied_wm.evaluation.statistics import wilson
from planners import (
    CEM,
    ICEM,
    MPPI,
    Gradient,
    Knots,
    Objective,
    Plan,
    Planner,
    Polished,
    PredictiveSampling,
    RandomShooting,
    Searcher,
    StepWeights,
    TreeSearch,
)
from sim.manifest import evaluation_pairs
from sim.tasks import get_task


@dataclass
class PointMass:
    """Move a point: `order` 1 adds actions to its place, 2 to its velocity. The context is the start."""

    order: int
    bound: float
    action_size: int = 2
    action_low: Tensor = field(init=False)
    action_high: Tensor = field(init=False)
    dt_s: float = 0.5

    def __post_init__(self) -> None:
        """Set the bounds."""
        self.action_high = torch.full((self.action_size,), self.bound, dtype=torch.float64)
        self.action_low = -self.action_high

    def imagine(self, context: Tensor, actions: Tensor) -> Tensor:
        """Return places [S, H, 2], or places and velocities [S, H, 4]."""
        if self.order == 1:
            return context + actions.cumsum(1)
        place, velocity = context.chunk(2)
        velocities = velocity + self.dt_s * actions.cumsum(1)
        return torch.cat([place + self.dt_s * velocities.cumsum(1), velocities], dim=-1)

    def imagine_batch(self, contexts: list[Tensor], actions: Tensor) -> Tensor:
        """Return what `imagine` gives, [B, S, H, ...]."""
        return torch.stack([self.imagine(*each) for each in zip(contexts, actions, strict=True)])


@dataclass(frozen=True)
class Problem:
    """A problem with a known optimum.

    Attributes:
        dynamics: What is planned with.
        start: Its context.
        objective: What is minimised.
        optimum: An optimal sequence [H, A]; its mirror image may be another.
    """

    dynamics: PointMass
    start: Tensor
    objective: Objective
    optimum: Tensor

    def cost(self, actions: Tensor) -> float:
        """Return the cost of a sequence [H, A]."""
        return float(self.objective(self.dynamics.imagine(self.start, actions[None]), actions[None])[0])


def quadratic(horizon: int) -> Problem:
    """Ask for actions that go round a circle, of which a part is out of bounds."""
    angle = torch.arange(horizon, dtype=torch.float64)
    target = torch.stack([1.3 * angle.sin(), 0.7 * angle.cos()], dim=-1)
    return Problem(
        PointMass(1, 1.0),
        torch.zeros(2, dtype=torch.float64),
        lambda _, actions: 1.0 + (actions - target).square().sum((1, 2)),
        target.clamp(-1.0, 1.0),
    )


def double_integrator(horizon: int) -> Problem:
    """Bring a moving point to rest at the origin; the optimum follows from the finite-horizon Riccati recursion."""
    dynamics = PointMass(2, 3.0)
    start = torch.tensor([1.0, -1.0, 0.0, 0.2], dtype=torch.float64)
    eye, none = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    transition = torch.cat([torch.cat([eye, dynamics.dt_s * eye], 1), torch.cat([none, eye], 1)])
    control = torch.cat([dynamics.dt_s**2 * eye, dynamics.dt_s * eye])
    to_go = torch.eye(4, dtype=torch.float64)
    gains: list[Tensor] = []
    for _ in range(horizon):
        inner = eye + control.T @ to_go @ control
        gains.append(torch.linalg.solve(inner, control.T @ to_go @ transition))
        to_go = torch.eye(4, dtype=torch.float64) + transition.T @ to_go @ (transition - control @ gains[-1])
    state, actions = start, []
    for gain in reversed(gains):
        actions.append(-gain @ state)
        state = transition @ state + control @ actions[-1]
    return Problem(
        dynamics,
        start,
        lambda states, actions: states.square().sum((1, 2)) + actions.square().sum((1, 2)),
        torch.stack(actions),
    )


def detour(horizon: int) -> Problem:
    """Go round a hill in short steps; the optimum is solved to rounding, from a path above it."""
    start, goal = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    dynamics = PointMass(1, 1.0)

    def objective(states: Tensor, actions: Tensor) -> Tensor:
        length = horizon * actions.square().sum((1, 2)) / 4
        height = torch.exp(-states.square().sum(-1) / (2 * 0.3**2)).sum(1)
        return length + 3 * height + 5 * (states[:, -1] - goal).square().sum(-1)

    angle = torch.linspace(torch.pi, 0, horizon + 1, dtype=torch.float64)
    path = torch.stack([angle.cos(), 0.8 * angle.sin()], dim=-1)
    actions = path.diff(dim=0).requires_grad_()
    solver = torch.optim.LBFGS([actions], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        cost = objective(dynamics.imagine(start, actions[None]), actions[None])[0]
        cost.backward()
        return cost

    solver.step(closure)
    return Problem(dynamics, start, objective, actions.detach())


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "quadratic": quadratic,
    "double_integrator": double_integrator,
    "detour": detour,
}


def line_up(horizon: int, num_candidates: int, num_iterations: int) -> dict[str, Searcher]:
    """Return every planner, set to imagine about num_candidates x num_iterations sequences.

    What is imagined may differ by the last mean and by the warm start of splines: one each.
    """
    total = num_candidates * num_iterations
    elites = max(2, num_candidates // 8)
    cem = CEM(horizon=horizon, num_candidates=num_candidates, num_iterations=num_iterations, num_elites=elites)
    icem = _icem(horizon, total, num_iterations)
    common: dict[str, Any] = {"horizon": horizon, "num_candidates": num_candidates, "num_iterations": num_iterations}
    knots = (horizon + 1) // 2
    steps = max(1, total // 4 // 4)
    first = CEM(
        horizon=horizon,
        num_candidates=max(8, num_candidates * 3 // 4),
        num_iterations=num_iterations,
        num_elites=max(2, elites * 3 // 4),
    )
    return {
        "random shooting": RandomShooting(**common),
        "predictive sampling": PredictiveSampling(**common),
        "predictive sampling, cubic": Knots(
            planner=PredictiveSampling(**{**common, "horizon": knots}), horizon=horizon, interpolation="cubic"
        ),
        "CEM": cem,
        "CEM, linear knots": Knots(
            planner=CEM(**{**common, "horizon": knots}, num_elites=elites), horizon=horizon, interpolation="linear"
        ),
        "iCEM": icem,
        "MPPI": MPPI(**common),
        "tree search": TreeSearch(
            horizon=horizon, num_candidates=max(8, num_candidates // 4), num_iterations=4 * num_iterations
        ),
        "gradient": Gradient(horizon=horizon, num_candidates=8, num_iterations=total // 8),
        "CEM, then gradient": Polished(
            planner=first, polish=Gradient(horizon=horizon, num_candidates=4, num_iterations=steps)
        ),
    }


def _icem(horizon: int, total: int, num_iterations: int) -> ICEM:
    """Return the largest iCEM that imagines at most `total` sequences."""
    count = total
    while True:
        planner = ICEM(
            horizon=horizon,
            num_candidates=count,
            num_iterations=num_iterations,
            num_elites=max(2, count // 10),
        )
        if planner.num_sequences <= total:
            return planner
        count -= 1


def analytic(num_seeds: int, horizon: int, num_candidates: int, num_iterations: int) -> None:
    """Print the median over seeds of cost / optimal cost - 1, and milliseconds per plan."""
    problems = {name: make(horizon) for name, make in PROBLEMS.items()}
    planners = line_up(horizon, num_candidates, num_iterations)
    print(f"\n{num_seeds} seeds, horizon {horizon}, about {num_candidates * num_iterations} sequences a plan")
    print(f"{'planner':28}{'sequences':>10}" + "".join(f"{name:>20}" for name in problems) + f"{'ms':>8}")
    for name, planner in planners.items():
        excess: dict[str, list[float]] = {problem: [] for problem in problems}
        seconds: list[float] = []
        for seed in range(num_seeds):
            for key, problem in problems.items():
                began = time.perf_counter()
                plan = plan_for(planner, problem, seed)
                seconds.append(time.perf_counter() - began)
                excess[key].append(plan.cost / problem.cost(problem.optimum) - 1)
        shown = "".join(f"{100 * statistics.median(values):>19.2f}%" for values in excess.values())
        print(f"{name:28}{planner.num_sequences:>10}{shown}{1e3 * statistics.median(seconds):>8.1f}", flush=True)


def plan_for(planner: Planner, problem: Problem, seed: int) -> Plan:
    """Return the plan for a problem."""
    generator = torch.Generator().manual_seed(seed)
    return planner.plan(problem.dynamics, problem.start, problem.objective, generator=generator)


def on_task(name: str, num_pairs: int, only: str) -> None:
    """Print success at the end of the episode, with its 95% interval, and the median milliseconds of a decision."""
    from embodied_wm import cli

    composed, _ = cli.compose_config("benchmark_planning", {"task": name, "dynamics": "oracle"})
    settings = cli.instantiate_config(composed)["planner"]
    task = get_task(name)
    pairs = evaluation_pairs(name, num_pairs, 0)
    arena = Arena(task, image_size=(64, 64), camera=task.cameras[0])
    print(f"\n{name}: {num_pairs} episodes, horizon {settings.horizon}, MuJoCo as the model")
    print(f"{'planner':28}{'sequences':>10}{'success':>10}{'95% interval':>16}{'cost (cm)':>11}{'ms':>8}")
    for planner_name, planner in line_up(settings.horizon, settings.num_candidates, settings.num_iterations).items():
        if "gradient" in planner_name or only not in planner_name:
            continue
        agent = OracleAgent(task, planner, StepWeights(), num_threads=1)
        costs = np.array([arena.run(agent, pair)[0][-1] for pair in pairs])
        rate = wilson(int((costs <= task.tolerance_m).sum()), num_pairs)
        low, high = rate["ci95"]
        print(
            f"{planner_name:28}{planner.num_sequences:>10}{rate['value']:>10.2f}{f'[{low:.2f}, {high:.2f}]':>16}"
            f"{100 * costs.mean():>11.2f}{1e3 * statistics.median(agent.seconds):>8.1f}",
            flush=True,
        )
    arena.close()


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="analytic, or names of tasks")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the analytic problems")
    parser.add_argument("--pairs", type=int, default=30, help="start and goal pairs of a task")
    parser.add_argument("--horizon", type=int, default=8, help="planned steps of the analytic problems")
    parser.add_argument("--candidates", type=int, default=128, help="sequences of an iteration there")
    parser.add_argument("--iterations", type=int, default=6, help="iterations there")
    parser.add_argument("--only", default="", help="part of a planner's name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for what in given.what:
        if what == "analytic":
            analytic(given.seeds, given.horizon, given.candidates, given.iterations)
        else:
            on_task(what, given.pairs, given.only)


if __name__ == "__main__":
    main()
