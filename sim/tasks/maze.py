# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Maze: roll a ball to where it is in a goal image, round the walls of one fixed layout.

The camera looks down, slightly tilted. The ball is a velocity-controlled point mass with some inertia. The straight
line to the goal is always blocked and the way round at least 8 cm longer; success is the plain distance, and the length
of the shortest way (read off the walls of the model) is what a planner that sees quantities follows.
"""

import functools

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.geodesic import Geodesics
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

MAX_SPEED_M_S = 0.4
STEP_M = 0.1 * MAX_SPEED_M_S
BALL_RADIUS_M = 0.018
FIELD_M = 0.174
MIN_WAY_M = 0.20
MIN_DETOUR_M = 0.08
CELLS_M = np.linspace(-0.16, 0.16, 5)
_COMPASS = np.stack([np.cos(np.arange(24) * np.pi / 12), np.sin(np.arange(24) * np.pi / 12)], axis=-1)


@functools.cache
def geodesics() -> Geodesics:
    """Return the shortest ways among the walls of the model."""
    model = MAZE.model
    walls = [index for index in range(model.ngeom) if model.geom(index).name.startswith("wall_")]
    boxes = np.concatenate([model.geom_pos[walls, :2], model.geom_size[walls, :2]], axis=1)
    return Geodesics(boxes, radius_m=BALL_RADIUS_M, half_size_m=0.20)


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the ball's x and y (m), which are the joint positions [..., 2]."""
    return np.array(positions)


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the ball's place and velocity."""
    return np.concatenate([positions, velocities], axis=-1)


def _random_place(rng: np.random.Generator) -> np.ndarray:
    while True:
        place = rng.uniform(-FIELD_M, FIELD_M, size=2)
        if geodesics().is_free(place):
            return place


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw a resting ball anywhere beside the walls."""
    return state_from_positions(model, _random_place(rng))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a place that is at least 20 cm away by a way that is at least 8 cm longer than the straight line."""
    while True:
        goal = _random_place(rng)
        way, straight = float(geodesics().distance(start[1:3], goal)), float(np.linalg.norm(goal - start[1:3]))
        if way >= MIN_WAY_M and way - straight >= MIN_DETOUR_M and straight >= 0.05:
            return state_from_positions(model, goal)


def roll_to(goal: np.ndarray) -> Policy:
    """Return a policy that follows the shortest way to `goal` [2] (m)."""

    def policy(state: np.ndarray) -> np.ndarray:
        ball = state[1:3] + 0.05 * state[3:5]
        if np.linalg.norm(goal - ball) < STEP_M:
            return np.clip((goal - ball) / STEP_M, -1.0, 1.0)
        ways = geodesics().distance(ball + 0.6 * STEP_M * _COMPASS, goal)
        heading = _COMPASS[int(np.argmin(ways))]
        return heading / np.abs(heading).max()

    return policy


def roll_around(rng: np.random.Generator) -> Policy:
    """Return a policy that follows the shortest way to the middle of one random cell after another."""
    speed = rng.uniform(0.5, 1.0)
    goal = rng.choice(CELLS_M, size=2)

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal goal
        if np.linalg.norm(goal - state[1:3]) < 0.02:
            goal = rng.choice(CELLS_M, size=2)
        return roll_to(goal)(state) * speed

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix ways to random places, smooth noise, steady moves (often against a wall) and rest."""
    choices = [
        (0.50, lambda: roll_around(rng)),
        (0.30, lambda: noise_policy(2, rng)),
        (0.15, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=2))),
        (0.05, lambda: constant_policy(np.zeros(2))),
    ]
    return segments(choices, rng, lengths=(6, 20))


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return by how much the shortest way is longer than the straight line, [...], in metres."""
    points, goal = quantities[..., 0:2], goal_quantities[0:2]
    return geodesics().distance(points, goal) - np.sqrt(np.square(points - goal).sum(axis=-1))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that rolls to the goal state's place."""
    policy = roll_to(goal[1:3])
    return lambda state: policy(state).astype(np.float32)


_PLACE = tuple(Quantity(name=name, unit="m") for name in ("ball_x", "ball_y"))

MAZE = Task(
    name="maze",
    xml="maze.xml",
    action_names=("ball_velocity_x", "ball_velocity_y"),
    action_scale=(MAX_SPEED_M_S, MAX_SPEED_M_S),
    substeps=5,
    episode_steps=50,
    quantities=_PLACE,
    quantities_of=quantities_of,
    proprioception=(
        *_PLACE,
        *(Quantity(name=name, unit="m/s") for name in ("ball_velocity_x", "ball_velocity_y")),
    ),
    proprioception_of=proprioception_of,
    proprioception_limits=(1.0, 1.0, 10.0, 10.0),
    goal_indices=(0, 1),
    tolerance_m=0.025,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    contact_sensor="ball_wall",
    approach_cost=approach_cost,
)
