"""Branch points: held-out states, the candidate actions judged at each, and what MuJoCo says they lead to.

At each of N states, from episodes that no training store holds, S candidates of H steps are replayed from the exact
physics state: a third recorded (its own continuation first, then stretches of other held-out episodes), a third
uniformly random, a third taken evenly from what the model's planner compared on its way to a goal drawn for this
state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console

from embodied_wm.evaluation.oracle import ObjectiveKind, model_objective
from embodied_wm.progress import Track
from embodied_wm.world_model import ImaginedDynamics, WorldModel
from planners.base import Planner
from planners.objectives import StepWeights
from sim.branch import Brancher
from sim.collect import collect
from sim.tasks.base import Task

HELD_OUT_SEED = 900_001
"""Seed of the episodes that branch points are drawn from; training collections must use another."""
SOURCES = ("recorded", "random", "planner")


@dataclass(frozen=True, kw_only=True)
class BranchPoint:
    """Hold one state, its candidates, and the truth about them.

    Attributes:
        frames: Context frames, uint8 [C, h, w, 3], the last one at the branch state.
        past_actions: Actions between them [C - 1, A].
        physics: Exact physics state at the last context frame.
        quantities: The task's quantities there [Q].
        goal_frame: Goal image of the planner's candidates.
        goal_quantities: True quantities of the goal [Q].
        actions: Candidates [S, H, A]; the first is the recorded continuation.
        sources: Where each candidate comes from, S entries of SOURCES.
        chosen: Index of the candidate that the planner chose.
        true_quantities: [S, H, Q] by MuJoCo.
        true_frames: [S, H, h, w, 3], rendered.
        contacts: [S, H], whether a contact that counts happened.
    """

    frames: np.ndarray
    past_actions: np.ndarray
    physics: np.ndarray
    quantities: np.ndarray
    goal_frame: np.ndarray
    goal_quantities: np.ndarray
    actions: np.ndarray
    sources: tuple[str, ...]
    chosen: int
    true_quantities: np.ndarray
    true_frames: np.ndarray
    contacts: np.ndarray


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
        """Raise ValueError unless the candidates divide into thirds."""
        if self.num_candidates < 3 or self.num_candidates % 3:
            raise ValueError(f"num_candidates={self.num_candidates} must be a multiple of 3: recorded, random, planner")


def _episodes(task: Task, world_model: WorldModel, config: BranchConfig, camera: str) -> list[dict[str, np.ndarray]]:
    size = world_model.config.tokenizer.image_size[0]
    episodes = collect(
        task.name,
        num_episodes=config.num_branch_points,
        seed=HELD_OUT_SEED,
        image_size=size,
        camera=camera,
        num_workers=1,
    )
    return [episode["features"] for episode in episodes]


def _candidates(
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


def branch_points(
    task: Task,
    world_model: WorldModel,
    planner: Planner,
    config: BranchConfig,
    *,
    objective: ObjectiveKind,
    weights: StepWeights,
    seed: int,
    console: Console | None = None,
) -> list[BranchPoint]:
    """Draw the branch points, let the model's planner add its candidates, and replay all in MuJoCo.

    Args:
        task: The task.
        world_model: The model that is judged; its planner's candidates are judged with it.
        planner: The planner, as in closed-loop use; its horizon may be shorter than H (the rest is zero action).
        config: How much.
        objective: What the planner minimises.
        weights: How much each imagined step counts for it.
        seed: Draws states, goals and random candidates.
        console: Where progress is shown.
    """
    camera = world_model.embodiment.camera.removeprefix("observation.images.")
    episodes = _episodes(task, world_model, config, camera)
    size = world_model.config.tokenizer.image_size
    renderer = task.renderer(size[0], size[1], camera)
    brancher = Brancher(task)
    points = []
    total = config.num_branch_points
    with Track(f"branch {task.name}", total, unit="states", console=console) as track:
        for index, episode in enumerate(episodes):
            rng = np.random.default_rng([seed, index])
            time = int(rng.integers(config.context - 1, len(episode["action"]) - config.horizon))
            physics = episode["sim.physics"][time]
            goal = task.sample_goal(task.model, physics, rng)
            goal_frame = renderer.render_states(goal[None])[0]
            first = time - config.context + 1
            frames = episode[world_model.embodiment.camera][first : time + 1]
            past_actions = episode["action"][first:time]
            actions = _candidates(rng, episodes, (index, time), config)
            planned, chosen = _planner_candidates(
                world_model,
                planner,
                (frames, past_actions),
                model_objective(objective, world_model, task, goal_frame, weights),
                config,
                seed=seed + index,
            )
            actions = np.concatenate([actions, planned])
            truth = brancher(physics, actions)
            flat = truth.states.reshape(-1, truth.states.shape[-1])
            third = config.num_candidates // 3
            points.append(
                BranchPoint(
                    frames=frames,
                    past_actions=past_actions,
                    physics=physics,
                    quantities=task.state_quantities(physics),
                    goal_frame=goal_frame,
                    goal_quantities=task.state_quantities(goal),
                    actions=actions,
                    sources=tuple(source for source in SOURCES for _ in range(third)),
                    chosen=2 * third + chosen,
                    true_quantities=truth.quantities,
                    true_frames=renderer.render_states(flat).reshape(*truth.states.shape[:2], *size, 3),
                    contacts=truth.contacts,
                )
            )
            track.advance()
    renderer.close()
    brancher.close()
    return points


def _planner_candidates(
    world_model: WorldModel,
    planner: Planner,
    seen: tuple[np.ndarray, np.ndarray],
    objective: object,
    config: BranchConfig,
    *,
    seed: int,
) -> tuple[np.ndarray, int]:
    """Plan once and return an even sample of what was compared, the chosen plan among it: ([S/3, H, A], its index)."""
    context = world_model.prefill(torch.from_numpy(seen[0]), torch.from_numpy(seen[1]))
    dynamics = ImaginedDynamics(world_model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    plan = planner.plan(dynamics, context, objective, generator=generator)  # pyright: ignore[reportArgumentType]
    third = config.num_candidates // 3
    rows = torch.linspace(0, len(plan.candidates) - 1, third - 1).round().long()
    sample = torch.cat([plan.actions[None], plan.candidates[rows]])[:, : config.horizon]
    padded = torch.zeros(third, config.horizon, sample.shape[-1])
    padded[:, : sample.shape[1]] = sample
    return padded.numpy(), 0
