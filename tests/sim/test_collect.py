# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Collected rows: physics says that action_t lies between frame t and frame t+1, and that nothing else would do."""

from typing import Any

import mujoco
import numpy as np
import pytest

from sim import get_task, task_names
from sim.collect import collect, features
from sim.physics import get_state, set_state
from sim.render import Renderer

TASKS = task_names()
SIZE = 32
PLAY: dict[str, Any] = {"num_episodes": 30, "seed": 0, "image_size": 8, "num_workers": 1}
pytestmark = pytest.mark.render


@pytest.fixture(scope="module", params=TASKS)
def recorded(request):
    task = get_task(request.param)
    return task, list(collect(task.name, num_episodes=3, seed=5, image_size=SIZE, num_rows=30, num_workers=1))


def replay(task, rows, actions):
    """Step MuJoCo from row 0's state with `actions`; returns frames and states of all rows."""
    data = mujoco.MjData(task.model)
    renderer = Renderer(task.model, SIZE, SIZE, task.cameras[0])
    set_state(task.model, data, rows["sim.physics"][0])
    frames, states = [], []
    for action in actions:
        frames.append(renderer.render(data))
        states.append(get_state(task.model, data))
        task.step(task.model, data, action)
    renderer.close()
    return np.stack(frames), np.stack(states)


def test_replaying_stored_actions_reproduces_frames_and_physics_exactly(recorded):
    task, episodes = recorded
    for episode in episodes:
        rows = episode["features"]
        frames, states = replay(task, rows, rows["action"])
        assert np.array_equal(states, rows["sim.physics"])
        assert np.array_equal(frames, rows[f"observation.images.{task.cameras[0]}"])


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifting_actions_by_one_row_is_noticed(recorded, shift):
    task, episodes = recorded
    changing = [episode for episode in episodes if np.ptp(episode["features"]["action"], axis=0).any()]
    assert changing  # a steady action looks the same when shifted
    for episode in changing:
        rows = episode["features"]
        frames, states = replay(task, rows, np.roll(rows["action"], shift, axis=0))
        assert not np.array_equal(states, rows["sim.physics"])
        assert not np.array_equal(frames, rows[f"observation.images.{task.cameras[0]}"])


def test_stored_states_render_to_stored_frames(recorded):
    task, episodes = recorded
    rows = episodes[0]["features"]
    renderer = Renderer(task.model, SIZE, SIZE, task.cameras[0])
    assert np.array_equal(renderer.render_states(rows["sim.physics"]), rows[f"observation.images.{task.cameras[0]}"])
    renderer.close()


def test_rows_are_what_features_declares(recorded):
    task, episodes = recorded
    declared = features(task, SIZE)
    for episode in episodes:
        rows = episode["features"]
        assert set(rows) == set(declared)
        for name, (dtype, shape, names, units) in declared.items():
            assert rows[name].dtype == np.dtype(dtype)
            assert rows[name].shape == (30, *shape)
            assert len(names) == len(units)
            assert not names or (len(names),) == shape
        assert np.abs(rows["action"]).max() <= 1.0
        assert np.allclose(rows["sim.quantities"], task.state_quantities(rows["sim.physics"]), atol=1e-6)


@pytest.mark.parametrize("policy", ["play", "random", "expert"])
def test_content_does_not_depend_on_the_number_of_workers(policy):
    arguments = {"num_episodes": 4, "seed": 9, "image_size": 16, "num_rows": 8, "policy": policy}
    alone = list(collect("push", num_workers=1, **arguments))
    together = list(collect("push", num_workers=2, **arguments))
    assert [episode["info"] for episode in alone] == [episode["info"] for episode in together]
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(one["features"][name], other["features"][name]) for name in one["features"])


def test_a_collection_can_be_continued():
    arguments: dict[str, Any] = {"seed": 2, "image_size": 16, "num_rows": 5, "num_workers": 1}
    whole = list(collect("reach", num_episodes=4, **arguments))
    rest = list(collect("reach", num_episodes=2, first_episode=2, **arguments))
    assert np.array_equal(whole[3]["features"]["sim.physics"], rest[1]["features"]["sim.physics"])
    assert not np.array_equal(whole[0]["features"]["action"], whole[1]["features"]["action"])


def test_reach_play_covers_workspace_and_actions():
    rows = [episode["features"] for episode in collect("reach", num_episodes=40, seed=0, image_size=8, num_workers=1)]
    tips = np.concatenate([row["sim.quantities"][:, :2] for row in rows])
    actions = np.concatenate([row["action"] for row in rows])
    angles = np.histogram(np.arctan2(tips[:, 1], tips[:, 0]), bins=8, range=(-np.pi, np.pi))[0]
    assert angles.min() > 0.02 * len(tips)
    for channel in actions.T:
        assert np.histogram(channel, bins=5, range=(-1, 1))[0].min() > 0.08 * len(actions)


@pytest.mark.parametrize(("name", "places"), [("push", (2, 3)), ("push_t", (2, 3)), ("drawer", (0,))])
def test_play_moves_the_object_in_many_steps(name, places):
    episodes = list(collect(name, num_episodes=30, seed=0, image_size=8, num_workers=1))
    objects = np.stack([episode["features"]["sim.quantities"][:, list(places)] for episode in episodes])
    moved = np.linalg.norm(np.diff(objects, axis=1), axis=-1) > 1e-3
    assert 0.3 < moved.mean() < 0.55
    assert np.mean([episode["info"]["contact_steps"] > 0 for episode in episodes]) > 0.8


def test_push_t_play_turns_the_t_and_drawer_play_uses_its_whole_range():
    turns = [episode["features"]["sim.quantities"][:, 4:6] for episode in collect(**PLAY, task_name="push_t")]
    assert np.mean([np.linalg.norm(turn[0] - turn[-1]) > 0.3 for turn in turns]) > 0.4
    openings = np.concatenate([e["features"]["sim.quantities"][:, 0] for e in collect(**PLAY, task_name="drawer")])
    assert np.histogram(openings, bins=4, range=(0.0, 0.12))[0].min() > 0.1 * len(openings)


def test_drawer_play_turns_the_hand():
    played = collect(**PLAY, task_name="drawer")
    joints = np.concatenate([episode["features"]["observation.state"][:, :3] for episode in played])
    turned = (joints.sum(axis=-1) - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    low, high = np.quantile(turned, [0.1, 0.9])
    assert low < -0.5
    assert high > 0.5


def test_maze_play_visits_every_cell():
    places = np.concatenate([e["features"]["sim.quantities"] for e in collect(**PLAY, task_name="maze")])
    visits = np.histogram2d(*places.T, bins=5, range=[(-0.2, 0.2)] * 2)[0]
    assert visits.min() > 0.001 * len(places)


def test_bad_arguments_say_what_is_valid():
    with pytest.raises(ValueError, match="valid tasks are reach"):
        collect("nothing", num_episodes=1, seed=0)
    with pytest.raises(ValueError, match="valid policies are play, clumsy, random, expert"):
        collect("reach", num_episodes=1, seed=0, policy="lazy")
    with pytest.raises(ValueError, match="valid cameras are top"):
        collect("reach", num_episodes=1, seed=0, camera="side")
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        collect("reach", num_episodes=1, seed=0, image_size=0)
