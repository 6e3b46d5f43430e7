"""Imagination as an environment: it is what WorldModel.imagine gives, one alone as many at once."""

import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import tiny
import torch
from gymnasium.utils.env_checker import check_env

from embodied_wm.data.store import EpisodeStore
from embodied_wm.evaluation.imagined_env import ImaginedEnv, ImaginedEnvConfig, ImaginedVectorEnv, Start, StoreStarts
from embodied_wm.world_model import WorldModel
from planners.objectives import GoalDistance

HORIZON = 5
CAMERA, SIZE = tiny.CAMERA, tiny.SIZE


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> WorldModel:
    return WorldModel.load(tiny_checkpoint)


@pytest.fixture
def starts(tiny_store: Path) -> StoreStarts:
    return StoreStarts(EpisodeStore.open(tiny_store), camera=CAMERA, context=3)


def actions_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (HORIZON, count, 2)).astype(np.float32)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_rollout_is_what_imagine_gives(model: WorldModel, starts: StoreStarts, num_steps: int) -> None:
    """Latents, and minus the cost to the goal, step by step."""
    env = ImaginedEnv(model, starts, ImaginedEnvConfig(horizon=HORIZON, num_steps=num_steps))
    start = starts(np.random.default_rng(7))
    seen, info = env.reset(seed=3, options={"start": start})
    actions = actions_of(1)
    path = [env.step(action[0]) for action in actions]
    context = model.prefill(torch.from_numpy(start.frames), torch.from_numpy(start.actions))
    expected = model.imagine(
        context,
        torch.from_numpy(actions[:, 0])[None],
        num_steps=num_steps,
        generator=torch.Generator().manual_seed(info["noise_seed"]),
    )
    found = torch.from_numpy(np.stack([observation["observation"] for observation, *_ in path]))
    assert found.abs().max() < 20  # nothing was clipped
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=1e-4)
    goal = model.encode(torch.from_numpy(start.goal))
    torch.testing.assert_close(torch.from_numpy(seen["goal"]), goal)
    torch.testing.assert_close(torch.from_numpy(seen["observation"]), model.encode(torch.from_numpy(start.frames))[-1])
    costs = (expected[0] - goal).square().mean((1, 2)).sqrt()
    torch.testing.assert_close(-torch.tensor([reward for _, reward, *_ in path]), costs, atol=1e-4, rtol=1e-4)
    assert [truncated for *_, truncated, _ in path] == [False] * (HORIZON - 1) + [True]
    assert not any(terminated for _, _, terminated, *_ in path)


def test_many_at_once_equal_one_alone(model: WorldModel, starts: StoreStarts) -> None:
    """Environment i of the batch is a single one of the seed plus i, across the automatic reset."""
    config = ImaginedEnvConfig(horizon=HORIZON, observation="state", readout="observation.state")
    many = ImaginedVectorEnv(model, starts, 3, config)
    actions = np.concatenate([actions_of(3), np.zeros((1, 3, 2), np.float32), actions_of(3, seed=1)])
    batch = [many.reset(seed=11)[0], *(many.step(action) for action in actions)]
    for number in range(3):
        alone = ImaginedEnv(model, starts, config)
        first, _ = alone.reset(seed=11 + number)
        np.testing.assert_allclose(batch[0]["observation"][number], first["observation"], rtol=1e-5)
        for step, (observations, rewards, _, truncations, _) in enumerate(batch[1:]):
            if step == HORIZON:
                observation, reward, truncated = alone.reset()[0], 0.0, False
            else:
                observation, reward, _, truncated, _ = alone.step(actions[step][number])
            np.testing.assert_allclose(observations["observation"][number], observation["observation"], rtol=1e-4)
            np.testing.assert_allclose(observations["goal"][number], observation["goal"], rtol=1e-5)
            assert rewards[number] == pytest.approx(reward, rel=1e-4)
            assert truncations[number] == truncated
    assert many.observation_space.contains(batch[0])


@pytest.mark.parametrize("observation", ["latents", "state", "frame"])
def test_gymnasiums_own_check_is_content(model: WorldModel, starts: StoreStarts, observation: str) -> None:
    config = ImaginedEnvConfig(horizon=4, observation=observation, readout="observation.state")  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ImaginedEnv(model, starts, config), skip_render_check=True)  # that one wants a registered id


def test_the_same_seed_gives_the_same_episodes(model: WorldModel, starts: StoreStarts) -> None:
    env = ImaginedEnv(model, starts, ImaginedEnvConfig(horizon=HORIZON))
    paths = []
    for _ in range(2):
        env.reset(seed=5)
        first = [env.step(action[0])[0]["observation"] for action in actions_of(1)]
        env.reset()
        paths.append(np.stack([*first, *(env.step(action[0])[0]["observation"] for action in actions_of(1))]))
    assert np.array_equal(paths[0], paths[1])
    assert not np.allclose(paths[0][:HORIZON], paths[0][HORIZON:])


def test_frames_begin_with_the_real_one(model: WorldModel, starts: StoreStarts) -> None:
    env = ImaginedEnv(model, starts, ImaginedEnvConfig(horizon=2, observation="frame"), render_mode="rgb_array")
    start = starts(np.random.default_rng(0))
    seen, _ = env.reset(seed=0, options={"start": start})
    assert np.array_equal(seen["observation"], start.frames[-1])
    assert np.array_equal(seen["goal"], start.goal)
    seen, *_ = env.step(np.ones(2))
    shown = env.render()
    assert shown is not None
    assert np.array_equal(seen["observation"], shown)
    decoded = model.decode(env.imagination.latents[0], torch.from_numpy(start.frames[-1]))
    assert np.array_equal(seen["observation"], decoded.numpy())


def test_an_observation_that_is_changed_changes_nothing(model: WorldModel, starts: StoreStarts) -> None:
    env = ImaginedEnv(model, starts, ImaginedEnvConfig(observation="frame"))

    def second_frame(spoilt: bool) -> np.ndarray:
        seen, _ = env.reset(seed=0)
        if spoilt:
            seen["observation"][:], seen["goal"][:] = 0, 0
        return env.step(np.zeros(2, np.float32))[0]["observation"]

    assert np.array_equal(second_frame(spoilt=True), second_frame(spoilt=False))


def test_rewards_can_be_read_or_be_any_objective(model: WorldModel, starts: StoreStarts) -> None:
    rewarded = WorldModel(
        model.config, replace(model.embodiment, readouts={"next.reward": (("reward",), ("",))})
    ).eval()
    torch.nn.init.ones_(rewarded.readout("next.reward").bend[-1].bias)  # pyright: ignore[reportArgumentType]
    read = ImaginedEnv(rewarded, starts, ImaginedEnvConfig(horizon=2, reward="next.reward"))
    read.reset(seed=0)
    _, reward, *_ = read.step(np.zeros(2))
    expected = rewarded.readout("next.reward")(read.imagination.latents)[0, 0].item()
    assert expected != 0
    assert reward == pytest.approx(expected)
    given: list[torch.Tensor] = []

    def squared(goal_frame: torch.Tensor) -> GoalDistance:
        given.append(goal_frame)
        return GoalDistance(goal=model.encode(goal_frame))

    other = ImaginedEnv(model, starts, ImaginedEnvConfig(horizon=2), objective=squared)
    start = starts(np.random.default_rng(0))
    other.reset(seed=0, options={"start": start})
    assert np.array_equal(given[0].numpy(), start.goal)
    observation, reward, *_ = other.step(np.zeros(2))
    assert reward == pytest.approx(-np.square(observation["observation"] - observation["goal"]).mean(), rel=1e-4)


def test_actions_are_clipped_to_the_trained_range(model: WorldModel, starts: StoreStarts) -> None:
    env = ImaginedEnv(model, starts, ImaginedEnvConfig(horizon=1))
    found = []
    for action in (model.action_high.numpy(), model.action_high.numpy() + 5):
        env.reset(seed=2)
        found.append(env.step(action)[0]["observation"])
    assert np.array_equal(found[0], found[1])


def test_starts_lie_within_one_episode(tiny_store: Path) -> None:
    """Context and goal are rows of one episode, in order, at most so far apart."""
    store = EpisodeStore.open(tiny_store)
    starts = StoreStarts(store, camera=CAMERA, context=2, max_ahead=4)
    frames = np.asarray(store.read(CAMERA, 0, store.num_frames))
    for seed in range(40):
        start = starts(np.random.default_rng(seed))
        at = [row for row in range(store.num_frames - 1) if np.array_equal(frames[row : row + 2], start.frames)]
        goals = [row for row in range(store.num_frames) if np.array_equal(frames[row], start.goal)]
        episodes = [
            {int(np.searchsorted(store.episode_ends, row, side="right")) for row in rows} for rows in (at, goals)
        ]
        assert episodes[0] & episodes[1]
        assert any(1 <= goal - (row + 1) <= 4 for row in at for goal in goals)


def test_what_does_not_fit_is_named(model: WorldModel, starts: StoreStarts) -> None:
    env = ImaginedEnv(model, starts, ImaginedEnvConfig(horizon=1))
    with pytest.raises(ValueError, match="not begun"):
        env.step(np.zeros(2))
    good = starts(np.random.default_rng(0))
    large = Start(frames=good.frames, actions=good.actions, goal=np.zeros((2 * SIZE, SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a goal of uint8 \(32, 16, 3\), expected uint8 \(16, 16, 3\).*top"):
        env.reset(seed=0, options={"start": large})
    with pytest.raises(ValueError, match=r"unknown reset options \['goal'\]; valid is 'start'"):
        env.reset(seed=0, options={"goal": good.goal})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(1, 3\); expected finite ones of shape \(1, 2\)"):
        env.step(np.zeros(3))
    env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"has ended \(horizon=1\)"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"no readout of 'next\.reward'; it has: observation\.state"):
        ImaginedEnv(model, starts, ImaginedEnvConfig(reward="next.reward"))
    with pytest.raises(ValueError, match="horizon=0"):
        ImaginedEnvConfig(horizon=0)


def test_codes_and_rewards_of_several_numbers_are_refused(model: WorldModel, starts: StoreStarts) -> None:
    with pytest.raises(ValueError, match="kind='latent': an environment takes the robot's actions"):
        ImaginedEnv(model, starts, ImaginedEnvConfig(kind="latent"))
    with pytest.raises(ValueError, match=r"reward='observation.state' is 2 numbers .* expected a feature of one"):
        ImaginedEnv(model, starts, ImaginedEnvConfig(reward="observation.state"))


def test_numpys_seeds_are_refused_as_gymnasium_does(model: WorldModel, starts: StoreStarts) -> None:
    many = ImaginedVectorEnv(model, starts, 2, ImaginedEnvConfig(horizon=HORIZON))
    with pytest.raises(gymnasium.error.Error, match="Seed must be a python integer"):
        many.reset(seed=np.int64(3))  # type: ignore[arg-type]
