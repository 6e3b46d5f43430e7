# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""The rope: its points are where MuJoCo has them, it keeps its length, and it moves only where it is touched."""

import mujoco
import numpy as np

from sim import get_task
from sim.branch import Brancher, branch
from sim.physics import set_state
from sim.tasks import rope


def press_on_middle(seed: int, height: float) -> np.ndarray:
    """Return a start state with the fingertip over the rope's middle at a height."""
    task = get_task("rope")
    state = task.reset(task.model, np.random.default_rng(seed))
    state[1 + 2 * rope.NUM_POINTS : 1 + task.model.nq] = [*rope.rope_points(state[1:])[6], height]
    return state


def test_points_agree_with_mujoco_and_lie_on_the_table_untangled():
    task = get_task("rope")
    data = mujoco.MjData(task.model)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        start = task.reset(task.model, rng)
        for state in (start, task.sample_goal(task.model, start, rng)):
            set_state(task.model, data, state)
            points = data.flexvert_xpos[: rope.NUM_POINTS, :2]
            assert np.allclose(rope.rope_points(state[1:]), points, atol=1e-12)
            quantities = task.state_quantities(state)
            assert np.allclose(quantities[:3], data.body("tip").xpos, atol=1e-12)
            assert np.allclose(quantities[3:].reshape(7, 2), points[::2], atol=1e-12)
            assert np.abs(points).max() <= rope.FIELD_M
            far = np.linalg.norm(points[:, None] - points, axis=-1)[np.triu_indices(rope.NUM_POINTS, 3)]
            assert far.min() > rope.APART_M


def test_cost_is_the_root_mean_square_distance_of_the_points():
    task = get_task("rope")
    quantities = task.state_quantities(task.reset(task.model, np.random.default_rng(0)))
    moved = quantities.copy()
    moved[:3] += 0.1
    assert task.cost(moved, quantities) == 0.0
    moved[3:] += np.tile([0.03, 0.04], 7)
    assert np.isclose(task.cost(moved, quantities), 0.05)


def test_pressed_it_drags_and_raised_it_passes_over():
    task = get_task("rope")
    for seed in range(4):
        pressed = press_on_middle(seed, 0.0)
        middle = rope.rope_points(pressed[1:])[6]
        inwards = -np.sign(middle[1])
        actions = np.tile([0.0, 0.5 * inwards, -1.0], (1, 8, 1))
        result = branch(task, pressed, actions)
        dragged = rope.rope_points(result.states[0, -1][1:])[6] - middle
        assert inwards * dragged[1] > 0.07
        assert result.contacts.all()
        over = branch(task, press_on_middle(seed, 0.03), actions * [1.0, 1.0, 0.0])
        assert not over.contacts.any()
        assert np.abs(rope.rope_points(over.states[0, -1][1:])[6] - middle).max() < 1e-6


def test_rope_keeps_its_length_and_stays_where_it_is_left():
    task = get_task("rope")
    brancher = Brancher(task, num_threads=1)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        state = task.reset(task.model, rng)
        policy = task.play_policy(rng)
        for _ in range(40):
            state = brancher(state, policy(state)[None, None]).states[0, 0]
            edges = np.linalg.norm(np.diff(rope.rope_points(state[1:]), axis=0), axis=-1)
            assert np.abs(edges / rope.EDGE_M - 1.0).max() < 0.25  # while it is pulled hard
        away = np.zeros((1, 20, 3))
        away[:, :6, 2] = 1.0
        states = brancher(state, away).states[0]
        lying = rope.rope_points(states[-1][1:])
        assert np.abs(np.linalg.norm(np.diff(lying, axis=0), axis=-1) / rope.EDGE_M - 1.0).max() < 0.04
        assert np.abs(lying - rope.rope_points(states[9][1:])).max() < 1e-5
    brancher.close()


def test_play_moves_the_rope_in_many_steps():
    task = get_task("rope")
    rngs = [np.random.default_rng([0, number]) for number in range(30)]
    states = np.stack([task.reset(task.model, rng) for rng in rngs])
    policies = [task.play_policy(rng) for rng in rngs]
    brancher = Brancher(task, num_threads=1)
    moved = []
    for _ in range(50):
        actions = np.stack([policy(state) for policy, state in zip(policies, states, strict=True)])
        after = brancher(states, actions[:, None]).states[:, 0]
        change = np.linalg.norm(rope.rope_points(after[:, 1:]) - rope.rope_points(states[:, 1:]), axis=-1)
        moved.append(change.max(axis=-1) > 1e-3)
        states = after
    brancher.close()
    assert 0.3 < np.mean(moved) < 0.8
    assert np.any(moved, axis=0).mean() > 0.9
