# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Reach: bring the tip of a planar two-link arm to where it is in a goal image.

The camera looks straight down. Joints are driven by velocity servos. The elbow bends one way only (10 to 150 degrees),
so that a tip position belongs to one arm pose; the shoulder turns all the way round.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

LINK_M = 0.12
ELBOW_RANGE_RAD = (np.deg2rad(12.0), np.deg2rad(148.0))
MAX_SPEED_RAD_S = 2.0
MIN_GOAL_DISTANCE_M = 0.08


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return tip x, tip y, elbow x, elbow y, in metres, of joint angles [..., 2]; velocities do not matter."""
    shoulder, bend = positions[..., 0], positions[..., 0] + positions[..., 1]
    elbow_x, elbow_y = LINK_M * np.cos(shoulder), LINK_M * np.sin(shoulder)
    return np.stack([elbow_x + LINK_M * np.cos(bend), elbow_y + LINK_M * np.sin(bend), elbow_x, elbow_y], axis=-1)


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return cosine and sine of the shoulder, the elbow's angle, and both joint speeds."""
    shoulder = positions[..., 0]
    return np.stack(
        [np.cos(shoulder), np.sin(shoulder), positions[..., 1], velocities[..., 0], velocities[..., 1]], axis=-1
    )


def _random_pose(rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.uniform(-np.pi, np.pi), rng.uniform(*ELBOW_RANGE_RAD)])


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw a resting arm pose."""
    return state_from_positions(model, _random_pose(rng))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a resting arm pose whose tip is at least 8 cm from the start's."""
    start_tip = quantities_of(start[1:3], start[3:5])[:2]
    while True:
        pose = _random_pose(rng)
        if np.linalg.norm(quantities_of(pose, np.zeros(2))[:2] - start_tip) >= MIN_GOAL_DISTANCE_M:
            return state_from_positions(model, pose)


def seek(pose: np.ndarray, speed: float) -> Policy:
    """Return a policy that turns both joints towards `pose` [2] (rad), the shoulder the short way round."""

    def policy(state: np.ndarray) -> np.ndarray:
        error = pose - state[1:3]
        error[0] = (error[0] + np.pi) % (2.0 * np.pi) - np.pi
        return np.clip(error / (0.1 * MAX_SPEED_RAD_S), -speed, speed)

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix smooth noise, steady turns, reaching for random poses and rest."""
    choices = [
        (0.45, lambda: noise_policy(2, rng)),
        (0.30, lambda: seek(_random_pose(rng), rng.uniform(0.3, 1.0))),
        (0.20, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=2))),
        (0.05, lambda: constant_policy(np.zeros(2))),
    ]
    return segments(choices, rng, lengths=(5, 15))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that reaches the goal pose as fast as the joints turn."""
    policy = seek(goal[1:3], 1.0)
    return lambda state: policy(state).astype(np.float32)


REACH = Task(
    name="reach",
    xml="reach.xml",
    action_names=("shoulder_velocity", "elbow_velocity"),
    action_scale=(MAX_SPEED_RAD_S, MAX_SPEED_RAD_S),
    substeps=5,
    episode_steps=30,
    quantities=tuple(Quantity(name=name, unit="m") for name in ("tip_x", "tip_y", "elbow_x", "elbow_y")),
    quantities_of=quantities_of,
    proprioception=(
        Quantity(name="shoulder_cos", unit="1"),
        Quantity(name="shoulder_sin", unit="1"),
        Quantity(name="elbow_angle", unit="rad"),
        Quantity(name="shoulder_velocity", unit="rad/s"),
        Quantity(name="elbow_velocity", unit="rad/s"),
    ),
    proprioception_of=proprioception_of,
    proprioception_limits=(1.0, 1.0, 2.0 * np.pi, 50.0, 50.0),
    goal_indices=(0, 1),
    tolerance_m=0.02,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    reversible=True,
)
