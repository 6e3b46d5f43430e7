# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Pick and place: lift a cube and bring it to where it is in a goal image: on a shelf, in the air, or on the table.

The arm is that of `sim.tasks.gantry`, and so are the reasons for it. The shelf is 6 cm high: no cube gets there, or
into the air, without a grasp. Only the cube's place counts.
"""

from functools import partial

import mujoco
import numpy as np

from sim.tasks import gantry
from sim.tasks.base import Policy, Task

CUBE = slice(5, 10)
SHELF_MIDDLE_M, SHELF_HALF_M = np.array([0.10, 0.10]), np.array([0.07, 0.05])
SHELF_TOP_M = 0.06
ON_TABLE_M = gantry.HALF_CUBE_M
ON_SHELF_M = SHELF_TOP_M + gantry.HALF_CUBE_M
AIR_M = (0.07, 0.14)
MIN_GOAL_DISTANCE_M = 0.07
SHELF_CLEARANCE_M = 0.035
GOAL_SHARES = {"shelf": 0.45, "air": 0.40, "table": 0.15}


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the hand's and the cube's quantities, [..., 10], of joint positions [..., 13]."""
    return np.concatenate([gantry.hand_quantities(positions), gantry.cube_quantities(positions, 0)], axis=-1)


def _beside_shelf(place: np.ndarray) -> bool:
    return bool((np.abs(place - SHELF_MIDDLE_M) > SHELF_HALF_M + SHELF_CLEARANCE_M).any())


def _draw_on_table(rng: np.random.Generator) -> np.ndarray:
    while True:
        place = rng.uniform(-gantry.FIELD_M, gantry.FIELD_M)
        if _beside_shelf(place):
            return np.append(place, ON_TABLE_M)


def _draw_on_shelf(rng: np.random.Generator) -> np.ndarray:
    room = SHELF_HALF_M - 0.025
    return np.append(SHELF_MIDDLE_M + rng.uniform(-room, room), ON_SHELF_M)


def _draw_in_air(rng: np.random.Generator) -> np.ndarray:
    place = rng.uniform(-gantry.FIELD_M, gantry.FIELD_M)
    lowest = AIR_M[0] if _beside_shelf(place) else ON_SHELF_M + 0.02
    return np.append(place, rng.uniform(lowest, AIR_M[1]))


def draw_place(rng: np.random.Generator) -> np.ndarray:
    """Draw a place [3] for the cube: on the shelf, in the air or on the table."""
    kind = rng.choice(list(GOAL_SHARES), p=list(GOAL_SHARES.values()))
    return {"shelf": _draw_on_shelf, "air": _draw_in_air, "table": _draw_on_table}[kind](rng)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw a cube on the table, turned any way, and a hand above."""
    hand, finger = gantry.random_hand(rng)
    cube = np.append(_draw_on_table(rng), rng.uniform(-np.pi / 4.0, np.pi / 4.0))
    return gantry.scene_state(model, hand, finger, [cube])


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a place at least 7 cm away, with the hand still holding the cube there."""
    before = quantities_of(start[1 : 1 + model.nq], np.zeros(model.nv))[CUBE]
    while True:
        place = draw_place(rng)
        if np.linalg.norm(place - before[:3]) >= MIN_GOAL_DISTANCE_M:
            yaw = rng.uniform(-0.5, 0.5)
            return gantry.scene_state(model, np.append(place, yaw), gantry.FINGER_HOLDING_M, [np.append(place, yaw)])


def play_policy(rng: np.random.Generator, *, clumsy: bool = False) -> Policy:
    """Mix carrying the cube to random places and turns, letting it go or not, with meddling, noise and steady moves."""
    return gantry.play(partial(_carry_somewhere, rng), 1, rng, clumsy=clumsy)


def _carry_somewhere(rng: np.random.Generator) -> Policy:
    place, release = draw_place(rng), bool(rng.random() < 0.5)
    return gantry.carry(0, place, release=release, yaw=rng.uniform(-gantry.TURN_RAD, gantry.TURN_RAD))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that takes the cube and holds it where it is in the goal state."""
    policy = gantry.carry(0, gantry.cube_quantities(goal[1:], 0)[:3], release=False)
    return lambda state: policy(state).astype(np.float32)


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return how far the hand is from holding the cube, and the cube from coming down on its goal, in metres."""
    hand, cube, goal = quantities[..., gantry.HAND], quantities[..., CUBE], goal_quantities[..., CUBE]
    return gantry.grasp_cost(hand, cube) + 0.5 * gantry.descent_cost(cube, goal)


PICK_PLACE = Task(
    name="pick_place",
    xml="pick_place.xml",
    action_names=gantry.ACTION_NAMES,
    action_scale=gantry.ACTION_SCALE,
    substeps=gantry.CONTROL_SUBSTEPS,
    episode_steps=32,
    quantities=(*gantry.HAND_QUANTITIES, *gantry.cube_quantity_list("cube")),
    quantities_of=quantities_of,
    proprioception=gantry.PROPRIOCEPTION,
    proprioception_of=gantry.proprioception_of,
    proprioception_limits=gantry.PROPRIOCEPTION_LIMITS,
    goal_indices=(5, 6, 7),
    tolerance_m=0.025,
    cameras=("front", "side"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    clumsy_policy=partial(play_policy, clumsy=True),
    expert=expert,
    objects={"cube": (5, 6, 7)},
    contact_sensor="hand_touch",
    approach_cost=approach_cost,
)
