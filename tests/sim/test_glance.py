"""Glance: a camera that slides, boxes that lie still, views that come back."""

import numpy as np
import pytest

from sim import get_task, task_names
from sim.branch import branch
from sim.tasks.glance import GAP_M, RAIL_M

pytestmark = pytest.mark.render
TASK = get_task("glance")


def starts(count: int) -> np.ndarray:
    return np.stack([TASK.reset(TASK.model, np.random.default_rng(seed)) for seed in range(count)])


def test_it_is_asked_for_by_name_and_no_part_of_the_suite():
    assert "glance" not in task_names()


def test_boxes_lie_apart_and_never_move():
    states = starts(50)
    quantities = TASK.state_quantities(states)
    along = np.sort(quantities[:, 1::2], axis=1)
    assert np.diff(along, axis=1).min() >= GAP_M - 1e-9
    result = branch(TASK, states, np.ones((50, 10, 1)))
    assert np.abs(result.quantities[:, :, 1:] - quantities[:, None, 1:]).max() < 1e-9
    assert (result.quantities[:, -1, 0] > quantities[:, 0]).all()


def test_the_camera_moves_with_the_head_and_the_view_comes_back():
    states = starts(4)
    there = branch(TASK, states, np.full((4, 6, 1), 0.8)).states
    back = branch(TASK, there[:, -1], np.full((4, 12, 1), -0.8)).states
    renderer = TASK.renderer(32, 32, "hand")
    try:
        for way, path in zip(there, back, strict=True):
            gaps = np.abs(path[:, 1, None] - way[None, :, 1])
            one, other = np.unravel_index(gaps.argmin(), gaps.shape)
            pictures = renderer.render_states(np.stack([way[other], path[one], way[-1]])).astype(float)
            assert gaps[one, other] < 0.02
            assert np.abs(pictures[0] - pictures[1]).mean() < 4
        away = np.array([way[-1] for way in there])
        assert any(np.abs(np.subtract(*renderer.render_states(np.stack(pair)).astype(float))).mean() > 4
                   for pair in zip(states, away, strict=True))  # fmt: skip
    finally:
        renderer.close()


def test_play_sees_all_of_the_table_and_the_expert_gets_there():
    rng = np.random.default_rng(0)
    seen = []
    for start in starts(6):
        simulation, policy = TASK.simulation(), TASK.play_policy(rng)
        simulation.restore(start)
        for _ in range(45):
            simulation.step(policy(simulation.state()))
            seen.append(simulation.state()[1])
    assert min(seen) < -0.8 * RAIL_M
    assert max(seen) > 0.8 * RAIL_M
    for start in starts(6):
        goal = TASK.sample_goal(TASK.model, start, rng)
        simulation, policy = TASK.simulation(), TASK.expert(goal, rng)
        simulation.restore(start)
        for _ in range(TASK.episode_steps):
            simulation.step(policy(simulation.state()))
        assert abs(simulation.state()[1] - goal[1]) < TASK.tolerance_m
