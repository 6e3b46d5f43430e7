# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Push-T: bring a T-shaped block to a place and a direction, with a velocity-controlled pusher, on a 40 cm table.

The camera looks down, slightly tilted. The T slides as on a film of oil: it moves where it is pushed, stops where it is
left, and a push shifts and turns it the same way in every direction. Its pose counts through three points of it, the
middles of the bar's two ends and of the stem's end: the cost is the root mean square of their distances to where they
should be, so 2 cm is a shift of 2 cm or a turn of 20 degrees.
"""

import functools

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.geodesic import Geodesics, distance_to_boxes
from sim.tasks import pushing
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

PUSHER_RADIUS_M = 0.016
CLEARANCE_M = 0.008
START_FIELD_M = 0.08
GOAL_FIELD_M = 0.10
GOAL_SHIFT_M = (0.03, 0.10)
GOAL_TURN_RAD = (0.2, 1.0)
MIN_GOAL_DISTANCE_M = 0.06
_COMPASS = np.stack([np.cos(np.arange(24) * np.pi / 12), np.sin(np.arange(24) * np.pi / 12)], axis=-1)
BOXES_M = np.array([[0.0, 0.0257, 0.06, 0.015], [0.0, -0.0343, 0.015, 0.045]])
"""Bar and stem in the T's frame: centre x, y and half size x, y, as in the model."""
KEY_POINTS_M = np.array([[-0.045, 0.0257], [0.045, 0.0257], [0.0, -0.0643]])
"""Middles of the bar's left and right end and of the stem's end, in the T's frame."""
MIN_GAIN_M = 0.0015
WAY_WEIGHT = 0.02
GYRATION_M = 0.045
"""Root of angular over linear drag: how far from the centre a push turns the T as much as it shifts it."""


def to_world(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Turn points [N, 2] of the T's frame into the world's, [..., N, 2]; poses [..., 3] are x, y (m) and yaw (rad)."""
    cos, sin = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = points[..., 0], points[..., 1]
    return np.stack([pose[..., 0, None] + cos * x - sin * y, pose[..., 1, None] + sin * x + cos * y], axis=-1)


def from_world(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Turn points [..., 2] of the world into the frame of a T at `pose` [3]."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return (points - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])


def distance_to_surface(points: np.ndarray) -> np.ndarray:
    """Return how far points [..., 2] of the T's frame are from the T, [...], zero inside it."""
    return distance_to_boxes(points, BOXES_M)


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return pusher x, y, centre x, y (m), cosine and sine of the yaw, and the key points' x, y (m) [..., 12]."""
    pose, pusher = positions[..., 0:3], positions[..., 3:5]
    points = to_world(pose, KEY_POINTS_M).reshape(*pose.shape[:-1], 6)
    heading = np.stack([np.cos(pose[..., 2]), np.sin(pose[..., 2])], axis=-1)
    return np.concatenate([pusher, pose[..., 0:2], heading, points], axis=-1)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw a T in the middle of the table and a pusher anywhere beside it."""
    pose = np.array([*rng.uniform(-START_FIELD_M, START_FIELD_M, size=2), rng.uniform(-np.pi, np.pi)])
    while True:
        pusher = rng.uniform(-pushing.FIELD_M, pushing.FIELD_M, size=2)
        if distance_to_surface(from_world(pose, pusher)) > PUSHER_RADIUS_M + CLEARANCE_M:
            return state_from_positions(model, np.array([*pose, *pusher]))


def _contacts() -> tuple[np.ndarray, np.ndarray]:
    """Return points on the T's outline, and the direction into the T at each, [N, 2] each, in its frame."""
    points, normals = [], []
    for x, y, half_x, half_y in BOXES_M:
        for along in np.linspace(-0.85, 0.85, 5):
            points += [[x + along * half_x, y + side * half_y] for side in (-1.0, 1.0)]
            normals += [[0.0, -side] for side in (-1.0, 1.0)]
            points += [[x + side * half_x, y + along * half_y] for side in (-1.0, 1.0)]
            normals += [[-side, 0.0] for side in (-1.0, 1.0)]
    found, inward = np.array(points), np.array(normals)
    room = distance_to_surface(found - (PUSHER_RADIUS_M + 0.002) * inward) >= PUSHER_RADIUS_M
    return found[room], inward[room]


CONTACTS_M, INWARD = _contacts()
BEFORE_M = CONTACTS_M - (PUSHER_RADIUS_M + CLEARANCE_M) * INWARD
"""Where the pusher stands before it pushes at each contact, in the T's frame."""


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a T that is shifted by 3 to 10 cm and turned by 11 to 57 degrees, with the pusher at its side."""
    pose = start[1:4]
    begun = to_world(pose, KEY_POINTS_M)
    while True:
        heading = rng.uniform(-np.pi, np.pi)
        shift = rng.uniform(*GOAL_SHIFT_M) * np.array([np.cos(heading), np.sin(heading)])
        turn = rng.choice([-1.0, 1.0]) * rng.uniform(*GOAL_TURN_RAD)
        goal = pose + np.array([*shift, turn])
        contact = int(rng.integers(len(CONTACTS_M)))
        outside = CONTACTS_M[contact] - (PUSHER_RADIUS_M + 0.002) * INWARD[contact]
        pusher = to_world(goal, outside[None])[0]
        far = np.sqrt(np.square(to_world(goal, KEY_POINTS_M) - begun).sum(axis=-1).mean()) >= MIN_GOAL_DISTANCE_M
        if far and np.abs(goal[:2]).max() <= GOAL_FIELD_M and np.abs(pusher).max() <= pushing.FIELD_M:
            return state_from_positions(model, np.array([*goal, *pusher]))


# Without inertia, and with drag alone: a push shifts the T less, and turns it more, the further its line
# is from the centre. Per metre of push at each contact, [contacts, 1]: metres of shift along the push, radians of turn.
_ARMS_M = (CONTACTS_M[:, 0] * INWARD[:, 1] - CONTACTS_M[:, 1] * INWARD[:, 0])[:, None]
_SHARES = 1.0 / (1.0 + np.square(_ARMS_M / GYRATION_M))
_TURNS = _SHARES * _ARMS_M / GYRATION_M**2
_DEPTHS_M = np.arange(0.005, 0.09, 0.005)
_ACROSS_M = np.stack([-KEY_POINTS_M[:, 1], KEY_POINTS_M[:, 0]], axis=-1)
_EFFECTS = ((_SHARES * INWARD)[:, None] + _TURNS[..., None] * _ACROSS_M).reshape(len(CONTACTS_M), 6)
_UNIT_EFFECTS = _EFFECTS / np.sqrt(np.square(_EFFECTS).sum(axis=-1, keepdims=True))


def cost_after_push(missing: np.ndarray) -> np.ndarray:
    """Return the cost that the best push at each contact leaves, to first order, [..., contacts], in metres.

    Args:
        missing: Way of the key points to their goals in the T's frame, [..., 6], in metres.
    """
    gains = np.maximum(missing @ _UNIT_EFFECTS.T, 0.0)
    left = np.square(missing).sum(axis=-1)[..., None] - np.square(gains)
    return np.sqrt(np.maximum(left, 0.0) / len(KEY_POINTS_M))


def costs_of_pushes(wanted: np.ndarray) -> np.ndarray:
    """Return the cost that a push at each contact by each of `_DEPTHS_M` leaves, [contacts, depths], in metres.

    Args:
        wanted: Where the key points should be, in the T's frame, [3, 2], in metres.
    """
    turn, shift = _TURNS * _DEPTHS_M, _SHARES * _DEPTHS_M
    cos, sin = np.cos(0.5 * turn), np.sin(0.5 * turn)
    x, y = INWARD[:, 0, None], INWARD[:, 1, None]
    moved = np.stack([shift * (cos * x - sin * y), shift * (sin * x + cos * y), turn], axis=-1)
    error = to_world(moved, KEY_POINTS_M) - wanted
    return np.sqrt(np.square(error).sum(axis=-1).mean(axis=-1))


def push_to(goal: np.ndarray) -> Policy:
    """Return a policy that pushes the T to the pose `goal` [3], one good push after another."""
    contact: int | None = None

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal contact
        pose = state[1:4]
        pusher, wanted = from_world(pose, state[4:6]), from_world(pose, to_world(goal, KEY_POINTS_M))
        cost = np.sqrt(np.square(wanted - KEY_POINTS_M).sum(axis=-1).mean())
        if cost < 0.004:
            return np.zeros(2)
        costs = costs_of_pushes(wanted)
        if contact is None or costs[contact].min() > cost - MIN_GAIN_M:
            way = ways().distances(pusher, BEFORE_M)
            contact = int(np.argmin(costs.min(axis=1) + WAY_WEIGHT * way))
        return _turned(_approach(pusher, contact, _DEPTHS_M[np.argmin(costs[contact])]), pose[2])

    return policy


def _turned(step: np.ndarray, yaw: float) -> np.ndarray:
    """Turn a step (m) of the T's frame into the world's, as an action at most as fast as the pusher can go."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    world = np.array([cos * step[0] - sin * step[1], sin * step[0] + cos * step[1]])
    return world / max(pushing.STEP_M, float(np.abs(world).max()))


def _approach(pusher: np.ndarray, contact: int, depth: float) -> np.ndarray:
    """Return the next step (m) in the T's frame: push if at the contact, else go to it without touching the T."""
    inward = INWARD[contact]
    offset = pusher - CONTACTS_M[contact]
    along = float(offset @ inward) + PUSHER_RADIUS_M
    aside = offset - (offset @ inward) * inward
    if np.linalg.norm(aside) < 0.006 and along < 0.012:
        return min(depth - min(along, 0.0), pushing.STEP_M) * inward - aside
    return _walk(pusher, BEFORE_M[contact])


@functools.cache
def ways() -> Geodesics:
    """Return the shortest ways of the pusher round the T, in the T's frame."""
    return Geodesics(BOXES_M, radius_m=PUSHER_RADIUS_M + 0.002, half_size_m=0.13)


def _walk(pusher: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return a step (m) along the shortest way to `target`, round the T."""
    if ways().distance(pusher, target) < pushing.STEP_M:
        return target - pusher
    return pushing.STEP_M * _COMPASS[int(np.argmin(ways().distance(pusher + 0.6 * pushing.STEP_M * _COMPASS, target)))]


def chase(aim: np.ndarray, speed: float) -> Policy:
    """Return a policy that runs at the point `aim` [2] (m) of the T's frame, and pushes on."""

    def policy(state: np.ndarray) -> np.ndarray:
        return pushing.run_along(to_world(state[1:4], aim[None])[0] - state[4:6], speed)

    return policy


def _random_pose(rng: np.random.Generator) -> np.ndarray:
    return np.array([*rng.uniform(-GOAL_FIELD_M, GOAL_FIELD_M, size=2), rng.uniform(-np.pi, np.pi)])


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix pushes towards random poses, runs at the T, noise and steady moves; the T moves in about 40% of steps."""

    def push_somewhere() -> Policy:
        push, speed = push_to(_random_pose(rng)), rng.uniform(0.6, 1.0)
        return lambda state: push(state) * speed

    choices = [
        (0.60, push_somewhere),
        (0.22, lambda: chase(rng.uniform((-0.06, -0.08), (0.06, 0.04)), rng.uniform(0.4, 1.0))),
        (0.12, lambda: noise_policy(2, rng)),
        (0.06, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=2))),
    ]
    return segments(choices, rng, lengths=(10, 30))


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return what the best single push would leave, plus 0.15 times the way round the T to its start, [...], in metres.

    Until the pusher is at the right side of the T, the T's pose says nothing about which action is better.
    """
    cos, sin = quantities[..., 4], quantities[..., 5]
    to_t = np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=-2)
    error = (goal_quantities[..., 6:12] - quantities[..., 6:12]).reshape(*cos.shape, 3, 2)
    missing = np.einsum("...ij,...kj->...ki", to_t, error)
    left = cost_after_push(missing.reshape(*cos.shape, 6))
    pusher = np.einsum("...ij,...j->...i", to_t, quantities[..., 0:2] - quantities[..., 2:4])
    way = ways().distances(pusher, BEFORE_M)
    return (left + 0.15 * way).min(axis=-1)


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that pushes the T to its pose in the goal state."""
    policy = push_to(goal[1:4])
    return lambda state: policy(state).astype(np.float32)


PUSH_T = Task(
    name="push_t",
    xml="push_t.xml",
    action_names=pushing.ACTION_NAMES,
    action_scale=pushing.ACTION_SCALE,
    substeps=pushing.CONTROL_SUBSTEPS,
    episode_steps=50,
    quantities=(
        *(Quantity(name=name, unit="m") for name in ("pusher_x", "pusher_y", "t_x", "t_y")),
        *(Quantity(name=name, unit="1") for name in ("t_yaw_cos", "t_yaw_sin")),
        *(Quantity(name=f"{end}_{axis}", unit="m") for end in ("bar_left", "bar_right", "stem") for axis in "xy"),
    ),
    quantities_of=quantities_of,
    proprioception=pushing.PROPRIOCEPTION,
    proprioception_of=pushing.proprioception_of,
    proprioception_limits=pushing.PROPRIOCEPTION_LIMITS,
    goal_indices=(6, 7, 8, 9, 10, 11),
    goal_points=3,
    tolerance_m=0.02,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    objects={"t": (2, 3)},
    contact_sensor="pusher_t",
    approach_cost=approach_cost,
)
