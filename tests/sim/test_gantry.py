# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""The arm with a gripper, and its two tasks: what is held stays held, what is let go falls, what stands stays."""

import mujoco
import numpy as np
import pytest

from sim import get_task
from sim.branch import Brancher, branch
from sim.collect import collect
from sim.physics import get_state, set_state
from sim.tasks import gantry
from sim.tasks.base import Task

ARM_TASKS = ("pick_place", "stack")
CUBES = {"pick_place": ("cube",), "stack": ("red", "blue")}


def draw(task: Task, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    start = task.reset(task.model, rng)
    return start, task.sample_goal(task.model, start, rng)


def idle(task: Task, num_steps: int) -> np.ndarray:
    return np.zeros((1, num_steps, task.action_size))


def held_cube(height: float = 0.1) -> np.ndarray:
    """Return a state of pick_place in which the cube is held in the air over the table."""
    place = np.array([-0.05, -0.03, height, 0.3])
    return gantry.scene_state(get_task("pick_place").model, place, gantry.FINGER_HOLDING_M, [place])


@pytest.mark.parametrize("name", ARM_TASKS)
def test_quantities_agree_with_mujoco(name):
    task = get_task(name)
    data = mujoco.MjData(task.model)
    for seed in range(5):
        for state in draw(task, seed):
            set_state(task.model, data, state)
            quantities = dict(zip(task.quantity_names, task.state_quantities(state), strict=True))
            hand = [quantities[f"hand_{axis}"] for axis in "xyz"]
            heading = data.body("hand").xmat.reshape(3, 3)[:, 0]
            assert np.allclose(hand, data.body("hand").xpos, atol=1e-12)
            assert np.allclose(np.arctan2(heading[1], heading[0]), quantities["hand_yaw"], atol=1e-12)
            inner = [data.geom(f"finger_{side}").xpos for side in ("left", "right")]
            thickness = 2.0 * task.model.geom("finger_left").size[0]
            assert np.isclose(np.linalg.norm(inner[0] - inner[1]) - thickness, quantities["grip_gap"], atol=1e-12)
            for cube in CUBES[name]:
                assert np.allclose([quantities[f"{cube}_{axis}"] for axis in "xyz"], data.body(cube).xpos, atol=1e-12)


def test_turn_of_a_cube_does_not_know_which_face_is_up():
    rng = np.random.default_rng(0)
    turns = [np.array([np.cos(np.pi / 4), *(np.sin(np.pi / 4) * axis)]) for axis in np.eye(3)]
    for _ in range(20):
        positions = np.zeros(13)
        yaw = rng.uniform(-np.pi, np.pi)
        positions[9:13] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        assert np.allclose(gantry.cube_quantities(positions, 0)[3:], [np.cos(4 * yaw), np.sin(4 * yaw)])
        for turn in turns:
            mujoco.mju_mulQuat(positions[9:13], positions[9:13].copy(), turn)
            assert np.allclose(gantry.cube_quantities(positions, 0)[3:], [np.cos(4 * yaw), np.sin(4 * yaw)])
    positions[9:13] = rng.normal(size=4)
    positions[9:13] /= np.linalg.norm(positions[9:13])
    tumbling = gantry.cube_quantities(positions, 0)[3:]
    assert np.linalg.norm(tumbling) <= 1.0 + 1e-9
    mujoco.mju_mulQuat(positions[9:13], positions[9:13].copy(), turns[0])
    assert np.allclose(gantry.cube_quantities(positions, 0)[3:], tumbling)


def test_doing_nothing_keeps_a_grasp_for_five_seconds():
    task = get_task("pick_place")
    result = branch(task, held_cube(), idle(task, 50))
    drift = result.quantities[0, :, 5:8] - task.state_quantities(held_cube())[5:8]
    assert np.abs(drift).max() < 0.006
    assert result.contacts.all()


def test_opening_drops_the_cube_onto_the_table():
    task = get_task("pick_place")
    actions = idle(task, 15)
    actions[..., 4] = 1.0
    quantities = branch(task, held_cube(), actions).quantities[0]
    assert quantities[0, 7] > 0.08
    assert quantities[-1, 7] == pytest.approx(gantry.HALF_CUBE_M, abs=1e-3)
    assert quantities[-1, 4] == pytest.approx(gantry.GAP_OPEN_M, abs=1e-3)


def test_hand_moves_as_commanded():
    """An action is a Cartesian velocity: after a step at rest, the hand is where the action says."""
    task = get_task("pick_place")
    start, _ = draw(task, 0)
    for channel in range(4):
        actions = idle(task, 6)
        actions[..., channel] = -0.4
        moved = branch(task, start, actions).quantities[0, -1, :4] - task.state_quantities(start)[:4]
        expected = np.zeros(4)
        expected[channel] = -0.4 * 6 * gantry.STEP[channel]
        assert np.allclose(moved, expected, atol=0.1 * np.abs(expected).max())


@pytest.mark.parametrize("name", ARM_TASKS)
def test_cubes_that_nobody_touches_stay(name):
    """Sideways not at all; at first they settle by a fraction of a millimetre."""
    task = get_task(name)
    for seed in range(5):
        start, _ = draw(task, seed)
        result = branch(task, start, idle(task, 40))
        assert not result.contacts.any()
        for place in task.objects.values():
            moved = result.quantities[0][:, list(place)] - task.state_quantities(start)[list(place)]
            assert np.abs(moved[:, :2]).max() < 1e-5
            assert np.abs(moved[:, 2]).max() < 5e-4


def test_goals_of_pick_place_are_of_three_kinds_and_rest_or_are_held():
    task = get_task("pick_place")
    kinds = {"shelf": 0, "air": 0, "table": 0}
    for seed in range(60):
        _, goal = draw(task, seed)
        goal_quantities = task.state_quantities(goal)
        height = goal_quantities[7]
        kinds["table" if height < 0.03 else "shelf" if abs(height - 0.08) < 1e-9 else "air"] += 1
        after = branch(task, goal, idle(task, 20)).quantities[0, -1]
        assert task.cost(after, goal_quantities) < 0.004
    assert min(kinds.values()) >= 4
    assert kinds["table"] < 20


def test_a_stack_stands_and_only_a_cube_that_was_let_go_is_stacked():
    task = get_task("stack")
    for seed in range(5):
        _, goal = draw(task, seed)
        goal_quantities = task.state_quantities(goal)
        standing = branch(task, goal, idle(task, 50)).quantities[0]
        assert task.success(standing, goal_quantities).all()
        assert task.cost(standing[-1], goal_quantities) < 0.003
        held = goal_quantities.copy()
        held[:4], held[4] = [*held[5:8], 0.0], gantry.GAP_HOLDING_M
        assert not task.success(held, goal_quantities)
        pushed = goal_quantities.copy()
        pushed[10] += 0.03
        assert not task.success(pushed, goal_quantities)


@pytest.mark.parametrize("name", ARM_TASKS)
def test_approach_falls_from_far_to_above_to_around_to_holding(name):
    task = get_task(name)
    start, goal = draw(task, 2)
    far = task.state_quantities(start)
    far[:2] = far[5:7] + 0.1
    above, around, holding = far.copy(), far.copy(), far.copy()
    for quantities, height, gap in ((above, 0.05, 0.076), (around, 0.0, 0.076), (holding, 0.0, gantry.GAP_HOLDING_M)):
        quantities[:3] = far[5:8] + np.array([0.0, 0.0, height])
        quantities[3] = np.arctan2(far[9], far[8]) / 4.0
        quantities[4] = gap
    costs = [task.planning_cost(q, task.state_quantities(goal)) for q in (far, above, around, holding)]
    assert costs == sorted(costs, reverse=True)
    assert min(-np.diff(costs)) > 0.005


def played(task: Task, *, clumsy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return quantities [50, 40, Q] and actions [50, 40, A] of 40 episodes of play."""
    policy_of = task.clumsy_policy if clumsy else task.play_policy
    assert policy_of is not None
    rngs = [np.random.default_rng([0, number]) for number in range(40)]
    states = np.stack([task.reset(task.model, rng) for rng in rngs])
    policies = [policy_of(rng) for rng in rngs]
    brancher = Brancher(task, num_threads=1)
    quantities, actions = [], []
    for _ in range(50):
        actions.append(np.stack([policy(state) for policy, state in zip(policies, states, strict=True)]))
        result = brancher(states, actions[-1][:, None])
        states = result.states[:, 0]
        quantities.append(result.quantities[:, 0])
    brancher.close()
    return np.stack(quantities), np.stack(actions)


@pytest.mark.parametrize("clumsy", [False, True])
@pytest.mark.parametrize("name", ARM_TASKS)
def test_play_grasps_and_lifts(name, clumsy):
    task = get_task(name)
    quantities, actions = played(task, clumsy=clumsy)
    lifted = np.max([quantities[..., place[2]] for place in task.objects.values()], axis=0) > 0.045
    assert lifted.any(axis=0).mean() > 0.5
    assert 0.15 < lifted.mean() < 0.7
    assert np.abs(actions).max() <= 1.0
    for channel in np.moveaxis(actions, -1, 0):
        assert np.histogram(channel, bins=4, range=(-1, 1))[0].min() > 0.03 * channel.size


@pytest.mark.parametrize("name", ARM_TASKS)
def test_clumsy_play_comes_to_cubes_however_they_are_turned(name):
    """A model must not learn that a cube is turned as the hand beside it is, as it is in nearly all other play."""
    task = get_task(name)
    shares = []
    for clumsy in (False, True):
        quantities, _ = played(task, clumsy=clumsy)
        hand, cube = quantities[..., gantry.HAND], quantities[..., 5:10]
        beside = np.linalg.norm(hand[..., :3] - cube[..., :3], axis=-1) < 0.03
        aligned = np.cos(4.0 * hand[..., 3]) * cube[..., 3] + np.sin(4.0 * hand[..., 3]) * cube[..., 4]
        on_table = cube[..., 2] < 0.022
        shares.append((aligned[beside & on_table] < 0.3).mean())
    assert shares[0] < 0.07
    assert 0.1 < shares[1] < 0.5


@pytest.mark.parametrize("clumsy", [False, True])
def test_play_turns_what_it_carries(clumsy):
    """Or the goal image of a cube would tell how it was grasped, and goals that want it turned would be unknown."""
    quantities, _ = played(get_task("pick_place"), clumsy=clumsy)
    hand, cube = quantities[:-1, :, gantry.HAND], quantities[:-1, :, 5:10]
    is_carried = (np.linalg.norm(hand[..., :3] - cube[..., :3], axis=-1) < 0.018) & (cube[..., 2] > 0.045)
    turned = np.abs(np.diff(quantities[..., 3], axis=0))
    assert (turned[is_carried] > 0.05).mean() > 0.25


def test_only_arms_are_clumsy():
    with pytest.raises(ValueError, match="'push' has no clumsy policy; pick_place and stack have"):
        next(collect("push", num_episodes=1, seed=0, policy="clumsy"))


def test_play_stacks_now_and_then():
    task = get_task("stack")
    stacked = 0
    for number in range(12):
        rng = np.random.default_rng([1, number])
        data = mujoco.MjData(task.model)
        set_state(task.model, data, task.reset(task.model, rng))
        policy = task.play_policy(rng)
        apart = np.inf
        for _ in range(50):
            task.step(task.model, data, policy(get_state(task.model, data)))
            quantities = task.state_quantities(get_state(task.model, data))
            on_top = np.abs(quantities[5:8] - quantities[10:13] - np.array([0.0, 0.0, 0.04])).max()
            apart = min(apart, on_top) if quantities[4] > 0.06 else apart
        stacked += apart < 0.02
    assert stacked >= 2
