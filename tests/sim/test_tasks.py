# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Every task meets the same contract: names, units, costs, resets and goals that mean what they say."""

import mujoco
import numpy as np
import pytest

from sim import get_task, task_names
from sim.physics import get_state, set_state, state_size

TASKS = task_names()


def test_the_suite_has_its_tasks():
    assert set(TASKS) >= {"reach", "push", "push_t", "maze", "drawer"}


def test_unknown_task_lists_the_valid_names():
    with pytest.raises(ValueError, match=r"'grasp'.*reach.*push"):
        get_task("grasp")


@pytest.mark.parametrize("name", TASKS)
def test_sizes_and_names_agree(name):
    task = get_task(name)
    assert task.model.nu == task.action_size == len(task.action_scale)
    assert len(task.quantity_names) == len(set(task.quantity_names)) == len(task.quantity_units)
    assert len(task.proprioception) == len(task.proprioception_limits)
    assert all(task.quantity_units[index] == "m" for index in task.goal_indices)
    assert task.control_dt_s == pytest.approx(0.1)
    assert task.fps == 10.0
    states = np.stack([task.reset(task.model, np.random.default_rng(seed)) for seed in range(3)])
    assert states.shape == (3, state_size(task.model))
    assert task.state_quantities(states).shape == (3, len(task.quantities))
    assert np.array_equal(task.state_quantities(states)[1], task.state_quantities(states[1]))


@pytest.mark.parametrize("name", TASKS)
def test_reset_and_goal_depend_on_the_seed_alone(name):
    task = get_task(name)

    def draw(seed):
        rng = np.random.default_rng(seed)
        start = task.reset(task.model, rng)
        return np.stack([start, task.sample_goal(task.model, start, rng)])

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize("name", TASKS)
def test_cost_is_zero_at_the_goal_and_large_at_the_start(name):
    task = get_task(name)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        start = task.reset(task.model, rng)
        goal = task.sample_goal(task.model, start, rng)
        goal_quantities = task.state_quantities(goal)
        assert task.cost(goal_quantities, goal_quantities) == 0.0
        assert task.cost(task.state_quantities(start), goal_quantities) >= 0.05 - 1e-9
        assert task.planning_cost(task.state_quantities(start), goal_quantities) >= task.cost(
            task.state_quantities(start), goal_quantities
        )


@pytest.mark.parametrize("name", TASKS)
def test_actions_beyond_the_range_are_clipped(name):
    task = get_task(name)
    ones = np.ones(task.action_size)
    assert np.array_equal(task.controls(7.0 * ones), task.controls(ones))
    assert np.allclose(task.controls(-ones), -np.array(task.action_scale))


def test_reach_kinematics_agree_with_mujoco():
    task = get_task("reach")
    data = mujoco.MjData(task.model)
    for seed in range(20):
        state = task.reset(task.model, np.random.default_rng(seed))
        set_state(task.model, data, state)
        expected = np.concatenate([data.site("tip").xpos[:2], data.site("elbow").xpos[:2]])
        assert np.allclose(task.state_quantities(state), expected, atol=1e-12)


def test_push_quantities_agree_with_mujoco():
    task = get_task("push")
    data = mujoco.MjData(task.model)
    state = task.reset(task.model, np.random.default_rng(4))
    set_state(task.model, data, state)
    box = data.body("box")
    heading = box.xmat.reshape(3, 3)[:2, 0]
    expected = np.concatenate([data.body("pusher").xpos[:2], box.xpos[:2], heading])
    assert np.allclose(task.state_quantities(state), expected, atol=1e-12)


def test_reach_tip_has_one_pose():
    """The elbow stays on one side, whatever is commanded."""
    task = get_task("reach")
    data = mujoco.MjData(task.model)
    for direction in (-1.0, 1.0):
        set_state(task.model, data, task.reset(task.model, np.random.default_rng(0)))
        for _ in range(30):
            task.step(task.model, data, np.array([0.0, direction], dtype=np.float32))
        assert np.deg2rad(0.0) < data.qpos[1] < np.deg2rad(165.0)


def test_push_box_stays_where_it_is_left():
    """A box that nobody touches does not move."""
    task = get_task("push")
    data = mujoco.MjData(task.model)
    start = task.reset(task.model, np.random.default_rng(0))
    set_state(task.model, data, start)
    away = np.sign(start[4:6] - start[1:3]).astype(np.float32)
    for _ in range(20):
        touched, warning = task.step(task.model, data, away)
        assert not touched
        assert warning is None
    assert np.abs(get_state(task.model, data)[1:4] - start[1:4]).max() < 1e-6


def test_a_state_of_another_task_is_refused():
    reach, push = get_task("reach"), get_task("push")
    state = push.reset(push.model, np.random.default_rng(0))
    with pytest.raises(ValueError, match="another task"):
        set_state(reach.model, mujoco.MjData(reach.model), state)
    broken = reach.reset(reach.model, np.random.default_rng(0))
    broken[1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        set_state(reach.model, mujoco.MjData(reach.model), broken)
