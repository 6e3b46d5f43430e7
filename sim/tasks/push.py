# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Push: move a box to where it is in a goal image, with a velocity-controlled pusher, on a 40 cm table.

The camera looks down, slightly tilted. The box slides with dry friction (it stops where it is left) and does not move
unless touched. Only its place counts; its yaw and the pusher's place do not.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks import pushing
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

CLEARANCE_M = 0.075
START_FIELD_M = 0.10
GOAL_FIELD_M = 0.12
GOAL_DISTANCE_M = (0.05, 0.14)
# What approach_cost takes for contact, for behind the box, and for near the goal.
CONTACT_M, BEHIND_RAD, NEAR_M = 0.05, 0.3, 0.03


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return pusher x, y, box x, y (m) and the cosine and sine of the box's yaw, of joint positions [..., 5]."""
    box_x, box_y, yaw, pusher_x, pusher_y = np.moveaxis(positions, -1, 0)
    return np.stack([pusher_x, pusher_y, box_x, box_y, np.cos(yaw), np.sin(yaw)], axis=-1)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw a box in the middle of the table and a pusher anywhere beside it."""
    box = rng.uniform(-START_FIELD_M, START_FIELD_M, size=2)
    yaw = rng.uniform(-np.pi, np.pi)
    while True:
        pusher = rng.uniform(-pushing.FIELD_M, pushing.FIELD_M, size=2)
        if np.linalg.norm(pusher - box) > CLEARANCE_M:
            return state_from_positions(model, np.array([*box, yaw, *pusher]))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the box 5 to 14 cm away, a little turned, with the pusher where such a push would have left it."""
    box, yaw = start[1:3], start[3]
    while True:
        heading = rng.uniform(-np.pi, np.pi)
        direction = np.array([np.cos(heading), np.sin(heading)])
        goal = box + rng.uniform(*GOAL_DISTANCE_M) * direction
        turn = rng.normal(scale=0.4)
        behind = heading + np.pi + rng.normal(scale=0.3)
        pusher = goal + CLEARANCE_M * np.array([np.cos(behind), np.sin(behind)])
        if np.abs(goal).max() <= GOAL_FIELD_M and np.abs(pusher).max() <= pushing.FIELD_M:
            return state_from_positions(model, np.array([*goal, yaw + turn, *pusher]))


def push_to(target: np.ndarray) -> Policy:
    """Return a policy that walks round the box, then pushes it to `target` [2] (m)."""

    def policy(state: np.ndarray) -> np.ndarray:
        box, pusher = state[1:3], state[4:6]
        remaining = target - box
        distance = np.linalg.norm(remaining)
        if distance < 0.006:
            return np.zeros(2)
        direction = remaining / distance
        offset = pusher - box
        along, aside = offset @ direction, offset[1] * direction[0] - offset[0] * direction[1]
        left = np.array([-direction[1], direction[0]])
        if along < -0.03 and abs(aside) < 0.02:
            step = min(pushing.STEP_M, max(distance, -along - 0.062)) * direction - 0.6 * aside * left
        else:
            step = _walk_round(offset, -direction)
        return np.clip(step / pushing.STEP_M, -1.0, 1.0)

    return policy


def _walk_round(offset: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return a step (m) along a circle round the box, from `offset` towards the side `wanted` (unit vector)."""
    radius = max(float(np.linalg.norm(offset)), 1e-6)
    angle = np.arctan2(offset[1], offset[0])
    turn = (np.arctan2(wanted[1], wanted[0]) - angle + np.pi) % (2.0 * np.pi) - np.pi
    next_angle = angle + np.clip(turn, -0.35, 0.35)
    next_radius = radius + np.clip(CLEARANCE_M - radius, -pushing.STEP_M, pushing.STEP_M)
    return next_radius * np.array([np.cos(next_angle), np.sin(next_angle)]) - offset


def chase(aim: np.ndarray, speed: float) -> Policy:
    """Return a policy that runs at the box, aiming `aim` [2] (m) beside its middle, and pushes on."""

    def policy(state: np.ndarray) -> np.ndarray:
        return pushing.run_along(state[1:3] + aim - state[4:6], speed)

    return policy


def push_around(rng: np.random.Generator) -> Policy:
    """Return a policy that pushes the box to one random place after another."""
    target = rng.uniform(-GOAL_FIELD_M, GOAL_FIELD_M, size=2)
    speed = rng.uniform(0.6, 1.0)

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal target
        if np.linalg.norm(target - state[1:3]) < 0.015:
            target = rng.uniform(-GOAL_FIELD_M, GOAL_FIELD_M, size=2)
        return push_to(target)(state) * speed

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix pushes to random places, runs at the box, noise and steady moves; the box moves in about 40% of steps."""
    choices = [
        (0.60, lambda: push_around(rng)),
        (0.22, lambda: chase(rng.uniform(-0.03, 0.03, size=2), rng.uniform(0.4, 1.0))),
        (0.12, lambda: noise_policy(2, rng)),
        (0.06, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=2))),
    ]
    return segments(choices, rng, lengths=(8, 24))


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return 0.3 times the pusher's way to the side of the box from which it pushes to the goal, [...], in metres.

    Until the pusher is there, the box's distance to its goal says nothing about which action is better. The way is the
    distance to the box beyond contact, and the arc round it; it fades as the box comes to its goal.
    """
    missing = goal_quantities[..., 2:4] - quantities[..., 2:4]
    offset = quantities[..., 0:2] - quantities[..., 2:4]
    left, radius = (np.sqrt(np.square(vector).sum(axis=-1)) for vector in (missing, offset))
    behind = -(missing * offset).sum(axis=-1) / np.maximum(left * radius, 1e-9)
    angle = np.maximum(np.arccos(np.clip(behind, -1.0, 1.0)) - BEHIND_RAD, 0.0)
    arc = CLEARANCE_M * angle * np.minimum(left / NEAR_M, 1.0)
    return 0.3 * (np.maximum(radius - CONTACT_M, 0.0) + arc)


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that pushes the box to its place in the goal state."""
    policy = push_to(goal[1:3])
    return lambda state: policy(state).astype(np.float32)


PUSH = Task(
    name="push",
    xml="push.xml",
    action_names=pushing.ACTION_NAMES,
    action_scale=pushing.ACTION_SCALE,
    substeps=pushing.CONTROL_SUBSTEPS,
    episode_steps=40,
    quantities=(
        *(Quantity(name=name, unit="m") for name in ("pusher_x", "pusher_y", "box_x", "box_y")),
        *(Quantity(name=name, unit="1") for name in ("box_yaw_cos", "box_yaw_sin")),
    ),
    quantities_of=quantities_of,
    proprioception=pushing.PROPRIOCEPTION,
    proprioception_of=pushing.proprioception_of,
    proprioception_limits=pushing.PROPRIOCEPTION_LIMITS,
    goal_indices=(2, 3),
    tolerance_m=0.025,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    objects={"box": (2, 3)},
    contact_sensor="pusher_box",
    approach_cost=approach_cost,
)
