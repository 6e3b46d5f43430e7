# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Other people's environments: the same physics as theirs, exact restoring, goals, cameras, and clear refusals."""

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
import pytest

from sim import get_task
from sim.branch import Brancher, branch
from sim.collect import collect, features
from sim.env import MujocoTaskEnv
from sim.external import make_environment, physics_of
from sim.manifest import evaluation_pairs

pytestmark = pytest.mark.render


def needing(package: str, *ids: str) -> list[Any]:
    absent = importlib.util.find_spec(package) is None
    reason = f"{package} is not installed: pip install 'embodied-wm[environments]'"
    return [pytest.param(name, marks=pytest.mark.skipif(absent, reason=reason)) for name in ids]


IDS = [
    "Reacher-v5",
    "Pusher-v5",
    *needing("gymnasium_robotics", "FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4"),
    *needing("shimmy", "dm_control/reacher-easy-v0"),
]
LIKE_THEIRS = [one for one in IDS if "FetchPickAndPlace-v4" not in getattr(one, "values", ())]
"""Fetch's pick-and-place reads a place that MuJoCo computed one physics step ago; ours is brought up to date first."""


@pytest.fixture(scope="module")
def pusher():
    return get_task("Pusher-v5")


def actions_for(task, shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=(*shape, task.action_size)).astype(np.float32)


@pytest.mark.parametrize("name", LIKE_THEIRS)
def test_steps_are_the_environments_own_bit_for_bit(name):
    task = get_task(name)
    theirs, ours = make_environment(name), task.simulation()
    theirs.reset(seed=7)
    ours.reset(7)
    space = theirs.action_space
    for action in actions_for(task, (12,)):
        share = (action.astype(np.float64) + 1) / 2
        theirs.step((space.low + share * (space.high - space.low)).astype(space.dtype))
        ours.step(action)
        data = physics_of(name, theirs)
        assert np.array_equal(data.qpos, ours.data.qpos)
        assert np.array_equal(data.qvel, ours.data.qvel)
    theirs.close()
    ours.close()


@pytest.mark.parametrize("name", IDS)
def test_branching_equals_stepping_and_an_episode_never_interrupted(name):
    task = get_task(name)
    simulation = task.simulation()
    simulation.restore(task.reset(task.model, np.random.default_rng(3)))
    for action in actions_for(task, (6,), seed=5):
        simulation.step(action)
    middle = simulation.state()
    actions = actions_for(task, (4, 5))
    result = branch(task, middle, actions, num_threads=2)
    for step, action in enumerate(actions[0]):
        simulation.step(action)
        assert np.array_equal(simulation.state(), result.states[0, step])
    for candidate in range(1, 4):
        simulation.restore(middle)
        for step, action in enumerate(actions[candidate]):
            simulation.step(action)
            assert np.array_equal(simulation.state(), result.states[candidate, step])
    assert np.array_equal(result.quantities, task.state_quantities(result.states))
    assert not np.array_equal(result.states[0], result.states[1])
    simulation.close()


@pytest.mark.parametrize("name", IDS)
def test_another_process_would_restore_the_same(name):
    """A state says all: a copy that never saw the episode goes on from it as the one that did."""
    task = get_task(name)
    one, other = task.simulation(), task.simulation()
    one.restore(task.reset(task.model, np.random.default_rng(8)))
    other.restore(task.reset(task.model, np.random.default_rng(9)))
    for action in actions_for(task, (4,)):
        one.step(action)
        other.step(-action)
    other.restore(one.state())
    for action in actions_for(task, (4,), seed=1):
        one.step(action)
        other.step(action)
        assert np.array_equal(one.state(), other.state())
        assert one.reward == other.reward
    one.close()
    other.close()


@pytest.mark.parametrize("name", IDS)
def test_collected_rows_replay_to_their_physics_and_frames(name):
    task = get_task(name)
    episode = next(iter(collect(name, num_episodes=1, seed=4, image_size=32, num_rows=8, num_workers=1)))
    rows, camera = episode["features"], task.cameras[0]
    assert {key: (array.dtype, array.shape[1:]) for key, array in rows.items()} == {
        key: (np.dtype(spec[0]), spec[1]) for key, spec in features(task, 32).items()
    }
    renderer, simulation = task.renderer(32, 32), task.simulation()
    assert np.array_equal(renderer.render_states(rows["sim.physics"]), rows[f"observation.images.{camera}"])
    simulation.restore(rows["sim.physics"][0])
    for row in range(7):
        assert simulation.step(rows["action"][row])[1] is None
        assert np.array_equal(simulation.state(), rows["sim.physics"][row + 1])
        assert rows["sim.reward"][row, 0] == np.float32(simulation.reward)
    assert len(np.unique(rows[f"observation.images.{camera}"][0].reshape(-1, 3), axis=0)) > 5
    renderer.close()
    simulation.close()


@pytest.mark.parametrize("name", IDS)
def test_goals_are_states_of_the_same_episode_that_cost_nothing(name):
    task = get_task(name)
    rng = np.random.default_rng(2)
    start = task.reset(task.model, rng)
    goal = task.sample_goal(task.model, start, rng)
    assert goal.shape == start.shape
    assert goal[-1] == start[-1]
    assert task.cost(task.state_quantities(goal), task.state_quantities(goal)) == 0.0
    assert task.cost(task.state_quantities(start), task.state_quantities(goal)) > 0.01
    simulation = task.simulation()
    simulation.restore(goal)
    assert np.array_equal(simulation.state(), goal)
    simulation.close()


@pytest.mark.parametrize("name", needing("gymnasium_robotics", "FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4"))
def test_a_goal_environments_goal_is_its_desired_goal(name):
    task = get_task(name)
    simulation = task.simulation()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        start = task.reset(task.model, rng)
        desired = simulation.reset(int(start[-1]))["desired_goal"]
        reached = task.state_quantities(task.sample_goal(task.model, start, rng))[list(task.goal_indices)]
        assert np.linalg.norm(reached - desired) < (0.011 if name == "FetchReach-v4" else 1e-6)
        assert task.tolerance_m == simulation.env.unwrapped.distance_threshold
    simulation.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", needing("gymnasium_robotics", "FetchPush-v4"))
def test_play_moves_the_object_where_noise_hardly_does(name):
    def travelled(policy):
        episodes = list(collect(name, num_episodes=3, seed=1, image_size=8, num_rows=30, policy=policy, num_workers=1))
        places = np.stack([episode["features"]["sim.quantities"][:, :3] for episode in episodes])
        return np.linalg.norm(np.diff(places, axis=1), axis=-1).sum()

    assert travelled("play") > travelled("random") + 0.02


def test_pusher_is_described_in_its_own_words(pusher):
    assert pusher.action_size == 7
    assert pusher.action_scale == (2.0,) * 7
    assert pusher.fps == 20.0
    assert pusher.episode_steps == 100
    assert set(pusher.objects) == {"object"}
    assert "tips_arm_x" in pusher.quantity_names
    assert pusher.proprioception[0].name == "r_shoulder_pan_joint"
    assert pusher.proprioception[-1].unit == "rad/s"
    state = pusher.reset(pusher.model, np.random.default_rng(0))
    simulation = pusher.simulation()
    simulation.restore(state)
    with pytest.raises(ValueError, match=r"not by controls: use simulation\(\)"):
        pusher.step(pusher.model, simulation.data, np.zeros(7))
    where = pusher.objects["object"][0]
    expected = simulation.data.body("object").xpos
    assert np.allclose(pusher.state_quantities(state)[where : where + 3], expected, atol=1e-12)
    simulation.close()


def test_cameras_by_name_look_different(pusher):
    assert pusher.cameras == ("default", "workspace")
    state = pusher.reset(pusher.model, np.random.default_rng(0))[None]
    pictures = []
    for camera in pusher.cameras:
        renderer = pusher.renderer(64, 64, camera)
        pictures.append(renderer.render_states(state)[0].astype(int))
        renderer.close()
    assert np.abs(pictures[0] - pictures[1]).mean() > 5
    with pytest.raises(ValueError, match="no camera 'wrist'; valid cameras are default, workspace"):
        pusher.renderer(64, 64, "wrist")


def test_default_camera_sees_what_the_environment_shows():
    theirs = gymnasium.make("Pusher-v5", render_mode="rgb_array", width=64, height=64)
    theirs.reset(seed=5)
    shown = np.asarray(theirs.render()).astype(int)
    theirs.close()
    task = get_task("Pusher-v5")
    simulation = task.simulation()
    simulation.reset(5)
    renderer = task.renderer(64, 64)
    ours = renderer.render(simulation.data).astype(int)
    renderer.close()
    simulation.close()
    assert np.abs(ours - shown).mean() < 6.0  # shadows, smoother edges
    assert np.abs(ours - shown[:, ::-1]).mean() > 6.0


def test_is_a_gymnasium_environment_with_a_goal_image():
    env = MujocoTaskEnv("Reacher-v5", image_size=32)
    first, info = env.reset(seed=3)
    assert first["pixels"].shape == first["goal"].shape == (32, 32, 3)
    assert not np.array_equal(first["pixels"], first["goal"])
    saved, action = env.physics_state(), np.full(2, 0.5, dtype=np.float32)
    one = env.step(action)[0]
    env.step(-action)
    env.restore(saved)
    assert all(np.array_equal(one[key], env.step(action)[0][key]) for key in ["goal"])
    env.restore(saved)
    assert np.array_equal(one["pixels"], env.step(action)[0]["pixels"])
    assert env.reset(seed=3)[1]["cost_m"] == info["cost_m"] > 0
    env.close()


def test_manifest_pairs_are_frozen_and_unsolved():
    pairs, again = (evaluation_pairs("Reacher-v5", 2, seed=1) for _ in range(2))
    task = get_task("Reacher-v5")
    for (start, goal, _), (other_start, other_goal, _) in zip(pairs, again, strict=True):
        assert np.array_equal(start, other_start)
        assert np.array_equal(goal, other_goal)
        assert not task.success(task.state_quantities(start), task.state_quantities(goal))


def test_unknown_ids_name_near_ones():
    with pytest.raises(ValueError, match=r"Did you mean .*Pusher-v5"):
        get_task("Puser-v5")
    with pytest.raises(ValueError, match="any Gymnasium MuJoCo environment by its id"):
        get_task("Pusher")


def test_states_and_actions_that_do_not_fit_are_refused(pusher):
    reacher = get_task("Reacher-v5")
    state = reacher.reset(reacher.model, np.random.default_rng(0))
    simulation = pusher.simulation()
    with pytest.raises(ValueError, match="stored for another task"):
        simulation.restore(state)
    own = pusher.reset(pusher.model, np.random.default_rng(0))
    for place, value, message in ((1, np.nan, "finite"), (-1, 0.5, "not with a seed")):
        broken = own.copy()
        broken[place] = value
        with pytest.raises(ValueError, match=message):
            simulation.restore(broken)
    simulation.close()
    brancher = Brancher(pusher, num_threads=1)
    with pytest.raises(ValueError, match="candidate 0"):
        brancher(own, np.full((1, 2, 7), np.nan))
    with pytest.raises(ValueError, match="another task"):
        brancher(state, np.zeros((1, 2, 7)))
    brancher.close()


def test_quantities_are_the_same_whichever_threads_ask_at_once() -> None:
    """The judge reads goals in one thread while another one reads what candidates led to."""
    task = get_task("Reacher-v5")
    states = np.repeat(task.reset(task.model, np.random.default_rng(0))[None], 500, axis=0)
    states[:, 1 : 1 + task.model.nq] += np.random.default_rng(1).uniform(-1.0, 1.0, (500, task.model.nq))
    alone = task.state_quantities(states)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(task.state_quantities, [np.roll(states, shift, axis=0) for shift in range(8)]))
    finally:
        sys.setswitchinterval(interval)
    assert all(np.array_equal(each, np.roll(alone, shift, axis=0)) for shift, each in enumerate(found))
