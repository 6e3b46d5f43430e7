"""Closed-loop planning: PROTOCOL section 2. Every agent meets the same frozen pairs of start and goal.

Success is judged by the simulator's state at the *end* of the episode; `success_any` says whether the tolerance was met at any step.
`cpg` is the oracle's success minus the model's: the part of failure that is the model's fault.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from embodied_wm.evaluation.agents import Agent
from embodied_wm.evaluation.statistics import agresti_caffo, bootstrap_mean, bootstrap_quantile, wilson
from embodied_wm.progress import Track
from sim.branch import Brancher
from sim.manifest import evaluation_pairs
from sim.render import Renderer
from sim.tasks.base import Task

NUM_FILMED = 6


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Hold what one agent did on all pairs.

    Attributes:
        success: [N] bool, within tolerance at the end.
        success_any: [N] bool, within tolerance at any step.
        steps_to_success: [N], first step within tolerance; episode length + 1 where there was none.
        final_cost_m: [N], distance to the goal at the end.
        decision_seconds: Every decision's time.
        films: Frames of the first episodes, [NUM_FILMED, T + 1, h, w, 3]; empty for agents that see none.
        goals: Goal images of those.
    """

    success: np.ndarray
    success_any: np.ndarray
    steps_to_success: np.ndarray
    final_cost_m: np.ndarray
    decision_seconds: np.ndarray
    films: np.ndarray
    goals: np.ndarray


def run_episodes(
    task: Task,
    agent: Agent,
    name: str,
    *,
    num_episodes: int,
    seed: int,
    image_size: tuple[int, int],
    camera: str,
    console: Console | None = None,
) -> Episodes:
    """Run one agent on the first `num_episodes` pairs of the frozen list of `seed`."""
    pairs = evaluation_pairs(task.name, num_episodes, seed)
    brancher = Brancher(task, num_threads=1)
    renderer = Renderer(task.model, *image_size, camera) if agent.needs_frames else None
    costs, films, goals = [], [], []
    with Track(f"plan {task.name}: {name}", num_episodes, unit="episodes", console=console) as track:
        for start, goal, pair_seed in pairs:
            goal_frame = renderer.render_states(goal[None])[0] if renderer else None
            agent.begin(goal_frame, goal, pair_seed)
            physics, frames, states = start, [], [start]
            for _ in range(task.episode_steps):
                frame = renderer.render_states(physics[None])[0] if renderer else None
                action = np.asarray(agent.act(frame, physics), dtype=np.float32)
                physics = brancher(physics, action[None, None]).states[0, 0]
                states.append(physics)
                frames.append(frame)
            cost = task.cost(task.state_quantities(np.stack(states)), task.state_quantities(goal))
            costs.append(cost)
            if renderer and len(films) < NUM_FILMED:
                films.append(np.stack([*frames, renderer.render_states(physics[None])[0]]))
                goals.append(goal_frame)
            track.advance(1, f"success {np.mean([c[-1] <= task.tolerance_m for c in costs]):.2f}")
    if renderer:
        renderer.close()
    brancher.close()
    return _summarise(task, np.stack(costs), agent.seconds, films, goals)


def _summarise(
    task: Task, costs: np.ndarray, seconds: list[float], films: list[np.ndarray], goals: list[Any]
) -> Episodes:
    within = costs[:, 1:] <= task.tolerance_m
    never = task.episode_steps + 1
    return Episodes(
        success=within[:, -1],
        success_any=within.any(1),
        steps_to_success=np.where(within.any(1), within.argmax(1) + 1, never),
        final_cost_m=costs[:, -1],
        decision_seconds=np.asarray(seconds),
        films=np.stack(films) if films else np.zeros((0,)),
        goals=np.stack(goals) if goals else np.zeros((0,)),
    )


def measure_agents(runs: Mapping[str, Episodes], *, planned_steps: int, seed: int) -> dict[str, Any]:
    """Turn runs into PROTOCOL's keys; the agent "model" gives the plain keys, the others "<key>.<agent>".

    Args:
        runs: Agent name to its episodes; "model" and "oracle" define `cpg`.
        planned_steps: Candidates x iterations x horizon of one decision.
        seed: Seeds the bootstrap.
    """
    found: dict[str, Any] = {}
    for name, run in runs.items():
        end = "" if name == "model" else f".{name}"
        count = len(run.success)
        found[f"success{end}"] = wilson(int(run.success.sum()), count)
        found[f"success_any{end}"] = wilson(int(run.success_any.sum()), count)
        found[f"final_cost_m{end}"] = bootstrap_mean(run.final_cost_m, seed=seed)
        if run.success_any.any():
            found[f"steps_to_success{end}"] = bootstrap_mean(run.steps_to_success[run.success_any], seed=seed)
        if len(run.decision_seconds):
            found[f"seconds_per_decision{end}"] = bootstrap_quantile(run.decision_seconds, 0.5, seed=seed)
            found[f"seconds_per_decision_p95{end}"] = bootstrap_quantile(run.decision_seconds, 0.95, seed=seed)
    if "model" in runs:
        median = found["seconds_per_decision"]["value"]
        found["decisions_per_second"] = {"value": 1 / median, "ci95": None, "n": len(runs["model"].decision_seconds)}
        found["candidate_steps_per_decision"] = {"value": float(planned_steps), "ci95": None, "n": 1}
        if "oracle" in runs:
            model, oracle = runs["model"].success, runs["oracle"].success
            found["cpg"] = agresti_caffo(int(oracle.sum()), len(oracle), int(model.sum()), len(model))
    return found


