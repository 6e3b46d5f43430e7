# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Fork: drive a puck across a plate under which a hidden plank turns it left or right, as a coin fell at the start.

Nothing that a camera sees tells the plank's tilt before the puck touches it, so what follows has two outcomes, 14 cm
apart, and a model that predicts their mean predicts what never happens. The tilt is a joint that nothing moves: a part
of the physics state as any other, so replay and branching are exact, and `with_coin` branches the other way.

A study of uncertain futures: outside the suite of `task_names`, whose figures are about planning.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks import pushing
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

TILT_RAD = np.pi / 4
START_M, AIM_M = 0.14, 0.02
"""How far from the middle the puck starts, and how far beside the middle it is aimed at most."""
PLANK_M = 0.085
"""Half the plank's length, and the puck's radius."""
TILT_INDEX = 1
"""Where in a physics state the tilt stands: behind the time."""


def with_coin(states: np.ndarray, coin: bool) -> np.ndarray:
    """Return physics states [..., nstate] with the plank tilted as the coin says: what else they could have been."""
    turned = np.array(states, dtype=np.float64)
    turned[..., TILT_INDEX] = TILT_RAD if coin else -TILT_RAD
    return turned


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the puck's x and y (m) of joint positions [..., 3]; the plank's tilt is no quantity, it is hidden."""
    return positions[..., 1:3]


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the puck's place and velocity, [..., 4]."""
    return np.concatenate([positions[..., 1:3], velocities[..., 1:3]], axis=-1)


def _turned(point: np.ndarray, quarters: int) -> np.ndarray:
    """Turn a point [2] about the middle by quarters of a circle."""
    return np.array([[1, 0], [0, 1]] if quarters % 2 == 0 else [[0, -1], [1, 0]]) @ point * (1 - quarters // 2 % 2 * 2)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Toss the coin, and put the puck on one of the four sides."""
    tilt = TILT_RAD if rng.random() < 0.5 else -TILT_RAD
    side = np.array([rng.uniform(-0.03, 0.03), -rng.uniform(START_M - 0.03, START_M)])
    return state_from_positions(model, np.array([tilt, *_turned(side, int(rng.integers(4)))]))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the puck on the other side of the plate."""
    aside = np.array([-start[3], start[2]]) / max(float(np.linalg.norm(start[2:4])), 1e-6)
    goal = -start[2:4] * rng.uniform(0.85, 1.1) + rng.uniform(-0.05, 0.05) * aside
    return state_from_positions(model, np.array([start[TILT_INDEX], *goal]))


def cross(rng: np.random.Generator) -> Policy:
    """Return a policy that drives straight over the plate's middle, to the other side and back."""
    speed, aim, heading = rng.uniform(0.7, 1.0), rng.uniform(-AIM_M, AIM_M), None

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal heading, speed, aim
        puck = state[2:4]
        axis = int(np.abs(puck).argmax())
        if heading is None or (np.abs(puck).max() > START_M and puck[axis] * heading[axis] >= 0):
            heading, aim = np.zeros(2), rng.uniform(-AIM_M, AIM_M)
            heading[axis] = -np.sign(puck[axis]) or 1.0
        drive = heading.copy()
        if puck @ heading < -0.07:  # on the way there, get before the middle
            other = 1 - int(np.abs(heading).argmax())
            drive[other] = (aim - puck[other]) / pushing.STEP_M
        return speed * np.clip(drive, -1.0, 1.0)

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix drives over the plate with noise and steady moves."""
    choices = [
        (0.75, lambda: cross(rng)),
        (0.15, lambda: noise_policy(2, rng)),
        (0.10, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=2))),
    ]
    return segments(choices, rng, lengths=(12, 30))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that drives to the goal, round the end of the plank, of which it knows, where that is between."""

    def policy(state: np.ndarray) -> np.ndarray:
        tilt, puck, target = state[TILT_INDEX], state[2:4], goal[2:4]
        along, across = np.array([np.cos(tilt), np.sin(tilt)]), np.array([-np.sin(tilt), np.cos(tilt)])
        if (puck @ across) * (target @ across) < 0:
            end = PLANK_M + 0.02 if (puck + target) @ along >= 0 else -PLANK_M - 0.02
            ahead = 0.03 if abs(puck @ along) < PLANK_M else -0.03
            target = end * along + ahead * np.sign(puck @ across) * across
        return np.clip((target - puck) / pushing.STEP_M, -1.0, 1.0).astype(np.float32)

    return policy


FORK = Task(
    name="fork",
    xml="fork.xml",
    action_names=("puck_velocity_x", "puck_velocity_y"),
    action_scale=pushing.ACTION_SCALE,
    substeps=pushing.CONTROL_SUBSTEPS,
    episode_steps=30,
    quantities=tuple(Quantity(name=name, unit="m") for name in ("puck_x", "puck_y")),
    quantities_of=quantities_of,
    proprioception=(
        *(Quantity(name=name, unit="m") for name in ("puck_x", "puck_y")),
        *(Quantity(name=name, unit="m/s") for name in ("puck_velocity_x", "puck_velocity_y")),
    ),
    proprioception_of=proprioception_of,
    proprioception_limits=pushing.PROPRIOCEPTION_LIMITS,
    goal_indices=(0, 1),
    tolerance_m=0.02,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    contact_sensor="puck_plank",
)
