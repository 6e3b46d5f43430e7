# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Glance: slide a camera along a table, a third of which it sees at a time, to where a picture was taken.

Four boxes of different colours lie anywhere on the table and never move. What has left the picture is where it was, and
a model that remembers what it saw can foretell it when the camera comes back; one that has forgotten cannot.

A study of memory: outside the suite of `task_names`, whose figures are about planning.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

MAX_SPEED_M_S = 0.6
STEP_M = 0.1 * MAX_SPEED_M_S
RAIL_M, VIEW_M = 0.45, 0.4
"""How far from the middle the camera gets, and how much of the table it sees."""
BOXES = ("red", "green", "blue", "black")
FARTHEST_M, ASIDE_M, GAP_M = 0.6, 0.09, 0.12
"""How far from the middle boxes lie, how far beside it, and how far apart at least along the table."""
MIN_GOAL_DISTANCE_M = 0.25


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the camera's place and both coordinates of each box (m), which are the joint positions [..., 9]."""
    return positions


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the camera's place and velocity, [..., 2]."""
    return np.stack([positions[..., 0], velocities[..., 0]], axis=-1)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw the camera's place and those of the boxes."""
    free = 2 * FARTHEST_M - (len(BOXES) - 1) * GAP_M
    along = np.sort(rng.uniform(0, free, len(BOXES))) + GAP_M * np.arange(len(BOXES)) - FARTHEST_M
    boxes = np.stack([rng.permutation(along), rng.uniform(-ASIDE_M, ASIDE_M, len(BOXES))], axis=-1)
    return state_from_positions(model, np.concatenate([[rng.uniform(-RAIL_M, RAIL_M)], boxes.ravel()]))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the camera at another place above the same boxes."""
    positions = start[1 : 1 + model.nq].copy()
    while abs(positions[0] - start[1]) < MIN_GOAL_DISTANCE_M:
        positions[0] = rng.uniform(-RAIL_M, RAIL_M)
    return state_from_positions(model, positions)


def sweep(rng: np.random.Generator) -> Policy:
    """Return a policy that slides from one end to the other and back."""
    speed, way = rng.uniform(0.4, 1.0), rng.choice([-1.0, 1.0])

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal way
        if state[1] * way > RAIL_M - 0.02:
            way = -way
        return np.array([way * speed])

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix sweeps with noise and steady moves."""
    choices = [
        (0.6, lambda: sweep(rng)),
        (0.2, lambda: noise_policy(1, rng)),
        (0.2, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=1))),
    ]
    return segments(choices, rng, lengths=(6, 25))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that slides to the goal."""
    return lambda state: np.clip((goal[1:2] - state[1:2]) / STEP_M, -1.0, 1.0).astype(np.float32)


GLANCE = Task(
    name="glance",
    xml="glance.xml",
    action_names=("head_velocity_x",),
    action_scale=(MAX_SPEED_M_S,),
    substeps=5,
    episode_steps=30,
    quantities=tuple(
        Quantity(name=name, unit="m") for name in ("head_x", *(f"{box}_{axis}" for box in BOXES for axis in "xy"))
    ),
    quantities_of=quantities_of,
    proprioception=(Quantity(name="head_x", unit="m"), Quantity(name="head_velocity_x", unit="m/s")),
    proprioception_of=proprioception_of,
    proprioception_limits=(1.0, 10.0),
    goal_indices=(0,),
    tolerance_m=0.03,
    cameras=("hand", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
)
