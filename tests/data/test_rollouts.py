from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from embodied_wm.data import record_rollouts
from embodied_wm.data.store import EpisodeStore, StoreError

RENDER = "observation.images.render"


class Walk(gymnasium.Env):
    """A place that moves by the action; its observation is one buffer, written over at every step, as some do."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, render_mode: str | None = "rgb_array", *, discrete: bool = False, end: float = 3.0) -> None:
        self.render_mode, self.end = render_mode, end
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,), np.float32)
        self.place = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place[:] = self.np_random.normal(size=2)
        return self.place, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.Discrete):
            assert type(action) is int
        self.place += action
        done = bool(abs(self.place).max() > self.end)
        return self.place, float(self.place[0]), done, False, {"is_success": done}

    def render(self) -> Any:
        frame = np.zeros((12, 20, 3), np.uint8)
        frame[...] = (np.clip(self.place[0] * 20 + 128, 0, 255), 7, 9)
        return frame


def test_an_action_lies_between_its_own_row_and_the_next(tmp_path: Path) -> None:
    out, seen, asked = tmp_path / "s.zarr", [], []

    def policy(observation: np.ndarray) -> np.ndarray:
        asked.append(observation.copy())
        return np.array([0.5, -0.25]) + 0.1 * np.sin(observation)

    record_rollouts(Walk(), policy, out, num_episodes=3, seed=4, progress=lambda *at: seen.append(at))
    store = EpisodeStore.open(out)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (store.num_episodes, store.fps, store.features[RENDER].shape) == (3, 5.0, (64, 64, 3))
    first = 0
    for number in range(3):
        episode = store.episode(number)
        rows, place, action = episode.num_rows, episode.features["observation.state"], episode.features["action"]
        np.testing.assert_allclose(np.diff(place, axis=0), action[:-1], atol=1e-12)
        np.testing.assert_array_equal(place, asked[first : first + rows])
        np.testing.assert_array_equal(action, (np.array([0.5, -0.25]) + 0.1 * np.sin(place)).astype(np.float32))
        np.testing.assert_array_equal(
            episode.features[RENDER][:, 5, 5, 0], np.clip(place[:, 0] * 20 + 128, 0, 255).astype(np.uint8)
        )
        np.testing.assert_array_equal(episode.features["next.reward"], [*place[1:, 0], 0.0])
        ended = np.arange(rows) >= rows - 2
        np.testing.assert_array_equal(episode.features["next.terminated"], ended)
        assert not episode.features["next.truncated"].any()
        assert (abs(place).max(axis=1) > 3.0).tolist() == [False] * (rows - 1) + [True]
        env = Walk()
        np.testing.assert_array_equal(env.reset(seed=episode.info["seed"])[0], place[0])
        assert (episode.info["task"], episode.info["success"], episode.info["episode"]) == ("Walk", True, number)
        assert episode.info["return"] == pytest.approx(place[1:, 0].sum())
        first += rows
    assert first == len(asked)


def test_random_actions_are_seeded_and_a_recording_is_continued(tmp_path: Path) -> None:
    record_rollouts(Walk(end=99), None, tmp_path / "whole.zarr", num_episodes=23, max_steps=4)
    record_rollouts(Walk(end=99), None, tmp_path / "parts.zarr", num_episodes=2, max_steps=4)
    record_rollouts(Walk(end=99), None, tmp_path / "parts.zarr", num_episodes=23, max_steps=4)
    whole, parts = (EpisodeStore.open(tmp_path / f"{name}.zarr") for name in ("whole", "parts"))
    assert (whole.num_episodes, whole.num_frames) == (23, 23 * 5)
    assert whole.fingerprint() == parts.fingerprint()
    np.testing.assert_array_equal(whole.read("next.truncated", 0, 5), [False, False, False, True, True])
    assert len(np.unique(whole.read("action", 0, whole.num_frames), axis=0)) == whole.num_frames
    with pytest.raises(StoreError, match="holds other episodes"):
        record_rollouts(Walk(), None, tmp_path / "parts.zarr", num_episodes=30, max_steps=5)


def test_observations_in_dicts_and_discrete_actions(tmp_path: Path) -> None:
    class Nested(gymnasium.ObservationWrapper):
        def __init__(self) -> None:
            super().__init__(Walk(None, discrete=True))
            self.observation_space = spaces.Dict(
                {
                    "arm/pose": spaces.Box(-np.inf, np.inf, (2,), np.float64),
                    "pixels": spaces.Dict({"eye": spaces.Box(0, 255, (12, 20, 3), np.uint8)}),
                    "pair": spaces.Tuple([spaces.Discrete(9), spaces.MultiBinary(2)]),
                }
            )

        def observation(self, observation: np.ndarray) -> dict[str, Any]:
            eye = self.env.unwrapped.render()
            return {"arm/pose": observation, "pixels": {"eye": eye}, "pair": (4, np.array([1, 0], np.int8))}

    record_rollouts(Nested(), lambda observation: 1, tmp_path / "s.zarr", num_episodes=1, image_size=(6, 10), task="go")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    episode = store.episode(0)
    assert {name: (spec.dtype, spec.shape) for name, spec in store.features.items()} == {
        "observation.arm.pose": ("float64", (2,)),
        "observation.images.eye": ("uint8", (6, 10, 3)),
        "observation.pair.0": ("int64", ()),
        "observation.pair.1": ("int8", (2,)),
        "action": ("int64", (1,)),
        "next.reward": ("float64", ()),
        "next.terminated": ("bool", ()),
        "next.truncated": ("bool", ()),
    }
    assert episode.info["task"] == "go"
    np.testing.assert_allclose(np.diff(episode.features["observation.arm.pose"], axis=0), 1)
    np.testing.assert_array_equal(episode.features["observation.pair.0"], 4)


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"

    def refused(match: str, env: Any, policy: Any = None, **options: Any) -> None:
        with pytest.raises(StoreError, match=match):
            record_rollouts(env, policy, out, num_episodes=1, **options)

    refused("gives no frames: render_mode is None", Walk(None))
    refused("must be at least 1, got 1, 0", Walk(), max_steps=0)
    refused(r"action is float64 of shape \(3,\); its space says float32 \(2,\)", Walk(), lambda _: np.zeros(3))
    refused(
        r"Walk, episode 0 \(seed \d+\), row 0: action is not finite", Walk(), lambda _: np.full(2, np.nan), max_steps=2
    )
    env = Walk()
    env.observation_space = spaces.Text(5)
    refused("only numbers of a fixed shape", env)
    env = Walk()
    env.metadata = {}
    refused("give fps=", env)
    refused("Vector environments", gymnasium.vector.SyncVectorEnv([Walk]))
    assert not out.exists()


@pytest.mark.render
def test_replaying_the_stored_actions_gives_the_stored_frames(tmp_path: Path) -> None:
    import sim  # noqa: F401 (registers the environments)

    env = gymnasium.make("embodied_wm/Reach-v0", render_mode="rgb_array", image_size=32)
    record_rollouts(env, None, tmp_path / "s.zarr", num_episodes=2, max_steps=6, image_size=(32, 32))
    store = EpisodeStore.open(tmp_path / "s.zarr")
    for number in range(2):
        episode = store.episode(number)
        observation, _ = env.reset(seed=episode.info["seed"])
        for row in range(episode.num_rows):
            np.testing.assert_array_equal(env.render(), episode.features[RENDER][row])
            np.testing.assert_array_equal(observation["proprioception"], episode.features["observation.state"][row])
            observation, reward, *_ = env.step(episode.features["action"][row])
            if row + 1 < episode.num_rows:
                assert reward == episode.features["next.reward"][row]
        assert episode.info["task"] == "embodied_wm/Reach-v0"
        frames = episode.features[RENDER]
        assert all((one != other).any() for one, other in pairwise(frames))
    env.close()
