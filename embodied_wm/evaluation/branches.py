"""Branch points: held-out states, the candidate actions judged at each, and what MuJoCo says they lead to.

At each of N states, from episodes that no training store holds, S candidates of H steps are replayed from the exact
physics state: a third recorded (its own continuation first, then stretches of other held-out episodes), a third
uniformly random, a third taken evenly from what the model's planner compared on its way to a goal drawn for this
state. All but the planner's third depends on the task, the camera and the seed alone, so every model meets the same.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_wm.data.cameras import side_by_side
from embodied_wm.ranges import check_counts
from planners.base import Dynamics, Objective, Plan, Planner
from sim.branch import Brancher
from sim.collect import collect
from sim.tasks.base import Task

HELD_OUT_SEED = 900_001
"""Seed of the episodes that branch points are drawn from; training collections must use another."""
DRAWS_PER_STATE = 20
"""After so many episodes for each state asked for, an environment is taken to end them too early."""
SOURCES = ("recorded", "random", "planner")


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """Say how much is judged.

    Attributes:
        num_branch_points: N.
        num_candidates: S, a multiple of 3.
        horizon: H.
        context: C frames that the model sees.
    """

    num_branch_points: int = 64
    num_candidates: int = 48
    horizon: int = 8
    context: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError unless the candidates divide into thirds and there is something to see and to judge."""
        if self.num_candidates < 6 or self.num_candidates % 3:
            raise ValueError(
                f"num_candidates={self.num_candidates}: expected a multiple of 3, and at least two of each kind: "
                "recorded, random, planner"
            )
        check_counts(num_branch_points=self.num_branch_points, horizon=self.horizon, context=self.context)


@dataclass(frozen=True, kw_only=True)
class BranchStart:
    """Hold one state, its goal, and the candidates that do not depend on the model.

    Attributes:
        frames: Context frames, uint8 [C, h, w, 3], the last one at the branch state.
        past_actions: Actions between them [C - 1, A].
        context_physics: Physics states at the context frames [C, nstate]; only what a robot feels may be taken of them.
        earlier_frames: Frames of the episode before the context, uint8 [N, h, w, 3], for models that remember.
        earlier_physics: Physics states at those [N, nstate].
        physics: Exact physics state at the last context frame.
        quantities: The task's quantities there [Q].
        touching: Whether a contact that counts happened in the step to that state.
        goal_frame: Goal image of the planner's candidates.
        goal_physics: Physics state of the goal.
        goal_quantities: True quantities of the goal [Q].
        actions: Recorded and random candidates [2S/3, H, A]; the first is the recorded continuation.
    """

    frames: np.ndarray
    past_actions: np.ndarray
    context_physics: np.ndarray
    earlier_frames: np.ndarray
    earlier_physics: np.ndarray
    physics: np.ndarray
    quantities: np.ndarray
    touching: bool
    goal_frame: np.ndarray
    goal_physics: np.ndarray
    goal_quantities: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BranchPoint:
    """Hold all candidates of one state, and the truth about them.

    Attributes:
        start: The state and its goal.
        actions: Candidates [S, H, A].
        sources: Where each candidate comes from, S entries of SOURCES.
        chosen: Index of the candidate that the planner chose.
        true_states: Physics states [S, H, nstate].
        true_quantities: [S, H, Q] by MuJoCo.
        true_frames: [S, H, h, w, 3], rendered.
        contacts: [S, H], whether a contact that counts happened.
    """

    start: BranchStart
    actions: np.ndarray
    sources: tuple[str, ...]
    chosen: int
    true_states: np.ndarray
    true_quantities: np.ndarray
    true_frames: np.ndarray
    contacts: np.ndarray


def _recorded_and_random(
    rng: np.random.Generator, episodes: Sequence[dict[str, np.ndarray]], own: tuple[int, int], config: BranchConfig
) -> np.ndarray:
    """Return the recorded and the random thirds, [2S/3, H, A]."""
    third, horizon = config.num_candidates // 3, config.horizon
    index, time = own
    recorded = [episodes[index]["action"][time : time + horizon]]
    while len(recorded) < third:
        other = episodes[int(rng.integers(len(episodes)))]["action"]
        start = int(rng.integers(len(other) - horizon))
        recorded.append(other[start : start + horizon])
    random = rng.uniform(-1.0, 1.0, size=(third, horizon, recorded[0].shape[-1]))
    return np.concatenate([np.stack(recorded), random]).astype(np.float32)


def _held_out_episodes(
    task: Task, config: BranchConfig, *, image_size: int, camera: str
) -> list[dict[str, np.ndarray]]:
    """Collect an episode for every state; where an environment ends some too early, further ones take their place."""
    wanted = config.num_branch_points
    most = wanted if task.environment is None else DRAWS_PER_STATE * wanted
    kept: list[dict[str, np.ndarray]] = []
    longest = 0
    for episode in collect(
        task.name, num_episodes=most, seed=HELD_OUT_SEED, image_size=image_size, camera=camera, num_workers=1
    ):
        rows = len(episode["features"]["action"])
        longest = max(longest, rows)
        if config.context + config.horizon <= rows:
            kept.append(episode["features"])
        if len(kept) == wanted:
            return kept
    few = f" ({len(kept)} of {most} are as long, of {wanted} that are needed)" if task.environment else ""
    raise ValueError(
        f"context={config.context} and horizon={config.horizon} do not fit in episodes of {longest} rows{few}; lower "
        "one of them"
    )


def branch_starts(
    task: Task, config: BranchConfig, *, image_size: tuple[int, int], camera: str, seed: int, stride: int = 1
) -> Iterator[BranchStart]:
    """Draw the states, their goals, and the candidates that do not depend on a model; the same ones every time.

    Args:
        task: The task.
        config: How much.
        image_size: Height and width of frames.
        camera: Camera of the frames.
        seed: Draws states, goals and random candidates.
        stride: Frames of data from one that the model looks at to the next; it is given as many more, as far back as
            the episode goes.

    Raises:
        ValueError: If the context and the horizon do not fit in an episode.
    """
    episodes = _held_out_episodes(task, config, image_size=image_size[0], camera=camera)
    renderer = task.renderer(*image_size, camera)
    for index, episode in enumerate(episodes):
        rng = np.random.default_rng([seed, index])
        time = int(rng.integers(config.context - 1, len(episode["action"]) - config.horizon))
        physics = episode["sim.physics"][time]
        goal = task.sample_goal(task.model, physics, rng)
        first = max(0, time - (config.context - 1) * stride)
        frames = side_by_side(episode.__getitem__, f"observation.images.{camera}")
        yield BranchStart(
            frames=frames[first : time + 1],
            earlier_frames=frames[:first],
            earlier_physics=episode["sim.physics"][:first],
            past_actions=episode["action"][first:time],
            context_physics=episode["sim.physics"][first : time + 1],
            physics=physics,
            quantities=task.state_quantities(physics),
            touching=bool("sim.contact" in episode and episode["sim.contact"][time, 0]),
            goal_frame=renderer.render_states(goal[None])[0],
            goal_physics=goal,
            goal_quantities=task.state_quantities(goal),
            actions=_recorded_and_random(rng, episodes, (index, time), config),
        )
    renderer.close()


class _Replayer:
    """Replays candidates in MuJoCo and renders them; to be used by one thread alone, where its OpenGL context lives."""

    def __init__(self, task: Task, image_size: tuple[int, int], camera: str) -> None:
        self.brancher = Brancher(task, num_threads=1)
        self.renderer = task.renderer(*image_size, camera)

    def __call__(self, start: BranchStart, planned: np.ndarray, chosen: int) -> BranchPoint:
        actions = np.concatenate([start.actions, planned])
        truth = self.brancher(start.physics, actions)
        shape = truth.states.shape
        frames = self.renderer.render_states(truth.states.reshape(-1, shape[-1]))
        return BranchPoint(
            start=start,
            actions=actions,
            sources=tuple(np.repeat(SOURCES, len(planned)).tolist()),
            chosen=len(start.actions) + chosen,
            true_states=truth.states,
            true_quantities=truth.quantities,
            true_frames=frames.reshape(*shape[:2], *frames.shape[1:]),
            contacts=truth.contacts,
        )

    def close(self) -> None:
        self.brancher.close()
        self.renderer.close()


def branch_points(
    task: Task,
    starts: Iterator[BranchStart],
    plan: Callable[[BranchStart], tuple[np.ndarray, int]],
    *,
    image_size: tuple[int, int],
    camera: str,
) -> Iterator[BranchPoint]:
    """Complete starts by the planner's candidates and replay all, one point ahead of whoever reads, in a thread.

    Args:
        task: The task.
        starts: From `branch_starts`.
        plan: What gives the planner's candidates [S/3, H, A] of a start, and the index of the chosen one.
        image_size: Height and width of frames.
        camera: Camera of the frames.
    """
    with ThreadPoolExecutor(1, "replay") as pool:
        replay = pool.submit(_Replayer, task, image_size, camera).result()
        try:
            ahead: Future[BranchPoint] | None = None
            for start in starts:
                upcoming = pool.submit(replay, start, *plan(start))
                if ahead is not None:
                    yield ahead.result()
                ahead = upcoming
            if ahead is not None:
                yield ahead.result()
        finally:
            pool.submit(replay.close).result()


def planner_candidates(
    dynamics: Dynamics, planner: Planner, context: Any, objective: Objective, config: BranchConfig, *, seed: int
) -> tuple[np.ndarray, int]:
    """Plan once and return an even sample of what was compared, the chosen plan first: ([S/3, H, A], its index).

    The planner is as in closed-loop use; where its horizon is shorter than H, the rest is zero action.
    """
    plan = planner.plan(dynamics, context, objective, generator=torch.Generator().manual_seed(seed))
    third = config.num_candidates // 3
    sample = compared(plan, third)[:, : config.horizon]
    padded = torch.zeros(third, config.horizon, sample.shape[-1])
    padded[:, : sample.shape[1]] = sample
    return padded.numpy(), 0


def compared(plan: Plan, count: int) -> Tensor:
    """Return `count` sequences [count, H, A]: what a plan chose, then an even sample of what it was compared with."""
    rows = torch.linspace(0, len(plan.candidates) - 1, count - 1).round().long()
    return torch.cat([plan.actions[None], plan.candidates[rows.to(plan.candidates.device)]]).cpu()
