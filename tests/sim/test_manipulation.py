# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Push-T, maze and drawer: their quantities are MuJoCo's, their costs are metres, and contact is what moves things."""

import mujoco
import numpy as np
import pytest

from sim import get_task
from sim.branch import Brancher, branch
from sim.manifest import draw_pair
from sim.physics import get_state, set_state
from sim.tasks import drawer, maze, push, push_t
from sim.tasks.base import state_from_positions


def posed(task, seed):
    """Return a start state and simulation data that hold it."""
    data = mujoco.MjData(task.model)
    state = task.reset(task.model, np.random.default_rng(seed))
    set_state(task.model, data, state)
    return state, data


def test_push_t_quantities_agree_with_mujoco():
    task = get_task("push_t")
    for seed in range(10):
        state, data = posed(task, seed)
        body, bar, stem = data.body("t"), data.geom("bar"), data.geom("stem")
        across, along = body.xmat.reshape(3, 3)[:2, 0], body.xmat.reshape(3, 3)[:2, 1]
        ends = [bar.xpos[:2] - 0.045 * across, bar.xpos[:2] + 0.045 * across, stem.xpos[:2] - 0.03 * along]
        expected = np.concatenate([data.body("pusher").xpos[:2], body.xpos[:2], across, *ends])
        assert np.allclose(task.state_quantities(state), expected, atol=1e-12)


def test_push_t_frame_lies_in_its_centre_of_mass_and_its_outline_is_the_models():
    model = get_task("push_t").model
    assert np.allclose(model.body("t").ipos[:2], 0.0, atol=2e-4)
    for name, (x, y, half_x, half_y) in zip(("bar", "stem"), push_t.BOXES_M, strict=True):
        assert np.allclose(model.geom(name).pos[:2], (x, y))
        assert np.allclose(model.geom(name).size[:2], (half_x, half_y))
    assert model.geom("pusher").size[0] == push_t.PUSHER_RADIUS_M


@pytest.mark.parametrize("turn", [0.1, -0.6, 2.0])
def test_push_t_cost_is_metres_of_shift_and_of_turn(turn):
    task = get_task("push_t")
    start = state_from_positions(task.model, np.array([0.01, -0.02, 0.7, 0.15, 0.15]))
    shifted, turned = start.copy(), start.copy()
    shifted[1:3] += (0.03, -0.04)
    turned[3] += turn
    here, there, round_ = task.state_quantities(np.stack([start, shifted, turned]))
    assert task.cost(there, here) == pytest.approx(0.05)
    radius = np.sqrt(np.square(push_t.KEY_POINTS_M).sum(axis=-1).mean())
    assert task.cost(round_, here) == pytest.approx(2.0 * abs(np.sin(turn / 2.0)) * radius)


def test_push_t_stays_where_it_is_left_and_a_push_does_what_the_expert_expects():
    """Straight through the centre it shifts alone; beside it, it turns towards the side of the push."""
    task = get_task("push_t")
    up = np.tile(np.array([0.0, 1.0], dtype=np.float32), (12, 1))
    back = np.tile(np.array([0.0, -1.0], dtype=np.float32), (3, 1))
    turns = []
    for x in (0.0, 0.045, -0.045):
        start = state_from_positions(task.model, np.array([0.0, 0.0, 0.0, x, -0.14 if x == 0.0 else -0.04]))
        states = branch(task, start, np.concatenate([up, back, 0.0 * up])[None]).states[0]
        assert states[11, 2] > (0.03 if x == 0.0 else 0.005)
        assert abs(states[11, 1]) < 0.01 or x != 0.0
        turns.append(states[11, 3])
        assert np.abs(states[-1, 1:4] - states[14, 1:4]).max() < 1e-4
    assert abs(turns[0]) < 0.02
    assert turns[1] > 0.3
    assert turns[2] < -0.3


def test_push_approach_cost_falls_along_the_way_round_the_box():
    task = get_task("push")
    goal = task.state_quantities(state_from_positions(task.model, np.array([0.1, 0.0, 0.0, 0.2, 0.2])))
    angles, there = np.linspace(0.0, np.pi, 7), 0.05  # from before the box, 10 cm short of its goal, to behind it
    states = [np.array([0.0, 0.0, 0.0, there * np.cos(angle), there * np.sin(angle)]) for angle in angles]
    costs = push.approach_cost(
        task.state_quantities(np.stack([state_from_positions(task.model, s) for s in states])), goal
    )
    assert (np.diff(costs) < 0).all()
    assert costs[0] == pytest.approx(0.3 * 0.075 * (np.pi - 0.3))
    assert costs[-1] == 0.0
    far = task.state_quantities(state_from_positions(task.model, np.array([0.0, 0.0, 0.0, -0.15, 0.0])))
    assert push.approach_cost(far, goal) == pytest.approx(0.3 * 0.10)
    arrived = np.array([0.1, 0.0, 0.0, 0.15, 0.0])  # on the wrong side, but there is nothing left to push
    assert push.approach_cost(task.state_quantities(state_from_positions(task.model, arrived)), goal) == 0.0


def test_push_t_approach_cost_is_least_at_the_side_that_must_be_pushed():
    task = get_task("push_t")
    start = state_from_positions(task.model, np.array([0.0, 0.0, 0.0, 0.0, -0.11]))
    beyond, goal = start.copy(), start.copy()
    beyond[5] = 0.07
    goal[2] += 0.08
    goal_quantities = task.state_quantities(goal)
    behind, before = push_t.approach_cost(task.state_quantities(np.stack([start, beyond])), goal_quantities)
    assert behind < 0.01
    assert before > 0.02


def test_maze_places_are_free_and_the_straight_way_is_blocked():
    task = get_task("maze")
    arrived, brancher = 0, Brancher(task, num_threads=1)
    for seed in range(12):
        start, goal = draw_pair("maze", seed)
        assert maze.geodesics().is_free(np.stack([start[1:3], goal[1:3]])).all()
        way = float(maze.geodesics().distance(start[1:3], goal[1:3]))
        assert way >= np.linalg.norm(goal[1:3] - start[1:3]) + maze.MIN_DETOUR_M
        state = start
        for _ in range(task.episode_steps):
            straight = np.clip((goal[1:3] - state[1:3]) / maze.STEP_M, -1.0, 1.0)
            state = brancher(state, straight[None, None]).states[0, 0]
        arrived += bool(task.success(task.state_quantities(state), task.state_quantities(goal)))
    brancher.close()
    assert arrived <= 4  # sliding along a wall helps now and then


def test_maze_planning_cost_is_the_length_of_the_way_and_success_the_plain_distance():
    task = get_task("maze")
    here, there = np.array([0.16, 0.0]), np.array([0.16, -0.08])  # on two sides of one wall
    assert task.cost(here, there) == pytest.approx(0.08)
    assert task.planning_cost(here, there) > 0.9
    assert task.planning_cost(here, here) == pytest.approx(0.0, abs=1e-9)
    batch = np.random.default_rng(0).uniform(-0.17, 0.17, size=(3, 4, 2))
    assert task.planning_cost(batch, there).shape == (3, 4)


def test_drawer_kinematics_agree_with_mujoco():
    task = get_task("drawer")
    for seed in range(10):
        state, data = posed(task, seed)
        expected = [data.joint("opening").qpos[0], *data.site("tip").xpos[:2], *data.body("fore").xpos[:2]]
        assert np.allclose(task.state_quantities(state), expected, atol=1e-12)
        handle = data.geom("handle").xpos
        assert handle[1] == pytest.approx(drawer.HANDLE_Y_M - state[1])
        assert not task.in_contact(task.model, data)


def test_drawer_inverse_kinematics_undo_the_forward_ones():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tip, heading = rng.uniform((-0.1, -0.1), (0.1, 0.1)), np.pi / 2 + rng.normal(scale=0.3)
        joints = drawer.inverse(tip, heading)
        if joints is not None:
            assert np.allclose(drawer.forward(joints)[2], tip, atol=1e-12)
            assert np.cos(joints.sum() - heading) == pytest.approx(1.0)
    assert drawer.inverse(np.array([0.5, 0.5]), 0.0) is None


@pytest.mark.parametrize(("side", "moves"), [(-1.0, False), (1.0, True)])
def test_drawer_opens_by_its_handle_alone(side, moves):
    """The same pull, once from before the handle and once from behind it."""
    task = get_task("drawer")
    tip = np.array([0.026, drawer.HANDLE_Y_M - 0.03 + side * 0.022])
    joints = drawer.inverse(tip, np.pi / 2)
    assert joints is not None
    state = state_from_positions(task.model, np.array([0.03, *joints]))
    pull = drawer.move_to(tip - np.array([0.0, 0.08]))
    touched = False
    for _ in range(15):
        found = branch(task, state, pull(state)[None, None], num_threads=1)
        state, touched = found.states[0, 0], touched or found.contacts[0, 0]
    assert touched == moves
    assert (state[1] - 0.03 > 0.04) if moves else (abs(state[1] - 0.03) < 1e-6)


def test_drawer_approach_cost_falls_along_the_way_round_the_front():
    handle = np.array([0.0, drawer.HANDLE_Y_M - 0.1])
    way = handle + np.array([[0.089, 0.10], [0.098, 0.06], [0.1, 0.03], [0.08, 0.03], [0.026, 0.025]])
    quantities = np.column_stack([np.full(len(way), 0.1), way, np.zeros((len(way), 2))])
    left = quantities * [1.0, -1.0, 1.0, 1.0, 1.0]
    for goal_opening in (0.12, 0.02):
        goal = np.array([goal_opening, 0.0, 0.0, 0.0, 0.0])
        costs = drawer.approach_cost(quantities, goal)
        assert (np.diff(costs) < 0).all()
        assert np.allclose(drawer.approach_cost(left, goal), costs)
    far, beside = drawer.approach_cost(quantities, goal)[[0, 2]]
    assert far == pytest.approx(beside + 0.3 * np.hypot(0.011, 0.069), abs=0.001)  # not through the drawer
    places = drawer.way_to_hook(way[0], np.asarray(0.1))[1]
    assert np.allclose(places, [handle + drawer.FRONT_CORNER_M] * 2)


def test_drawer_stays_where_it_is_left():
    task = get_task("drawer")
    start, goal = draw_pair("drawer", 0)
    policy, state = task.expert(goal, np.random.default_rng(0)), start
    for _ in range(task.episode_steps):
        state = branch(task, state, policy(state)[None, None], num_threads=1).states[0, 0]
    idle = branch(task, state, np.zeros((1, 30, 3))).states[0]
    assert np.abs(idle[5:, 1] - idle[5, 1]).max() < 1e-4


def test_drawer_approach_leads_round_the_handle():
    """From before the handle the way leads by its end; it gets shorter along the way, and is nothing at its end."""
    opening = np.asarray(0.05)
    handle = np.array([0.0, drawer.HANDLE_Y_M - 0.05])
    before, corner, hook = handle + np.array([0.03, -0.05]), handle + drawer.CORNER_M, handle + drawer.HOOK_M
    lengths = [drawer.way_to_hook(place, opening)[0].min() for place in (before, corner, hook)]
    assert lengths[0] > np.linalg.norm(hook - before) + 0.02
    assert lengths[0] > lengths[1] > lengths[2] == 0.0
    data = mujoco.MjData(get_task("drawer").model)
    assert get_state(get_task("drawer").model, data)[1] == 0.0
