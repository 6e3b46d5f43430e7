"""Curtain: boxes that lie still, a curtain that hides them, and what comes to light again."""

import numpy as np
import pytest

from sim import get_task, task_names
from sim.branch import branch
from sim.tasks.curtain import BOXES, GAP_M, RAIL_M

pytestmark = pytest.mark.render
TASK = get_task("curtain")


def starts(count: int) -> np.ndarray:
    return np.stack([TASK.reset(TASK.model, np.random.default_rng(seed)) for seed in range(count)])


def test_it_is_asked_for_by_name_and_no_part_of_the_suite():
    assert "curtain" not in task_names()


def test_boxes_lie_apart_and_never_move():
    states = starts(50)
    quantities = TASK.state_quantities(states)
    places = quantities[:, 1:].reshape(50, len(BOXES), 2)
    gaps = np.abs(places[:, :, None] - places[:, None]).max(-1)
    assert gaps[:, ~np.eye(len(BOXES), dtype=bool)].min() >= GAP_M
    result = branch(TASK, states, np.ones((50, 10, 1)))
    assert np.abs(result.quantities[:, :, 1:] - quantities[:, None, 1:]).max() < 1e-9
    assert (result.quantities[:, -1, 0] > 0.9 * RAIL_M).all()


def test_what_is_hidden_is_in_no_picture_and_comes_back():
    """Two tables that differ under the curtain alone look alike; moved on, it shows how they differ."""
    model = TASK.model
    one, other = (TASK.reset(model, np.random.default_rng(1)) for _ in range(2))
    for state, box in ((one, (0.09, 0.0)), (other, (0.11, 0.05))):
        state[1], state[2:10] = RAIL_M, [*box, -0.1, 0.1, -0.1, 0.0, -0.1, -0.1]
    renderer = TASK.renderer(32, 32, "top")
    try:
        hidden = renderer.render_states(np.stack([one, other])).astype(float)
        moved = branch(TASK, np.stack([one, other]), np.full((2, 10, 1), -1.0)).states[:, -1]
        shown = renderer.render_states(moved).astype(float)
    finally:
        renderer.close()
    assert np.array_equal(hidden[0], hidden[1])
    assert np.abs(shown[0] - shown[1]).max() > 100


def test_play_uncovers_all_of_the_table_and_the_expert_gets_there():
    rng = np.random.default_rng(0)
    seen = []
    for start in starts(6):
        simulation, policy = TASK.simulation(), TASK.play_policy(rng)
        simulation.restore(start)
        for _ in range(45):
            simulation.step(policy(simulation.state()))
            seen.append(simulation.state()[1])
    assert min(seen) < -0.9 * RAIL_M
    assert max(seen) > 0.9 * RAIL_M
    for start in starts(6):
        goal = TASK.sample_goal(TASK.model, start, rng)
        simulation, policy = TASK.simulation(), TASK.expert(goal, rng)
        simulation.restore(start)
        for _ in range(TASK.episode_steps):
            simulation.step(policy(simulation.state()))
        assert abs(simulation.state()[1] - goal[1]) < TASK.tolerance_m
