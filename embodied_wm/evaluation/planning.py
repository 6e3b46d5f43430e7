"""Closed-loop planning: PROTOCOL section 2. Every agent meets the same frozen pairs of start and goal.

Success is judged by the simulator's state at the *end* of the episode; `success_any` says whether the tolerance was
met at any step. `cpg` is the oracle's success minus the model's: the part of failure that is the model's fault.
"""

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from rich.console import Console

from embodied_wm.evaluation.agents import Agent, ModelAgent
from embodied_wm.evaluation.statistics import agresti_caffo, bootstrap_mean, bootstrap_quantile, estimate, wilson
from embodied_wm.progress import Track
from sim.branch import Brancher
from sim.manifest import evaluation_pairs
from sim.render import AnyRenderer
from sim.tasks import get_task
from sim.tasks.base import Task
from sim.workers import end_with_parent

NUM_FILMED = 6


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Hold what one agent did on all pairs.

    Attributes:
        success: [N] bool, within tolerance at the end.
        success_any: [N] bool, within tolerance at any step.
        steps_to_success: [N], first step within tolerance; episode length + 1 where there was none.
        final_cost_m: [N], distance to the goal at the end.
        films: Frames of the first episodes, [NUM_FILMED, T + 1, h, w, 3]; empty for agents that see none.
        goals: Goal images of those.
    """

    success: np.ndarray
    success_any: np.ndarray
    steps_to_success: np.ndarray
    final_cost_m: np.ndarray
    films: np.ndarray
    goals: np.ndarray


def run_pair(
    task: Task, agent: Agent, pair: tuple[np.ndarray, np.ndarray, int], brancher: Brancher, renderer: AnyRenderer | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Run one episode; return its costs [T + 1] in metres, its frames [T + 1, h, w, 3] and goal image, if rendered."""
    start, goal, pair_seed = pair
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
    film = np.stack([*frames, renderer.render_states(physics[None])[0]]) if renderer else None
    return cost, film, goal_frame


class Arena:
    """Runs agents of one task on pairs; keeps the simulation and the renderer."""

    def __init__(self, task: Task, *, image_size: tuple[int, int], camera: str) -> None:
        self.task, self.image_size, self.camera = task, image_size, camera
        self.brancher = Brancher(task, num_threads=1)
        self.renderer: AnyRenderer | None = None

    def run(self, agent: Agent, pair: tuple[np.ndarray, np.ndarray, int]) -> Any:
        """Run one pair; frames are rendered only for an agent that needs them."""
        if agent.needs_frames and self.renderer is None:
            self.renderer = self.task.renderer(*self.image_size, self.camera)
        return run_pair(self.task, agent, pair, self.brancher, self.renderer if agent.needs_frames else None)

    def close(self) -> None:
        """Free the simulation and the renderer."""
        self.brancher.close()
        if self.renderer:
            self.renderer.close()


_worker: dict[str, Any] = {}


def _start_worker(task_name: str, image_size: tuple[int, int], camera: str) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker["arena"] = Arena(get_task(task_name), image_size=image_size, camera=camera)
    _worker["agents"] = {}


def _work(name: str, make: Callable[[], Agent], pair: tuple[np.ndarray, np.ndarray, int]) -> Any:
    agents = _worker["agents"]
    if name not in agents:
        agents[name] = make()
    return _worker["arena"].run(agents[name], pair)


def run_agents(
    task: Task,
    agents: Mapping[str, Callable[[], Agent]],
    *,
    num_episodes: int,
    seed: int,
    image_size: tuple[int, int],
    camera: str,
    num_workers: int = 2,
    console: Console | None = None,
) -> dict[str, Episodes]:
    """Run every agent on the same frozen pairs, episodes in parallel processes of one thread each.

    Args:
        task: The task.
        agents: Name to what makes the agent (it is called in each worker, so it must be picklable).
        num_episodes: Length of the frozen list of pairs.
        seed: Its seed.
        image_size: Height and width of frames.
        camera: Camera of the frames.
        num_workers: Processes. Decisions are timed apart, by `time_decisions`.
        console: Where progress is shown.
    """
    pairs = evaluation_pairs(task.name, num_episodes, seed)
    task.renderer(*image_size, camera).close()  # a machine that cannot render says so here, not in a worker
    found: dict[str, Episodes] = {}
    with ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(task.name, image_size, camera),
    ) as pool:
        for name, make in agents.items():
            costs, films, goals = [], [], []
            with Track(f"plan {task.name}: {name}", num_episodes, unit="episodes", console=console) as track:
                for cost, film, goal in pool.map(_work, repeat(name), repeat(make), pairs):
                    costs.append(cost)
                    if film is not None and len(films) < NUM_FILMED:
                        films.append(film)
                        goals.append(goal)
                    track.advance(1, f"success {np.mean([c[-1] <= task.tolerance_m for c in costs]):.2f}")
            found[name] = _summarise(task, np.stack(costs), films, goals)
    return found


def time_decisions(
    task: Task, agent: Agent, *, num_episodes: int, seed: int, image_size: tuple[int, int], camera: str
) -> np.ndarray:
    """Return the seconds of every decision of an agent, alone and on one thread, after one warm-up episode.

    One thread is how a nano model decides fastest on two cores: 77 ms, against 86 ms on two spinning threads and 136 ms
    on two that sleep while they wait.
    """
    arena = Arena(task, image_size=image_size, camera=camera)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index, pair in enumerate(evaluation_pairs(task.name, num_episodes + 1, seed)):
            if index == 1:
                agent.seconds.clear()
                if isinstance(agent, ModelAgent):
                    agent.record.clear()
            arena.run(agent, pair)
    finally:
        torch.set_num_threads(threads)
        arena.close()
    return np.asarray(agent.seconds)


def _summarise(task: Task, costs: np.ndarray, films: list[np.ndarray], goals: list[Any]) -> Episodes:
    within = costs[:, 1:] <= task.tolerance_m
    never = task.episode_steps + 1
    return Episodes(
        success=within[:, -1],
        success_any=np.asarray(within.any(1)),
        steps_to_success=np.where(within.any(1), within.argmax(1) + 1, never),
        final_cost_m=costs[:, -1],
        films=np.stack(films) if films else np.zeros((0,)),
        goals=np.stack(goals) if goals else np.zeros((0,)),
    )


def measure_agents(
    runs: Mapping[str, Episodes],
    seconds: Mapping[str, np.ndarray],
    *,
    planned_steps: int,
    seed: int,
    budget_ms: float | None = None,
) -> dict[str, Any]:
    """Turn runs into PROTOCOL's keys; the agent "model" gives the plain keys, the others "<key>.<agent>".

    Args:
        runs: Agent name to its episodes; "model" and "oracle" define `cpg`.
        seconds: Agent name to the times of its decisions, from `time_decisions`.
        planned_steps: Candidates x iterations x horizon of one decision; a budget, which cuts searches, leaves it out.
        seed: Seeds the bootstrap.
        budget_ms: What the model's decisions may take; None where there is no limit.
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
    for name, times in seconds.items():
        end = "" if name == "model" else f".{name}"
        found[f"seconds_per_decision{end}"] = bootstrap_quantile(times, 0.5, seed=seed)
        found[f"seconds_per_decision_p95{end}"] = bootstrap_quantile(times, 0.95, seed=seed)
    if "model" in seconds:
        median = found["seconds_per_decision"]
        ends = None if median["ci95"] is None else [1 / end for end in reversed(median["ci95"])]
        found["decisions_per_second"] = estimate(1 / median["value"], ends, median["n"])
        if budget_ms is None:
            found["candidate_steps_per_decision"] = estimate(planned_steps, None, 1)
        else:
            found |= measure_budget(seconds["model"], budget_ms, seed=seed)
    if {"model", "oracle"} <= runs.keys():
        model, oracle = runs["model"].success, runs["oracle"].success
        found["cpg"] = agresti_caffo(int(oracle.sum()), len(oracle), int(model.sum()), len(model))
    return found


LATE = 1.2
"""Times the budget from which on a decision counts as late."""


def measure_budget(seconds: np.ndarray, budget_ms: float, *, seed: int) -> dict[str, Any]:
    """Return how decisions kept their budget: the 99th percentile over it, and the share of late ones."""
    shares = 1e3 * seconds / budget_ms
    return {
        "p99_over_budget": bootstrap_quantile(shares, 0.99, seed=seed),
        "late_decisions": wilson(int((shares > LATE).sum()), len(shares)),
    }
