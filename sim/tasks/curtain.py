# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Curtain: slide a curtain, which hides half of a table, to where it is in a goal image.

Four boxes of different colours lie anywhere on the table and never move. What the curtain hides is where it was, and a
model that remembers it can foretell what comes to light when the curtain moves on; one that has forgotten cannot.

A study of memory: outside the suite of `task_names`, whose figures are about planning.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

MAX_SPEED_M_S = 0.25
STEP_M = 0.1 * MAX_SPEED_M_S
RAIL_M, HIDES_M = 0.11, 0.1
"""How far from the middle the curtain gets, and how far from its own middle it hides the table."""
BOXES = ("red", "green", "yellow", "black")
BOX_M, FIELD_M, GAP_M = 0.03, 0.16, 0.075
"""Half a box's side, how far from the middle boxes lie, and how far apart at least, along the table or across."""
MIN_GOAL_DISTANCE_M = 0.08


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the curtain's place and both coordinates of each box (m), which are the joint positions [..., 9]."""
    return positions


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the curtain's place and velocity, [..., 2]."""
    return np.stack([positions[..., 0], velocities[..., 0]], axis=-1)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw the places of the boxes and the curtain's."""
    boxes: list[np.ndarray] = []
    while len(boxes) < len(BOXES):
        place = rng.uniform(-FIELD_M, FIELD_M, 2)
        if all(np.abs(place - other).max() >= GAP_M for other in boxes):
            boxes.append(place)
    return state_from_positions(model, np.concatenate([[rng.uniform(-RAIL_M, RAIL_M)], *boxes]))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the curtain at another place above the same boxes."""
    positions = start[1 : 1 + model.nq].copy()
    while abs(positions[0] - start[1]) < MIN_GOAL_DISTANCE_M:
        positions[0] = rng.uniform(-RAIL_M, RAIL_M)
    return state_from_positions(model, positions)


def sweep(rng: np.random.Generator) -> Policy:
    """Return a policy that slides from one end to the other, waits, and slides back."""
    speed, way, waits = rng.uniform(0.4, 1.0), rng.choice([-1.0, 1.0]), 0

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal way, waits
        if waits == 0 and state[1] * way > RAIL_M - 0.01:
            way, waits = -way, int(rng.integers(1, 6))
        waits = max(0, waits - 1)
        return np.array([0.0 if waits else way * speed])

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix sweeps with noise and steady moves."""
    choices = [
        (0.6, lambda: sweep(rng)),
        (0.2, lambda: noise_policy(1, rng)),
        (0.2, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=1))),
    ]
    return segments(choices, rng, lengths=(10, 30))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that slides to the goal."""
    return lambda state: np.clip((goal[1:2] - state[1:2]) / STEP_M, -1.0, 1.0).astype(np.float32)


CURTAIN = Task(
    name="curtain",
    xml="curtain.xml",
    action_names=("curtain_velocity_x",),
    action_scale=(MAX_SPEED_M_S,),
    substeps=5,
    episode_steps=30,
    quantities=tuple(
        Quantity(name=name, unit="m") for name in ("curtain_x", *(f"{box}_{axis}" for box in BOXES for axis in "xy"))
    ),
    quantities_of=quantities_of,
    proprioception=(Quantity(name="curtain_x", unit="m"), Quantity(name="curtain_velocity_x", unit="m/s")),
    proprioception_of=proprioception_of,
    proprioception_limits=(1.0, 10.0),
    goal_indices=(0,),
    tolerance_m=0.02,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
)
