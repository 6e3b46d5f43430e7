"""Episodes that a model's own planner makes, for refinement: where the search goes is where the model must be true.

One closed-loop episode with exploration noise, and beside it *branches*: at some of its states several sequences that
the planner compared are carried out from exactly the same physics state. A branch begins with the frames before that
state, so that it is a whole training window, and tells the model what its candidates would have led to, also those that
it was too optimistic about and those it never chose.

Where an environment ends its episode, episode and branches end with that state, as those of `sim.collect` do, and may
be shorter than a window.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from embodied_wm.data.cameras import camera_names
from embodied_wm.evaluation.agents import ModelAgent
from embodied_wm.evaluation.branches import compared
from embodied_wm.evaluation.judged import JudgedModel
from embodied_wm.types import Episode, FeatureSpec
from planners.base import Planner
from sim.branch import Brancher
from sim.collect import features
from sim.manifest import draw_pair
from sim.tasks.base import Task

EXPLORE_SEED = 2**40
"""Starts and goals are drawn from seeds beyond those of the pairs that planning is judged on."""
NOISE_CORRELATION = 0.5


@dataclass(frozen=True, kw_only=True)
class PlannedConfig:
    """Say what one round collects.

    Attributes:
        num_episodes: Closed-loop episodes.
        noise: Largest standard deviation of the noise on executed actions, in half action ranges; episodes go round
            from none to this.
        num_branch_points: States of every episode that are branched from; 0 collects closed-loop episodes alone.
        num_branches: Of the planner's candidates that are carried out at each, the chosen one first.
    """

    num_episodes: int = 24
    noise: float = 0.3
    num_branch_points: int = 4
    num_branches: int = 6

    def __post_init__(self) -> None:
        """Raise ValueError for counts below what makes sense."""
        if self.num_episodes < 1 or self.num_branch_points < 0 or self.num_branches < 2 or self.noise < 0:
            raise ValueError(
                f"got num_episodes={self.num_episodes}, noise={self.noise}, num_branch_points="
                f"{self.num_branch_points}, num_branches={self.num_branches}; expected at least 1, 0, 0 and 2"
            )


def planned_features(task: Task, model: JudgedModel) -> dict[str, FeatureSpec]:
    """Describe the features of the episodes: as `sim.collect` has them, with frames as the model sees them."""
    described = features(task, model.image_size[0], model.camera)
    described.pop("sim.reward", None)  # another's environment gives it while it steps; branches restore states
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in described.items()
    }
    cameras = camera_names(f"observation.images.{model.camera}")
    shape = (model.image_size[0], model.image_size[1] // len(cameras), 3)
    return specs | {camera: FeatureSpec(dtype="uint8", shape=shape) for camera in cameras}


@dataclass(frozen=True)
class _Walk:
    """Hold what happened in one closed-loop episode of T steps.

    Attributes:
        states: Physics states [T + 1, nstate].
        frames: [T + 1, h, w, 3].
        actions: Applied ones [T + 1, A]; the last is zero and was not applied.
        contacts: Whether a contact that counts happened in the step to each state [T + 1].
        plans: Of the times branched from: time to candidate sequences [N, H, A].
    """

    states: np.ndarray
    frames: np.ndarray
    actions: np.ndarray
    contacts: np.ndarray
    plans: Mapping[int, np.ndarray]


class PlannedEpisodes:
    """Make closed-loop episodes of a model's planner, with branches; use as a context manager."""

    def __init__(
        self,
        task: Task,
        model: JudgedModel,
        planner: Planner,
        config: PlannedConfig,
        *,
        context: int,
        min_rows: int,
        seed: int,
    ) -> None:
        """Prepare the simulation.

        Args:
            task: The task.
            model: What the planner imagines with.
            planner: The planner.
            config: How much.
            context: Frames that the model sees before it imagines.
            min_rows: Fewest rows of a branch that no environment ends sooner: a training window.
            seed: Of starts, goals and noise; episode i depends on (seed, i) and the model alone.

        Raises:
            ValueError: If an episode is too short for a branch of `min_rows`.
        """
        self.task, self.config, self.seed = task, config, seed
        self.past = max(context, min_rows - planner.horizon)
        if config.num_branch_points > task.episode_steps - self.past + 1:
            raise ValueError(
                f"{config.num_branch_points} branch points with {self.past} frames before each do not fit into "
                f"episodes of {task.episode_steps} steps; lower num_branch_points or sequence_length"
            )
        self.agent = ModelAgent(model, planner, context=context)
        self.model = model
        self.specs = planned_features(task, model)
        self.brancher = Brancher(task, num_threads=1)
        self.renderer = task.renderer(*model.image_size, model.camera)

    def __enter__(self) -> Self:
        """Return the maker of episodes itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the simulation and the renderer."""
        self.brancher.close()
        self.renderer.close()

    def episode(self, number: int) -> list[Episode]:
        """Return closed-loop episode `number` and its branches."""
        rng = np.random.default_rng([self.seed, number])
        scale = self.config.noise * (number % 4) / 3
        walk = self._walk(number, scale, rng)
        told = {"task": self.task.name, "seed": self.seed, "episode": number, "noise": scale}
        whole = self._episode(walk.states, walk.frames, walk.actions, walk.contacts, told | {"policy": "planned"})
        return [whole, *self._branches(walk, told | {"policy": "branch"})]

    def _walk(self, number: int, scale: float, rng: np.random.Generator) -> _Walk:
        task, config = self.task, self.config
        pair_seed = EXPLORE_SEED + 1_000_003 * self.seed + number
        physics, goal = draw_pair(task.name, pair_seed)
        self.agent.begin(self.renderer.render_states(goal[None])[0], goal, pair_seed % 2**31)
        latest = np.arange(self.past - 1, task.episode_steps)
        times = set(rng.choice(latest, config.num_branch_points, replace=False).tolist())
        low, high = self.model.action_low.cpu().numpy(), self.model.action_high.cpu().numpy()
        noise = rng.standard_normal(task.action_size)
        states, frames, actions, contacts, plans = [physics], [], [], [self._touching(physics)], {}
        for time in range(task.episode_steps):
            frames.append(self.renderer.render_states(physics[None])[0])
            planned = self.agent.act(frames[-1], physics)
            if time in times and self.agent.decision is not None:
                plans[time] = compared(self.agent.decision.plan, config.num_branches).numpy()
            fresh = rng.standard_normal(task.action_size)
            noise = NOISE_CORRELATION * noise + np.sqrt(1 - NOISE_CORRELATION**2) * fresh
            action = np.clip(planned + scale * noise * (high - low) / 2, low, high).astype(np.float32)
            self.agent.did(action)
            after = self.brancher(physics, action[None, None])
            physics = after.states[0, 0]
            states.append(physics)
            actions.append(action)
            contacts.append(bool(after.contacts[0, 0]))
            if task.has_ended(physics):
                break
        frames.append(self.renderer.render_states(physics[None])[0])
        actions.append(np.zeros_like(actions[-1]))
        return _Walk(np.stack(states), np.stack(frames), np.stack(actions), np.array(contacts), plans)

    def _branches(self, walk: _Walk, told: dict[str, Any]) -> Iterator[Episode]:
        for time, candidates in sorted(walk.plans.items()):
            before = slice(time - self.past + 1, time + 1)
            replayed = self.brancher(walk.states[time], candidates)
            for index, actions in enumerate(candidates):
                steps = _steps_until(self.task.has_ended(replayed.states[index]))
                after = replayed.states[index, :steps]
                yield self._episode(
                    np.concatenate([walk.states[before], after]),
                    np.concatenate([walk.frames[before], self.renderer.render_states(after)]),
                    np.concatenate([walk.actions[before][:-1], actions[:steps], np.zeros_like(actions[:1])]),
                    np.concatenate([walk.contacts[before], replayed.contacts[index, :steps]]),
                    told | {"row": time, "branch": index},
                )

    def _episode(
        self, states: np.ndarray, frames: np.ndarray, actions: np.ndarray, contacts: np.ndarray, told: dict[str, Any]
    ) -> Episode:
        cameras = camera_names(f"observation.images.{self.model.camera}")
        rows = {
            **dict(zip(cameras, np.split(frames, len(cameras), axis=-2), strict=True)),
            "observation.state": self.task.state_proprioception(states),
            "action": actions,
            "sim.physics": states,
            "sim.quantities": self.task.state_quantities(states),
            "sim.contact": contacts[:, None],
        }
        info = told | {"contact_steps": int(contacts[1:].sum())}
        return Episode(features={n: rows[n].astype(spec.dtype) for n, spec in self.specs.items()}, info=info)

    def _touching(self, physics: np.ndarray) -> bool:
        simulation = self.task.simulation()
        simulation.restore(physics)
        touching = self.task.in_contact(simulation.data.model, simulation.data)
        simulation.close()
        return touching


def _steps_until(ended: np.ndarray) -> int:
    """Return the number of steps up to the first after which an episode has ended, of flags [H]; H where it has not."""
    return int(ended.argmax()) + 1 if ended.any() else len(ended)
