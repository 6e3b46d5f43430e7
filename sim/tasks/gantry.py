# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""The arm of the 3D tasks: a Cartesian arm (x, y, z, yaw) with a two-finger gripper over a table, and how to grasp.

An arm whose joints are the axes of its hand makes Cartesian hand velocities *be* joint velocities: controls are the
actions times a constant, so `mujoco.rollout` replays candidates in native threads, and the inverse kinematics is exact.
The grip channel moves the set point of the finger servo (MuJoCo's `intvelocity`), so an action of zero keeps everything
as it is, a grasp too. The set point is an activation and therefore part of the physics state.

Positions: hand x, y, z, yaw, left and right finger, then seven of every cube (place and quaternion). Lengths in m.
"""

from collections.abc import Callable

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks.base import Policy, Quantity, get_state

ACTION_NAMES = ("hand_velocity_x", "hand_velocity_y", "hand_velocity_z", "hand_velocity_yaw", "grip_velocity")
ACTION_SCALE = (0.25, 0.25, 0.25, 2.0, 0.08)
STEP = 0.1 * np.array(ACTION_SCALE)
"""What an action of 1 moves in one control step."""
CONTROL_SUBSTEPS = 8
HALF_CUBE_M = 0.02
FIELD_M = np.array([0.13, 0.10])
HAND_HEIGHT_M = (0.07, 0.15)
TURN_RAD = 0.6
"""Largest yaw of a hand at the start, and of one that has carried a cube somewhere."""
FINGER_OPEN_M, FINGER_HOLDING_M, FINGER_TIGHT_M = 0.038, 0.0195, 0.014  # tight: where the servo wants to be, pressing
GAP_OPEN_M, GAP_HOLDING_M = 2.0 * FINGER_OPEN_M, 2.0 * FINGER_HOLDING_M
# Heights on the way: the hand's over a cube that it is to take, and over everything; a cube's over its goal, and over
# everything (the shelf of pick_place is the highest).
HOVER_M, CLEAR_M = 0.05, 0.11
TRAVEL_M, CARRY_M = 0.035, 0.09

HAND_QUANTITIES = (
    *(Quantity(name=name, unit="m") for name in ("hand_x", "hand_y", "hand_z")),
    Quantity(name="hand_yaw", unit="rad"),
    Quantity(name="grip_gap", unit="m"),
)
HAND = slice(0, 5)
PROPRIOCEPTION = (
    *HAND_QUANTITIES,
    *(Quantity(name=f"hand_velocity_{axis}", unit="m/s") for axis in "xyz"),
    Quantity(name="hand_velocity_yaw", unit="rad/s"),
    Quantity(name="grip_gap_velocity", unit="m/s"),
)
PROPRIOCEPTION_LIMITS = (1.0, 1.0, 1.0, 4.0, 1.0, 20.0, 20.0, 20.0, 100.0, 20.0)


def cube_quantity_list(name: str) -> tuple[Quantity, ...]:
    """Describe the quantities of a cube; its turn is that of its faces, which look alike (see `cube_quantities`)."""
    places = tuple(Quantity(name=f"{name}_{axis}", unit="m") for axis in "xyz")
    return (*places, *(Quantity(name=f"{name}_turn_{part}", unit="1") for part in ("cos", "sin")))


def hand_quantities(positions: np.ndarray) -> np.ndarray:
    """Return hand x, y, z (m), yaw (rad) and the gap between the fingers (m), [..., 5]."""
    gap = positions[..., 4:5] + positions[..., 5:6]
    return np.concatenate([positions[..., :4], gap], axis=-1)


def cube_quantities(positions: np.ndarray, index: int) -> np.ndarray:
    """Return x, y, z (m) of cube number `index`, and cosine and sine of four times its yaw, [..., 5].

    Whichever face is up, a cube looks the same after a quarter turn. With a_i + j b_i the horizontal part of its i-th
    axis, half the sum of (a_i + j b_i)^4 knows no face from another, equals exp(4j yaw) for a cube that lies flat and
    is smooth where one tumbles.
    """
    first = 6 + 7 * index
    w, x, y, z = np.moveaxis(positions[..., first + 3 : first + 7], -1, 0)
    axes = (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z)),
        (2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z)),
        (2.0 * (x * z + w * y), 2.0 * (y * z - w * x)),
    )
    cosine, sine = np.zeros_like(w), np.zeros_like(w)
    for a, b in axes:
        real, imaginary = a * a - b * b, 2.0 * a * b
        cosine = cosine + 0.5 * (real * real - imaginary * imaginary)
        sine = sine + real * imaginary
    place = positions[..., first : first + 3]
    return np.concatenate([place, cosine[..., None], sine[..., None]], axis=-1)


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the hand's quantities and their velocities."""
    return np.concatenate([hand_quantities(positions), hand_quantities(velocities)], axis=-1)


def scene_state(model: mujoco.MjModel, hand: np.ndarray, finger: float, cubes: list[np.ndarray]) -> np.ndarray:
    """Return a physics state at rest.

    Args:
        model: The task's model.
        hand: x, y, z, yaw.
        finger: Distance of each finger from the middle; where it holds a cube, it presses.
        cubes: x, y, z, yaw of each.
    """
    data = mujoco.MjData(model)
    quaternions = [[np.cos(yaw / 2.0), 0.0, 0.0, np.sin(yaw / 2.0)] for *_, yaw in cubes]
    data.qpos[:] = np.concatenate(
        [hand, [finger, finger], *(np.append(cube[:3], q) for cube, q in zip(cubes, quaternions, strict=True))]
    )
    data.act[:] = FINGER_TIGHT_M if finger <= FINGER_HOLDING_M else finger
    return get_state(model, data)


def random_hand(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw a hand above the table, x, y, z, yaw, and how far its fingers are open."""
    place = rng.uniform(-FIELD_M, FIELD_M)
    pose = np.array([*place, rng.uniform(*HAND_HEIGHT_M), rng.uniform(-TURN_RAD, TURN_RAD)])
    return pose, rng.uniform(0.025, FINGER_OPEN_M)


def grasp_cost(hand: np.ndarray, cube: np.ndarray) -> np.ndarray:
    """Return how far, in metres, a hand [..., 5] is from holding a cube [..., 5]: come from above, open, then close."""
    offset = np.sqrt(np.square(hand[..., :2] - cube[..., :2]).sum(axis=-1))
    hover = HOVER_M * np.clip((offset - 0.012) / 0.03, 0.0, 1.0)
    height = np.abs(hand[..., 2] - cube[..., 2] - hover)
    near = 1.0 - np.clip((offset + height) / 0.03, 0.0, 1.0)
    gap = np.abs(hand[..., 4] - near * GAP_HOLDING_M - (1.0 - near) * GAP_OPEN_M)
    alignment = np.cos(4.0 * hand[..., 3]) * cube[..., 3] + np.sin(4.0 * hand[..., 3]) * cube[..., 4]
    return offset + height + 0.5 * gap + 0.01 * np.clip(1.0 - alignment, 0.0, 2.0)


def descent_cost(cube: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return how far, in metres, a cube [..., 5] is below the funnel that leads down to its goal [..., 5]."""
    offset = np.sqrt(np.square(cube[..., :2] - goal[..., :2]).sum(axis=-1))
    wanted = goal[..., 2] + TRAVEL_M * np.clip((offset - 0.008) / 0.03, 0.0, 1.0)
    return np.maximum(wanted - cube[..., 2], 0.0)


def steer(hand: np.ndarray, target: np.ndarray, grip: float) -> np.ndarray:
    """Return the action [5] that brings the hand [5] to x, y, z, yaw `target` [4], with a grip action."""
    return np.clip(np.append((target - hand[:4]) / STEP[:4], grip), -1.0, 1.0)


def _fetch(hand: np.ndarray, cube: np.ndarray, yaw: float) -> np.ndarray:
    """Return the action of a hand [5] that is to take a cube [5]: above it, down on it, close."""
    offset = np.linalg.norm(hand[:2] - cube[:2])
    centred = offset < 0.006 and abs(hand[3] - yaw) < 0.08
    if centred and hand[2] < cube[2] + 0.006:
        return steer(hand, np.array([*cube[:3], yaw]), -1.0)
    if centred:
        return steer(hand, np.array([*cube[:3], yaw]), 1.0 if hand[4] < GAP_OPEN_M - 0.002 else 0.0)
    if offset > 0.03:  # over whatever stands between, then down
        high = hand[2] > CLEAR_M - 0.01
        return steer(hand, np.array([*(cube[:2] if high else hand[:2]), CLEAR_M, yaw]), 1.0)
    high = hand[2] > cube[2] + 0.6 * HOVER_M
    return steer(hand, np.array([*(cube[:2] if high else hand[:2]), cube[2] + HOVER_M, yaw]), 1.0)


def _bring(hand: np.ndarray, cube: np.ndarray, target: np.ndarray, yaw: float | None) -> np.ndarray:
    """Return the action of a hand [5] that holds a cube [5] and brings it to `target` [3] from above, turned to yaw."""
    error = target - cube[:3]
    offset = np.linalg.norm(error[:2])
    travel = max(target[2] + TRAVEL_M, CARRY_M)
    if offset < 0.012:
        move = error
    elif cube[2] < travel - 0.02:
        move = np.array([0.0, 0.0, travel - cube[2]])
    else:
        move = np.array([*error[:2], travel - cube[2]])
    turn = 0.0 if yaw is None or cube[2] < HALF_CUBE_M + 0.01 else yaw - hand[3]  # on the table it would scrape
    return np.append(np.clip(np.append(move, turn) / STEP[:4], -1.0, 1.0), -1.0)


def carry(index: int, target: np.ndarray, *, release: bool, yaw: float | None = None) -> Policy:
    """Return a policy that takes a cube, brings it to `target` [3] and, if wanted, lets it go and goes up.

    Args:
        index: Number of the cube.
        target: Where the cube's middle is to be.
        release: Whether to let go there.
        yaw: How the hand is to be turned on the way, as far as there is time; None is as it took the cube.
    """
    released = False

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal released
        hand, cube = hand_quantities(state[1:]), cube_quantities(state[1:], index)
        apart = np.linalg.norm(hand[:3] - cube[:3])
        there = bool(np.linalg.norm(cube[:3] - target) < 0.008)
        holding = apart < 0.018 and 0.03 < hand[4] < 0.0415
        released = (released and np.linalg.norm(cube[:2] - target[:2]) < 0.03) or (release and holding and there)
        if released:
            rise = 1.0 if hand[4] > GAP_OPEN_M - 0.012 else 0.0
            return np.array([0.0, 0.0, rise * (hand[2] < cube[2] + HOVER_M), 0.0, 1.0])
        if holding:
            return _bring(hand, cube, target, yaw)
        turn = (np.arctan2(cube[4], cube[3]) - 4.0 * hand[3] + np.pi) % (2.0 * np.pi) - np.pi
        return _fetch(hand, cube, hand[3] + turn / 4.0)

    return policy


def meddle(index: int, rng: np.random.Generator) -> Policy:
    """Return a policy that goes to somewhere near a cube, at its height or above, and opens or closes there."""
    beside = np.append(rng.normal(scale=0.025, size=2), rng.uniform(0.0, 0.06))
    yaw, grip, speed = rng.uniform(-0.8, 0.8), rng.choice([-1.0, 0.0, 1.0]), rng.uniform(0.4, 1.0)

    def policy(state: np.ndarray) -> np.ndarray:
        hand, cube = hand_quantities(state[1:]), cube_quantities(state[1:], index)
        return speed * steer(hand, np.append(cube[:3] + beside, yaw), grip)

    return policy


def hesitant(policy: Policy, rng: np.random.Generator) -> Policy:
    """Return a policy with another's aim, but slower and with some noise."""
    speed, noise = rng.uniform(0.6, 1.0), rng.uniform(0.0, 0.15)
    return lambda state: speed * policy(state) + noise * rng.normal(size=len(ACTION_SCALE))


def mistaken(policy: Policy, num_cubes: int, rng: np.random.Generator) -> Policy:
    """Return a policy with another's aim that takes the cubes to be beside where they are, and turned."""
    beside, turned = rng.normal(scale=0.01, size=2), rng.uniform(-np.pi / 4.0, np.pi / 4.0)
    turn = np.array([np.cos(turned / 2.0), 0.0, 0.0, np.sin(turned / 2.0)])

    def deceived(state: np.ndarray) -> np.ndarray:
        believed = state.copy()
        for first in range(7, 7 + 7 * num_cubes, 7):  # after the time, the hand and the fingers
            believed[first : first + 2] += beside
            mujoco.mju_mulQuat(believed[first + 3 : first + 7], turn, state[first + 3 : first + 7])
        return policy(believed)

    return deceived


def play(draw_carry: Callable[[], Policy], num_cubes: int, rng: np.random.Generator, *, clumsy: bool = False) -> Policy:
    """Mix carrying, meddling, noise and steady moves.

    Args:
        draw_carry: Makes a policy that carries: which cube, where to.
        num_cubes: How many there are.
        rng: Source of all draws.
        clumsy: Aim badly in three of seven carries. Where a hand comes to a cube well aligned or not at all, its turn
            tells the cube's, and that is what a model learns to read; plans then fail where the hand is not aligned.
    """
    well, badly = (0.40, 0.30) if clumsy else (0.70, 0.0)
    choices = [
        (well, lambda: hesitant(draw_carry(), rng)),
        (badly, lambda: hesitant(mistaken(draw_carry(), num_cubes, rng), rng)),
        (0.12, lambda: meddle(int(rng.integers(num_cubes)), rng)),
        (0.12, lambda: noise_policy(len(ACTION_SCALE), rng)),
        (0.06, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=len(ACTION_SCALE)))),
    ]
    return segments(choices, rng, lengths=(12, 28))
