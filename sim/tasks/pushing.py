"""The velocity-controlled pusher that `push` and `push_t` share: what it commands, what it feels, how it runs."""

import numpy as np

from sim.tasks.base import Quantity

MAX_SPEED_M_S = 0.3
STEP_M = 0.1 * MAX_SPEED_M_S
FIELD_M = 0.185
ACTION_NAMES = ("pusher_velocity_x", "pusher_velocity_y")
ACTION_SCALE = (MAX_SPEED_M_S, MAX_SPEED_M_S)
CONTROL_SUBSTEPS = 5
PROPRIOCEPTION = (
    *(Quantity(name=name, unit="m") for name in ("pusher_x", "pusher_y")),
    *(Quantity(name=name, unit="m/s") for name in ("pusher_velocity_x", "pusher_velocity_y")),
)
PROPRIOCEPTION_LIMITS = (1.0, 1.0, 10.0, 10.0)


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the pusher's place and velocity, [..., 4]; its joints come after the three of what it pushes."""
    return np.concatenate([positions[..., 3:5], velocities[..., 3:5]], axis=-1)


def run_along(way: np.ndarray, speed: float) -> np.ndarray:
    """Return the action [2] that runs along `way` [2] (m) at a share of the full speed, slower at its end."""
    return speed * way / max(float(np.linalg.norm(way)), 0.5 * STEP_M)
