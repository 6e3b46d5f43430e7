# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Every task over 20 seconds: exact replay from a restored state, and no MuJoCo warning at the edges of the actions."""

import itertools

import mujoco
import numpy as np
import pytest

from sim import get_task, task_names
from sim.branch import branch
from sim.physics import get_state, set_state

NUM_STEPS = 200


@pytest.mark.parametrize("name", task_names())
def test_replay_from_a_restored_state_is_exact_over_200_steps(name):
    task = get_task(name)
    rng = np.random.default_rng(3)
    data = mujoco.MjData(task.model)
    set_state(task.model, data, task.reset(task.model, rng))
    policy = task.play_policy(rng)
    for _ in range(15):
        task.step(task.model, data, policy(get_state(task.model, data)))
    saved = get_state(task.model, data)
    states, actions = [], []
    for _ in range(NUM_STEPS):
        actions.append(policy(get_state(task.model, data)))
        _, warning = task.step(task.model, data, actions[-1])
        assert warning is None
        states.append(get_state(task.model, data))
    replayed = branch(task, saved, np.stack(actions)[None], num_threads=1).states[0]
    assert np.array_equal(replayed, np.stack(states))
    assert not np.array_equal(replayed[-1], saved)


@pytest.mark.parametrize("name", task_names())
def test_extreme_actions_leave_physics_sane(name):
    """All corners of the action space, each held for a while after another: `branch` raises on any warning."""
    task = get_task(name)
    rng = np.random.default_rng(0)
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=task.action_size)))
    actions = np.repeat(np.stack([rng.permutation(corners)[:4] for _ in range(12)]), 12, axis=1)
    starts = np.stack([task.reset(task.model, rng) for _ in actions])
    result = branch(task, starts, actions, num_threads=1)
    places = np.concatenate([result.quantities[..., list(place)] for place in task.objects.values()] or [np.zeros(1)])
    assert np.abs(places).max() < 0.45
    assert np.abs(result.states[..., 1:]).max() < 100.0
