"""Record episodes of any Gymnasium environment into an episode store, with the rows that `collect` writes too.

Row t is (observation_t, action_t): the frame is rendered, the policy looks at that same state, and its action is
applied *between* frame t and frame t + 1. The last row of an episode holds what the last step led to; the action
beside it is what the policy would have done, and was not applied.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np

from embodied_wm.data.frames import resize_frames
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec

# Episodes of one commit; the most work that stopping loses.
GROUP_EPISODES = 20
IMAGES = "observation.images."
# Of a plain vector (which has no name), and in the dicts of Gymnasium-Robotics, of LeRobot's environments and of ours.
STATE_NAMES = ("", "state", "observation", "agent_pos", "proprioception")
OUTCOMES = {
    "next.reward": FeatureSpec(dtype="float64", shape=()),
    "next.terminated": FeatureSpec(dtype="bool", shape=()),
    "next.truncated": FeatureSpec(dtype="bool", shape=()),
}


def record_rollouts(
    env: Any,
    policy: Callable[[Any], Any] | None,
    out: str | Path,
    *,
    num_episodes: int,
    seed: int = 0,
    max_steps: int = 1000,
    fps: float | None = None,
    image_size: tuple[int, int] = (64, 64),
    camera: str = "render",
    task: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Record episodes until the store at `out` holds `num_episodes`, making it or continuing it.

    Observations become `observation.state` (a plain vector, or what a dict calls state, observation, agent_pos or
    proprioception), `observation.KEY` (else), or `observation.images.KEY` (images); the rendered frames become
    `observation.images.<camera>`. Frames and images are resized to `image_size`. `next.reward`, `next.terminated` and
    `next.truncated` of a row are what its action led to; the last row, whose action was not applied, has reward 0 and
    repeats the flags. Episode i is reset with a seed drawn from (seed, i) and kept in its info, so that it can be
    replayed, and a recording that was stopped continued.

    Args:
        env: A `gymnasium.Env` (not a vector one), made with `render_mode="rgb_array"` unless it observes images.
        policy: Observation to action; uniformly random actions when None.
        out: Path of the store.
        num_episodes: Episodes that the store holds in the end.
        seed: Seed of the episodes.
        max_steps: Steps after which an episode that has not ended is cut (and is truncated).
        fps: Steps per second; the environment's `metadata["render_fps"]` when None.
        image_size: Height and width of the stored frames.
        camera: Name of the rendered frames.
        task: Task text of the episodes; the environment's id when empty.
        progress: Called with episodes done and episodes in all.

    Raises:
        StoreError: The environment cannot be recorded (the message says why), observes or acts other than its spaces
            say, gives NaN or infinity, or the store at `out` holds something else.
    """
    if num_episodes < 1 or max_steps < 1 or min(image_size) < 1:
        raise StoreError(
            f"Episodes, steps and image size must be at least 1, got {num_episodes}, {max_steps}, {image_size}."
        )
    recorder = _Recorder(env, policy, camera, image_size, max_steps, seed)
    rate = fps or (getattr(env, "metadata", None) or {}).get("render_fps")
    if not rate:
        raise StoreError(f"{env} does not say how many steps a second has (metadata['render_fps']); give fps=...")
    source = {"kind": "rollouts", "environment": recorder.name, "seed": seed, "max_steps": max_steps}
    with ExitStack() as stack:
        store = None
        if Path(out).exists():
            store = stack.enter_context(_earlier(out, recorder.features, float(rate), source))
        for group in batched(range(store.num_episodes if store else 0, num_episodes), GROUP_EPISODES):
            episodes = []
            for number in group:
                episodes.append(recorder.episode(number, task or recorder.name))
                if progress is not None:
                    progress(number + 1, num_episodes)
            # Made only now: what cannot be recorded leaves no empty store.
            store = store or stack.enter_context(
                EpisodeStore.create(
                    out,
                    features=recorder.features,
                    fps=float(rate),
                    metadata={"source": source, "robot": recorder.name},
                )
            )
            store.append(episodes)


def _earlier(out: str | Path, features: Mapping[str, FeatureSpec], fps: float, source: dict[str, Any]) -> EpisodeStore:
    """Open the store that an earlier recording of the same kind left."""
    store = EpisodeStore.open(out, mode="a")
    held = store.metadata.get("source")
    if (held, store.features, store.fps) != (source, features, fps):
        store.close()
        raise StoreError(
            f"{out} holds other episodes ({held}) than those to be recorded ({source}), or other features. Choose "
            "another path, or record with the same values."
        )
    return store


class _Recorder:
    """Plays episodes of one environment."""

    def __init__(
        self,
        env: Any,
        policy: Callable[[Any], Any] | None,
        camera: str,
        image_size: tuple[int, int],
        max_steps: int,
        seed: int,
    ) -> None:
        if hasattr(env, "num_envs"):
            raise StoreError("Vector environments cannot be recorded; give a single gymnasium.Env.")
        self._env, self._image_size, self._max_steps, self._seed = env, image_size, max_steps, seed
        self._policy = policy or (lambda observation: env.action_space.sample())
        spec = getattr(env, "spec", None)
        self.name = spec.id if spec is not None else type(getattr(env, "unwrapped", env)).__name__
        self._spaces = {name: _spec(space, name) for name, space in _leaves(env.observation_space)}
        self._names = _feature_names(self._spaces)
        self._action = _action_spec(env.action_space)
        features = {self._names[name]: self._stored(spec) for name, spec in self._spaces.items()}
        self._camera = IMAGES + camera if getattr(env, "render_mode", None) == "rgb_array" else None
        if self._camera in features:
            raise StoreError(f"The environment observes an image {camera!r} itself; choose another name: camera=...")
        if self._camera:
            features[self._camera] = FeatureSpec(dtype="uint8", shape=(*image_size, 3))
        if not any(spec.is_image for spec in features.values()):
            raise StoreError(
                f"{self.name} gives no frames: render_mode is {getattr(env, 'render_mode', None)!r}. Make it with "
                'gymnasium.make(..., render_mode="rgb_array").'
            )
        self.features = {**features, "action": self._action, **OUTCOMES}

    def episode(self, number: int, task: str) -> Episode:
        """Play episode `number`."""
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._where = f"{self.name}, episode {number} (seed {seed}), row 0"
        self._env.action_space.seed(seed)
        observation, _ = self._env.reset(seed=seed)
        rows = [self._look(observation)]
        outcomes, info = [], {}
        for step in range(1, self._max_steps + 1):
            action = self._act(observation)
            rows[-1]["action"] = action
            observation, reward, terminated, truncated, info = self._env.step(self._as_chosen(action))
            self._where = f"{self.name}, episode {number} (seed {seed}), row {step}"
            rows.append(self._look(observation))
            truncated = bool(truncated) or (step == self._max_steps and not terminated)
            outcomes.append((_finite(float(reward), f"{self._where}: reward"), bool(terminated), truncated))
            if terminated or truncated:
                break
        rows[-1]["action"] = self._act(observation)
        outcomes.append((0.0, *outcomes[-1][1:]))
        features = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for place, (name, spec) in enumerate(OUTCOMES.items()):
            features[name] = np.array([outcome[place] for outcome in outcomes], dtype=spec.dtype)
        told = {"task": task, "seed": seed, "episode": number, "return": float(features["next.reward"].sum())}
        return Episode(features=features, info=told | _success(info))

    def _look(self, observation: Any) -> dict[str, np.ndarray]:
        """Return one row's frame and observations, copied: environments may write into their own again."""
        row = {}
        for name, value in _leaves(observation):
            spec = self._spaces.get(name)
            if spec is None:
                raise StoreError(f"{self.name} observes {name!r}, which its space does not have: {list(self._spaces)}.")
            array = _checked(value, spec, f"{self._where}: observation {name!r}")
            row[self._names[name]] = self._resized(array) if _is_picture(spec) else array
        if self._camera:
            frame = np.asarray(self._env.render())
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise StoreError(
                    f"{self.name} renders {frame.dtype} of shape {frame.shape}; expected uint8 [height, width, 3]."
                )
            row[self._camera] = self._resized(frame)
        return row

    def _act(self, observation: Any) -> np.ndarray:
        return _checked(self._policy(observation), self._action, f"{self._where}: action")

    def _as_chosen(self, action: np.ndarray) -> Any:
        """Return an action as the environment wants it: discrete ones are plain numbers."""
        shape = self._env.action_space.shape
        return action.item() if shape == () and action.dtype.kind == "i" else action.reshape(shape).copy()

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        return resize_frames(np.array(frame)[None], self._image_size)[0]

    def _stored(self, spec: FeatureSpec) -> FeatureSpec:
        return FeatureSpec(dtype="uint8", shape=(*self._image_size, 3)) if _is_picture(spec) else spec


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and leaf of a space, or of an observation, that may be a dict or a tuple of such."""
    inside = getattr(node, "spaces", node)
    if isinstance(inside, Mapping):
        for key, value in inside.items():
            yield from _leaves(value, f"{name}.{key}".strip(".").replace("/", "."))
    elif isinstance(inside, tuple):
        for number, value in enumerate(inside):
            yield from _leaves(value, f"{name}.{number}".strip("."))
    else:
        yield name, node


def _spec(space: Any, name: str) -> FeatureSpec:
    """Return the form of a space's values."""
    dtype, shape = getattr(space, "dtype", None), getattr(space, "shape", None)
    if dtype is None or shape is None or np.dtype(dtype).kind not in "biuf":
        raise StoreError(
            f"The space {name or 'of observations'!r} is {space}; only numbers of a fixed shape can be kept."
        )
    return FeatureSpec(dtype=np.dtype(dtype).name, shape=tuple(map(int, shape)))


def _action_spec(space: Any) -> FeatureSpec:
    spec = _spec(space, "action")
    if len(spec.shape) > 1:
        raise StoreError(f"Actions of shape {spec.shape} cannot be kept; expected a vector or a single number.")
    return FeatureSpec(dtype=spec.dtype, shape=spec.shape or (1,))


def _feature_names(spaces: Mapping[str, FeatureSpec]) -> dict[str, str]:
    """Return observation to feature; the first under a usual name of the robot's state becomes observation.state."""
    vectors = {name: f"observation.{name}" for name, spec in spaces.items() if not _is_picture(spec)}
    state = next((name for name in STATE_NAMES if name in vectors), None)
    if state is not None:
        vectors[state] = "observation.state"
    return vectors | {
        name: IMAGES + (name.removeprefix("pixels.") or "pixels") for name in spaces if name not in vectors
    }


def _is_picture(spec: FeatureSpec) -> bool:
    return spec.is_image and spec.shape[2] == 3


def _checked(value: Any, spec: FeatureSpec, what: str) -> np.ndarray:
    """Return a copy of a value in the form that its space promises."""
    array = np.array(value)
    if array.size != np.prod(spec.shape, dtype=int) or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise StoreError(f"{what} is {array.dtype} of shape {array.shape}; its space says {spec.dtype} {spec.shape}.")
    return _finite(array, what).astype(spec.dtype).reshape(spec.shape)


def _finite[V: (float, np.ndarray)](value: V, what: str) -> V:
    if not np.isfinite(value).all():
        raise StoreError(f"{what} is not finite: {value}.")
    return value


def _success(info: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether the last step said that the task is solved, under either of the usual names."""
    told = next((info[key] for key in ("is_success", "success") if key in info), None)
    return {} if told is None else {"success": bool(told)}
