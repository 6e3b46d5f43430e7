"""The Gymnasium environments: the API's own checker, repeatability, exact restoring, errors."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from unstable import wild

import sim
from sim.env import MujocoTaskEnv, environment_id
from sim.manifest import evaluation_pairs

TASKS = sim.task_names()
pytestmark = pytest.mark.render


@pytest.fixture(params=TASKS)
def env(request):
    environment = gymnasium.make(environment_id(request.param)).unwrapped
    assert isinstance(environment, MujocoTaskEnv)
    yield environment
    environment.close()


def play(environment, num_steps, seed):
    rng = np.random.default_rng(seed)
    outcomes = []
    for _ in range(num_steps):
        observation, reward, _, _, _ = environment.step(rng.uniform(-1, 1, environment.task.action_size))
        outcomes.append((observation, reward, environment.physics_state()))
    return outcomes


def assert_same(first, second):
    for (observation, reward, state), (other_observation, other_reward, other_state) in zip(first, second, strict=True):
        assert all(np.array_equal(observation[key], other_observation[key]) for key in observation)
        assert reward == other_reward
        assert np.array_equal(state, other_state)


def test_ids_are_registered():
    for name in ("Reach", "Push", "PushT", "Maze", "Drawer"):
        assert f"embodied_wm/{name}-v0" in gymnasium.registry


@pytest.mark.parametrize("name", TASKS)
def test_check_env_is_clean(name):
    environment = gymnasium.make(environment_id(name), render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment)
    environment.close()


def test_films_and_recordings_have_the_tasks_rate():
    """What records rollouts or films of an environment takes its rate from there."""
    for name in ("reach", "Reacher-v5"):
        environment = MujocoTaskEnv(name, observation="state")
        assert environment.metadata["render_fps"] == environment.task.fps
        environment.close()


@pytest.mark.parametrize("name", ["push", "rope"])
def test_state_observations_need_no_picture(name, monkeypatch):
    monkeypatch.setattr(MujocoTaskEnv, "_get_renderer", lambda self: pytest.fail("rendered"))
    environment = gymnasium.make(environment_id(name), observation="state").unwrapped
    assert isinstance(environment, MujocoTaskEnv)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m.* value is")  # quantities have no bounds
        check_env(environment, skip_render_check=True)
    seen, info = environment.reset(seed=3)
    np.testing.assert_array_equal(seen["quantities"], info["quantities"])
    np.testing.assert_array_equal(seen["goal"], environment.task.state_quantities(environment.goal_state()))
    seen, reward, _, _, info = environment.step(np.ones(environment.task.action_size))
    np.testing.assert_array_equal(seen["quantities"], info["quantities"])
    assert -reward == environment.task.cost(seen["quantities"], seen["goal"])
    with pytest.raises(ValueError, match="unknown observation 'text'; valid are 'pixels' and 'state'"):
        gymnasium.make(environment_id(name), observation="text")


def test_same_seed_repeats_every_bit(env):
    first, _ = env.reset(seed=11)
    one = play(env, 8, seed=0)
    second, _ = env.reset(seed=11)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert_same(one, play(env, 8, seed=0))
    other, _ = env.reset(seed=12)
    assert not np.array_equal(first["pixels"], other["pixels"])


def test_restoring_in_mid_episode_repeats_every_bit(env):
    env.reset(seed=3)
    play(env, 7, seed=1)
    saved = env.physics_state()
    one = play(env, 6, seed=2)
    play(env, 5, seed=9)
    env.restore(saved)
    assert np.array_equal(env.physics_state(), saved)
    assert_same(one, play(env, 6, seed=2))


def test_a_second_environment_continues_from_a_saved_state(env):
    env.reset(seed=3)
    play(env, 7, seed=1)
    saved, goal = env.physics_state(), env.goal_state()
    other = MujocoTaskEnv(env.task.name)
    other.reset(seed=0, options={"start": saved, "goal": goal})
    assert_same(play(env, 5, seed=2), play(other, 5, seed=2))
    other.close()


def test_goal_image_is_what_the_goal_state_looks_like(env):
    observation, info = env.reset(seed=5)
    assert not info["success"]
    at_goal = env.restore(env.goal_state())
    assert np.array_equal(at_goal["pixels"], observation["goal"])
    assert env.task.success(env.task.state_quantities(env.physics_state()), env.task.state_quantities(env.goal_state()))


def test_episode_ends_by_truncation_and_info_is_consistent(env):
    env.reset(seed=1)
    for step in range(env.task.episode_steps):
        _, reward, terminated, truncated, info = env.step(np.zeros(env.task.action_size))
        assert not terminated
        assert truncated == (step + 1 == env.task.episode_steps)
        assert reward == -info["cost_m"]
        assert info["success"] == (info["cost_m"] <= env.task.tolerance_m)


def test_expert_solves_the_manifest(env):
    pairs = evaluation_pairs(env.task.name, 20, seed=0)
    solved = 0
    for start, goal, seed in pairs:
        env.reset(seed=seed, options={"start": start, "goal": goal})
        expert = env.task.expert(goal, np.random.default_rng(seed))
        info = {}
        for _ in range(env.task.episode_steps):
            *_, info = env.step(expert(env.physics_state()))
        solved += info["success"]
    assert solved >= 19


def test_instability_names_task_seed_and_step(env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT in the working folder
    env.reset(seed=77)
    env.step(np.zeros(env.task.action_size))
    env.restore(wild(env.task, env.physics_state()))
    with pytest.raises(sim.InstabilityError, match=rf"task '{env.task.name}', seed 77, step 1: .*velocity"):
        env.step(np.zeros(env.task.action_size))


def test_bad_arguments_say_what_is_valid(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=env.task.action_names[0]):
        env.step(np.full(env.task.action_size, np.nan))
    with pytest.raises(ValueError, match="finite numbers"):
        env.step(np.zeros(env.task.action_size + 1))
    with pytest.raises(ValueError, match=r"'begin'.*'start' and 'goal'"):
        env.reset(options={"begin": 1})
    with pytest.raises(ValueError, match=f"valid cameras are {', '.join(env.task.cameras)}"):
        MujocoTaskEnv(env.task.name, camera="wrist")
    with pytest.raises(ValueError, match="rgb_array"):
        MujocoTaskEnv(env.task.name, render_mode="human")
    with pytest.raises(ValueError, match="valid tasks are"):
        MujocoTaskEnv("nothing")
