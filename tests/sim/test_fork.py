"""The fork: one picture, two futures, decided by a coin that no camera sees and that never changes."""

import numpy as np
import pytest

from sim import get_task, task_names
from sim.branch import branch
from sim.tasks.base import state_from_positions
from sim.tasks.fork import TILT_INDEX, with_coin

pytestmark = pytest.mark.render
TASK = get_task("fork")


def before_the_plank(aside: float = 0.0) -> np.ndarray:
    state = state_from_positions(TASK.model, np.array([np.pi / 4, aside, -0.12]))
    return np.stack([with_coin(state, coin) for coin in (True, False)])


def test_it_is_asked_for_by_name_and_no_part_of_the_suite():
    assert "fork" not in task_names()
    assert get_task("fork+gain").robot == "fork"


@pytest.mark.parametrize("aside", [-0.02, 0.0, 0.02])
def test_the_coin_decides_which_way_the_puck_is_turned(aside):
    states = before_the_plank(aside)
    result = branch(TASK, states, np.tile([0.0, 1.0], (2, 10, 1)))
    places = result.quantities
    assert np.array_equal(places[0, :2], places[1, :2])  # nothing tells before the contact
    assert not result.contacts[:, :2].any()
    assert result.contacts.any(axis=1).all()
    assert places[0, -1, 0] > 0.06
    assert places[1, -1, 0] < -0.06
    assert (places[:, -1, 1] > 0.05).all()
    assert np.abs(result.states[..., TILT_INDEX] - states[:, None, TILT_INDEX]).max() < 1e-6


def test_no_camera_sees_the_coin():
    states = before_the_plank()
    for camera in TASK.cameras:
        renderer = TASK.renderer(64, 64, camera)
        frames = renderer.render_states(states)
        renderer.close()
        assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(*TASK.state_quantities(states))


def test_both_sides_of_the_coin_come_up_and_play_meets_the_plank():
    states = np.stack([TASK.reset(TASK.model, np.random.default_rng(seed)) for seed in range(200)])
    assert 0.4 < (states[:, TILT_INDEX] > 0).mean() < 0.6
    contacts, num_steps = 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        simulation, policy = TASK.simulation(), None
        simulation.restore(TASK.reset(TASK.model, rng))
        policy = TASK.play_policy(rng)
        for _ in range(50):
            action = policy(simulation.state())
            assert np.abs(action).max() <= 1.0
            contacts += simulation.step(action)[0]
            num_steps += 1
    assert 0.15 < contacts / num_steps < 0.5


def test_branching_equals_stepping_and_the_expert_reaches_the_goal():
    solved = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        start = TASK.reset(TASK.model, rng)
        goal = TASK.sample_goal(TASK.model, start, rng)
        simulation, policy = TASK.simulation(), TASK.expert(goal, rng)
        simulation.restore(start)
        actions, states = [], []
        for _ in range(TASK.episode_steps):
            actions.append(policy(simulation.state()))
            simulation.step(actions[-1])
            states.append(simulation.state())
        assert np.array_equal(branch(TASK, start, np.stack(actions)[None]).states[0], np.stack(states))
        solved += bool(TASK.success(TASK.state_quantities(states[-1]), TASK.state_quantities(goal)))
    assert solved == 12
