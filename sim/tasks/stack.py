# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Stack: put the red cube on the blue one, and let go.

The arm is that of `sim.tasks.gantry`, and so are the reasons for it. The goal is where both cubes are, and how far the
gripper is open, all in metres: a cube that is still held is not stacked, and a blue cube that was pushed away counts.
"""

from functools import partial

import mujoco
import numpy as np

from sim.tasks import gantry
from sim.tasks.base import Policy, Task

RED, BLUE = slice(5, 10), slice(10, 15)
RED_INDEX, BLUE_INDEX = 0, 1
ON_TABLE_M, ON_CUBE_M = gantry.HALF_CUBE_M, 3.0 * gantry.HALF_CUBE_M
MIN_DISTANCE_M = 0.09
BLUE_FIELD_M = np.array([0.11, 0.08])


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the quantities of the hand, the red and the blue cube, [..., 15], of joint positions [..., 20]."""
    cubes = [gantry.cube_quantities(positions, index) for index in (RED_INDEX, BLUE_INDEX)]
    return np.concatenate([gantry.hand_quantities(positions), *cubes], axis=-1)


def _draw_yaw(rng: np.random.Generator) -> float:
    return rng.uniform(-np.pi / 4.0, np.pi / 4.0)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw two cubes apart on the table, turned any way, and a hand above."""
    hand, finger = gantry.random_hand(rng)
    while True:
        red, blue = rng.uniform(-gantry.FIELD_M, gantry.FIELD_M), rng.uniform(-BLUE_FIELD_M, BLUE_FIELD_M)
        if np.linalg.norm(red - blue) >= MIN_DISTANCE_M:
            cubes = [np.array([*place, ON_TABLE_M, _draw_yaw(rng)]) for place in (red, blue)]
            return gantry.scene_state(model, hand, finger, cubes)


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put the red cube on the blue one where that stands, a little askew, with the open hand just above."""
    blue = gantry.cube_quantities(start[1:], BLUE_INDEX)
    blue_yaw = np.arctan2(blue[4], blue[3]) / 4.0
    place = blue[:2] + rng.uniform(-0.003, 0.003, size=2)
    yaw = rng.uniform(-0.5, 0.5)
    hand = np.array([*place, ON_CUBE_M + rng.uniform(0.035, 0.06), yaw])
    cubes = [np.array([*place, ON_CUBE_M, yaw]), np.array([*blue[:2], ON_TABLE_M, blue_yaw])]
    return gantry.scene_state(model, hand, gantry.FINGER_OPEN_M, cubes)


def _carry_somewhere(rng: np.random.Generator) -> Policy:
    """Carry the red cube onto the blue one, or either cube to a random place on the table or above it."""
    if rng.random() < 0.55:
        return stack_on_blue(rng.uniform(-0.006, 0.006, size=2))
    height = ON_TABLE_M if rng.random() < 0.6 else rng.uniform(0.05, 0.12)
    place = np.append(rng.uniform(-gantry.FIELD_M, gantry.FIELD_M), height)
    index, release = int(rng.integers(2)), bool(rng.random() < 0.6)
    return gantry.carry(index, place, release=release, yaw=rng.uniform(-gantry.TURN_RAD, gantry.TURN_RAD))


def stack_on_blue(offset: np.ndarray) -> Policy:
    """Return a policy that puts the red cube on the blue one, `offset` [2] (m) off its middle, wherever that is."""
    put: Policy | None = None

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal put
        if put is None:
            blue = gantry.cube_quantities(state[1:], BLUE_INDEX)
            put = gantry.carry(RED_INDEX, np.append(blue[:2] + offset, ON_CUBE_M), release=True)
        return put(state)

    return policy


def play_policy(rng: np.random.Generator, *, clumsy: bool = False) -> Policy:
    """Mix stacking, carrying either cube elsewhere, meddling, noise and steady moves."""
    return gantry.play(partial(_carry_somewhere, rng), 2, rng, clumsy=clumsy)


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that puts the red cube where it is in the goal state and lets go."""
    policy = gantry.carry(RED_INDEX, gantry.cube_quantities(goal[1:], RED_INDEX)[:3], release=True)
    return lambda state: policy(state).astype(np.float32)


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return how far the hand is from holding the red cube until that is in place, and the red cube from coming down.

    What the blue cube was pushed counts once more, in metres too: far from the goal, the cost alone hardly feels it.
    """
    hand, red, goal = quantities[..., gantry.HAND], quantities[..., RED], goal_quantities[..., RED]
    missing = np.clip(np.sqrt(np.square(red[..., :3] - goal[..., :3]).sum(axis=-1)) / 0.02 - 0.5, 0.0, 1.0)
    pushed = np.sqrt(np.square((quantities - goal_quantities)[..., BLUE][..., :3]).sum(axis=-1))
    return missing * gantry.grasp_cost(hand, red) + 0.5 * gantry.descent_cost(red, goal) + pushed


STACK = Task(
    name="stack",
    xml="stack.xml",
    action_names=gantry.ACTION_NAMES,
    action_scale=gantry.ACTION_SCALE,
    substeps=gantry.CONTROL_SUBSTEPS,
    episode_steps=36,
    quantities=(*gantry.HAND_QUANTITIES, *gantry.cube_quantity_list("red"), *gantry.cube_quantity_list("blue")),
    quantities_of=quantities_of,
    proprioception=gantry.PROPRIOCEPTION,
    proprioception_of=gantry.proprioception_of,
    proprioception_limits=gantry.PROPRIOCEPTION_LIMITS,
    goal_indices=(4, 5, 6, 7, 10, 11, 12),
    tolerance_m=0.025,
    cameras=("front", "side"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    clumsy_policy=partial(play_policy, clumsy=True),
    expert=expert,
    objects={"red": (5, 6, 7), "blue": (10, 11, 12)},
    contact_sensor="hand_touch",
    approach_cost=approach_cost,
)
