"""A world model as a Gymnasium environment, single and vectorised: a step is one imagined frame.

Any library of reinforcement learning can train inside. An episode starts from frames that were really seen, such as a
random place of a store; nothing but the action leads from frame to frame, and it ends by its horizon. Every episode's
noise is drawn from the seed, and `info["noise_seed"]` tells it, so that `WorldModel.imagine` gives the same future.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from embodied_wm.conditioning import ActionKind, check_kind
from embodied_wm.data.cameras import side_by_side
from embodied_wm.data.store import EpisodeStore
from embodied_wm.predictor import sampler
from embodied_wm.ranges import check_counts
from embodied_wm.world_model import WorldModel
from planners.base import Objective
from planners.objectives import GoalDistance

FARTHEST = 20.0
"""Observed latents and quantities end so many stds from their mean: spaces need bounds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Hold what an imagined episode starts from.

    Attributes:
        frames: Context, oldest first, uint8 [C, h, w, 3].
        actions: The C - 1 actions between, [C - 1, A].
        goal: Goal image, uint8 [h, w, 3].
        proprioception: What was felt at the context frames, float32 [C, P]; None for models that only see.
    """

    frames: np.ndarray
    actions: np.ndarray
    goal: np.ndarray
    proprioception: np.ndarray | None = None


class Starts(Protocol):
    """Give the start of one episode after another."""

    def __call__(self, rng: np.random.Generator, /) -> Start:
        """Draw a start."""
        ...


class StoreStarts:
    """Draw starts from recorded episodes; the goal is a frame that came later in the same one."""

    def __init__(
        self,
        store: EpisodeStore,
        *,
        camera: str,
        context: int = 3,
        max_ahead: int = 25,
        episodes: Sequence[int] | None = None,
        proprioception: str = "",
    ) -> None:
        """Take a store.

        Args:
            store: Recorded episodes.
            camera: Feature of the frames.
            context: C, frames that an episode starts from.
            max_ahead: Farthest goal, in frames.
            episodes: Which episodes; all if None. Those too short for a context and a goal are left out.
            proprioception: Feature of what was felt, for models that want it (`model.config.proprioception`).

        Raises:
            ValueError: If no episode is long enough.
        """
        check_counts(context=context, max_ahead=max_ahead)
        lengths = store.episode_lengths
        chosen = range(store.num_episodes) if episodes is None else episodes
        self.episodes = [index for index in chosen if lengths[index] > context]
        if not self.episodes:
            raise ValueError(f"no episode of {store.path} has {context + 1} rows: a context of {context} and a goal")
        self.store, self.camera, self.context, self.max_ahead = store, camera, context, max_ahead
        self.proprioception = proprioception

    def __call__(self, rng: np.random.Generator, /) -> Start:
        """Draw an episode, a row of it, and a later row as the goal."""
        episode = self.episodes[rng.integers(len(self.episodes))]
        end = int(self.store.episode_ends[episode])
        first = end - int(self.store.episode_lengths[episode])
        now = int(rng.integers(first + self.context - 1, end - 1))  # the last row has no later one
        goal = now + int(rng.integers(1, min(self.max_ahead, end - 1 - now) + 1))
        begin = now - self.context + 1
        return Start(
            frames=side_by_side(partial(self.store.read, start=begin, stop=now + 1), self.camera),
            actions=np.asarray(self.store.read("action", begin, now), np.float32),
            goal=side_by_side(partial(self.store.read, start=goal, stop=goal + 1), self.camera)[0],
            proprioception=np.asarray(self.store.read(self.proprioception, begin, now + 1), np.float32).reshape(
                self.context, -1
            )
            if self.proprioception
            else None,
        )


@dataclass(frozen=True, kw_only=True)
class ImaginedEnvConfig:
    """Say what an imagined environment shows, rewards and how long it lasts.

    Attributes:
        horizon: Imagined steps of an episode.
        observation: "latents" [K, D], "state" (what `readout` reads from them) or "frame" (decoded).
        readout: Feature whose readout is the state.
        reward: Feature whose readout is the reward; None rewards nearness to the goal.
        kind: How actions condition the model.
        num_steps: Denoising steps per frame.
    """

    horizon: int = 20
    observation: Literal["latents", "state", "frame"] = "latents"
    readout: str = "sim.quantities"
    reward: str | None = None
    kind: ActionKind = "real"
    num_steps: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        check_counts(horizon=self.horizon)
        if self.observation not in ("latents", "state", "frame"):
            raise ValueError(f"observation={self.observation!r}; expected 'latents', 'state' or 'frame'")


class Imagination:
    """Imagine S episodes in step, each from its own start; what both environments are made of."""

    def __init__(
        self, world_model: WorldModel, config: ImaginedEnvConfig, objective: Callable[[Tensor], Objective] | None
    ) -> None:
        world_model.check_stride("be an environment", "planning")
        check_kind(config.kind)
        if config.kind == "latent":
            raise ValueError("kind='latent': an environment takes the robot's actions; expected 'real' or 'adapted'")
        if world_model.config.predictor.memory:
            raise ValueError(
                "this model remembers frames from before the window and cannot be an environment, whose copies have "
                "pasts of their own; use planning, or a model with predictor.memory=0"
            )
        if config.observation == "state":
            world_model.readout(config.readout)  # says what there is where this is not
        if config.reward is not None and len(names := world_model.readout(config.reward).names) != 1:
            raise ValueError(
                f"reward={config.reward!r} is {len(names)} numbers ({', '.join(names)}); expected a feature of one, "
                "such as next.reward, or None for nearness to the goal"
            )
        self.model, self.config = world_model, config
        self.make_objective = objective or self._latent_distance
        self.device = world_model.action_low.device
        self.low, self.high = world_model.action_low.cpu().numpy(), world_model.action_high.cpu().numpy()
        self.action_space = spaces.Box(self.low, self.high, dtype=np.float32)
        shown = self._shown()
        self.observation_space = spaces.Dict({"observation": shown, "goal": shown})
        self.steps = 0
        self._frames: Iterator[Tensor] | None = None

    def _latent_distance(self, goal_frame: Tensor) -> Objective:
        return GoalDistance(goal=self.model.encode_picture(goal_frame), metric="euclidean")

    def _shown(self) -> spaces.Box:
        tokenizer = self.model.config.tokenizer
        if self.config.observation == "frame":
            return spaces.Box(0, 255, (*tokenizer.frame_size, 3), np.uint8)
        if self.config.observation == "latents":
            return spaces.Box(-FARTHEST, FARTHEST, (self.model.num_tokens, self.model.token_width), np.float32)
        readout = self.model.readout(self.config.readout)
        mean, std = readout.mean.cpu().numpy(), readout.std.cpu().numpy()
        return spaces.Box(mean - FARTHEST * std, mean + FARTHEST * std, dtype=np.float32)

    @torch.no_grad()
    def begin(self, starts: Sequence[Start], noise_seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """Start episodes and return their observations, [S, ...] each.

        Raises:
            ValueError: If a start's frames or actions do not fit the model.
        """
        for start in starts:
            self._check(start)
        if len({len(start.frames) for start in starts}) > 1:
            raise ValueError(f"starts have {[len(start.frames) for start in starts]} frames; give all as many")
        frames = torch.from_numpy(np.stack([start.frames for start in starts])).to(self.device)
        felt = [start.proprioception for start in starts if start.proprioception is not None]
        codes = self.model.encode(frames, torch.from_numpy(np.stack(felt)) if felt else None)
        contexts = [
            self.model.prefill_latents(code, torch.from_numpy(start.actions).to(self.device), kind=self.config.kind)
            for code, start in zip(codes, starts, strict=True)
        ]
        generators = [torch.Generator().manual_seed(seed) for seed in noise_seeds]
        noise = [
            sampler.draw_noise(self.model.predictor, 1, self.config.horizon, generator, shared=False)
            for generator in generators
        ]
        self._frames = self.model.imagine_frames(
            contexts, lambda: self._actions, torch.cat(noise), kind=self.config.kind, num_steps=self.config.num_steps
        )
        goals = torch.from_numpy(np.stack([start.goal for start in starts])).to(self.device)
        self.seen = frames[:, -1]
        self.objectives = [] if self.config.reward else [self.make_objective(goal) for goal in goals]
        self.goals = self.show(self.model.encode_picture(goals), goals)
        self.latents, self.steps = codes[:, -1], 0
        return self.observe(self.seen.clone())  # whoever has an observation may change it

    def _check(self, start: Start) -> None:
        size, num_frames, action_size = (*self.model.config.tokenizer.frame_size, 3), len(start.frames), len(self.low)
        wrong = [
            f"{name} of {found.dtype} {found.shape}, expected {dtype} {expected}"
            for name, found, dtype, expected in (
                ("frames", start.frames, "uint8", (max(num_frames, 1), *size)),
                ("a goal", start.goal, "uint8", size),
                ("actions", start.actions, "float32", (max(num_frames - 1, 0), action_size)),
            )
            if found.shape != expected or str(found.dtype) != dtype
        ]
        if wrong:
            camera = self.model.embodiment.camera
            raise ValueError(
                f"a start has {'; '.join(wrong)}. Give what the model's camera {camera!r} shows, uncropped."
            )

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
        """Imagine one frame of every episode; return observations, rewards [S], and whether that was the last.

        Raises:
            ValueError: If actions have another shape or are not finite, or the episodes have ended.
        """
        if self._frames is None or self.steps >= self.config.horizon:
            raise ValueError(f"the episode has ended (horizon={self.config.horizon}) or not begun; call reset()")
        expected = (len(self.latents), len(self.low))
        if np.shape(actions) != expected or not np.isfinite(actions).all():
            raise ValueError(f"got actions of shape {np.shape(actions)}; expected finite ones of shape {expected}")
        clipped = np.clip(np.asarray(actions, np.float32), self.low, self.high)
        self._actions = torch.from_numpy(clipped).to(self.device)
        self.latents = next(self._frames)
        self.steps += 1
        return self.observe(None), self.reward(), self.steps >= self.config.horizon

    @torch.no_grad()
    def reward(self) -> np.ndarray:
        """Return minus the cost of each present, or what the reward's readout says."""
        if self.config.reward is not None:
            return self.model.readout(self.config.reward)(self.latents)[:, 0].double().cpu().numpy()
        parts = zip(self.objectives, self.latents[:, None, None], self._actions[:, None, None], strict=True)
        return -np.array([float(objective(latents, actions)) for objective, latents, actions in parts])

    def observe(self, frames: Tensor | None) -> dict[str, np.ndarray]:
        """Return present and goal as observations; `frames` are the real ones, where there are."""
        return {"observation": self.show(self.latents, frames), "goal": self.goals.copy()}

    def show(self, latents: Tensor, frames: Tensor | None) -> np.ndarray:
        """Return latents [S, K, D] as observations [S, ...]."""
        if self.config.observation == "frame":
            return (self.decode(latents) if frames is None else frames).cpu().numpy()
        if self.config.observation == "state":
            latents = self.model.readout(self.config.readout)(latents)
        return np.clip(latents.float().cpu().numpy(), self._bounds.low, self._bounds.high)

    @property
    def _bounds(self) -> spaces.Box:
        shown = self.observation_space["observation"]
        assert isinstance(shown, spaces.Box)
        return shown

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return frames [S, h, w, 3], each blended into the last one that was really seen."""
        return torch.stack([self.model.decode(each, seen) for each, seen in zip(latents, self.seen, strict=True)])


class ImaginedEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One imagined episode after another; observations are {"observation", "goal"}, actions in the robot's units.

    Actions beyond the training data's range are clipped. An episode is never terminated, only truncated after
    `config.horizon` steps.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own form)

    def __init__(
        self,
        world_model: WorldModel,
        starts: Starts,
        config: ImaginedEnvConfig | None = None,
        *,
        objective: Callable[[Tensor], Objective] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Take a model and where its episodes start.

        Args:
            world_model: What imagines.
            starts: Draws the start of each episode, such as `StoreStarts`.
            config: What is shown and rewarded.
            objective: Goal image, uint8 [h, w, 3], to the objective whose negative is the reward (such as
                `JudgedWorldModel.objective`); the Euclidean distance of latents if None.
            render_mode: "rgb_array" decodes the present for `render`.
        """
        self.imagination = Imagination(world_model, config or ImaginedEnvConfig(), objective)
        self.starts, self.render_mode = starts, render_mode
        self.action_space = self.imagination.action_space
        self.observation_space: spaces.Space = self.imagination.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode: from `options["start"]`, a `Start`, or from one that is drawn."""
        super().reset(seed=seed)
        start, noise_seed = _draw(self.starts, self.np_random)
        start = _given(options, "start", start)
        return _single(self.imagination.begin([start], [noise_seed])), {"noise_seed": noise_seed}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Imagine the frame that an action [A] leads to."""
        observations, rewards, last = self.imagination.step(np.asarray(action)[None])
        return _single(observations), float(rewards[0]), False, last, {}

    def render(self) -> np.ndarray | None:
        """Return the present, decoded, uint8 [h, w, 3], or None without a render mode."""
        if self.render_mode is None:
            return None
        return self.imagination.decode(self.imagination.latents)[0].cpu().numpy()


class ImaginedVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """Several imagined episodes in one batch; each is what an `ImaginedEnv` of the seed plus its number gives.

    All end at once, by the horizon; the step after that resets all of them (Gymnasium's NEXT_STEP).
    """

    metadata = {  # noqa: RUF012 (gymnasium's own form)
        **ImaginedEnv.metadata,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        world_model: WorldModel,
        starts: Starts,
        num_envs: int,
        config: ImaginedEnvConfig | None = None,
        *,
        objective: Callable[[Tensor], Objective] | None = None,
    ) -> None:
        """Take what `ImaginedEnv` takes, and the number of episodes."""
        check_counts(num_envs=num_envs)
        self.imagination = Imagination(world_model, config or ImaginedEnvConfig(), objective)
        self.starts, self.num_envs = starts, num_envs
        self.single_action_space = self.imagination.action_space
        self.single_observation_space = self.imagination.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._rngs = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._has_ended = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start all episodes: from `options["starts"]`, one `Start` each, or from drawn ones."""
        count = self.num_envs
        seeds = (
            [None if seed is None else seed + i for i in range(count)]
            if seed is None or isinstance(seed, int | np.integer)
            else seed
        )
        self._rngs = [
            rng if each is None else seeding.np_random(each)[0] for rng, each in zip(self._rngs, seeds, strict=True)
        ]
        drawn = [_draw(self.starts, rng) for rng in self._rngs]
        starts = _given(options, "starts", [start for start, _ in drawn])
        if len(starts) != count:
            raise ValueError(f"got {len(starts)} starts; expected one for each of {count} environments")
        noise_seeds = [noise_seed for _, noise_seed in drawn]
        self._has_ended = False
        observations = self.imagination.begin(starts, noise_seeds)
        return observations, {"noise_seed": np.array(noise_seeds), "_noise_seed": np.ones(count, bool)}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Imagine the frames that actions [S, A] lead to; after the last, start all episodes anew instead."""
        none = np.zeros(self.num_envs, bool)
        if self._has_ended:
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs), none, none.copy(), info
        observations, rewards, self._has_ended = self.imagination.step(np.asarray(actions))
        return observations, rewards, none, np.full(self.num_envs, self._has_ended), {}


def _draw(starts: Starts, rng: np.random.Generator) -> tuple[Start, int]:
    """Draw a start, and the seed of its noise."""
    return starts(rng), int(rng.integers(2**31))


def _given(options: dict[str, Any] | None, name: str, drawn: Any) -> Any:
    """Return the option where it is given, what was drawn where it is not."""
    unknown = set(options or {}) - {name}
    if unknown:
        raise ValueError(f"unknown reset options {sorted(unknown)}; valid is {name!r}")
    return (options or {}).get(name, drawn)


def _single(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[0] for name, values in batch.items()}
