# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Rope: bring a rope on a table into the shape that a goal image shows, with a fingertip that drags it.

The rope is a MuJoCo flex of one dimension: 13 points that slide on the table with dry friction, joined by edges of
constant length. Dampers between next neighbours but one resist kinking; springs would too, but a bent rope would creep
under their load, and this one stays exactly as it is left. It may lie across itself. The fingertip
moves up and down too: pressed onto the rope it drags it by friction, beside it it pushes it, raised it passes over. It
is driven by velocities along x, y and z, so controls are the actions times a constant and candidates can be replayed in
native threads. The cost is the root mean square distance of every other point from its place in the goal.

Positions: x and y of each point relative to a straight rope, then x, y, z of the fingertip.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks.base import Policy, Quantity, Task, get_state, set_state, state_from_positions

NUM_POINTS, LENGTH_M = 13, 0.30
EDGE_M = LENGTH_M / (NUM_POINTS - 1)
STRAIGHT_X_M = np.linspace(-LENGTH_M / 2.0, LENGTH_M / 2.0, NUM_POINTS)
SHOWN = slice(0, NUM_POINTS, 2)
NUM_SHOWN = 7
MAX_SPEED_M_S = 0.25
STEP_M = 0.1 * MAX_SPEED_M_S
FIELD_M = 0.165
RAISED_M = 0.03
PRESSED_M = 0.001
FINGER_HEIGHT_M = (0.02, 0.05)
DRAG_M = (0.07, 0.15)
MIN_GOAL_DISTANCE_M = 0.055
NUM_DRAGS = (1, 2)
MOST_DRAG_STEPS = 30
APART_M = 0.04
CLOSE_ENOUGH_M = 0.008


def rope_points(positions: np.ndarray) -> np.ndarray:
    """Return the places of the rope's points, [..., 13, 2] (m), of positions [..., 29] or more."""
    moved = positions[..., : 2 * NUM_POINTS].reshape(*positions.shape[:-1], NUM_POINTS, 2)
    return moved + np.stack([STRAIGHT_X_M, np.zeros(NUM_POINTS)], axis=-1)


def fingertip(positions: np.ndarray) -> np.ndarray:
    """Return x, y, z of the fingertip, [..., 3] (m); z is zero where it touches the rope."""
    return positions[..., 2 * NUM_POINTS : 2 * NUM_POINTS + 3]


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the fingertip's x, y, z and x, y of every other point of the rope, [..., 17]."""
    points = rope_points(positions)[..., SHOWN, :]
    return np.concatenate([fingertip(positions), points.reshape(*points.shape[:-2], 2 * NUM_SHOWN)], axis=-1)


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the fingertip's place and velocity."""
    return np.concatenate([fingertip(positions), fingertip(velocities)], axis=-1)


def _draw_rope(rng: np.random.Generator) -> np.ndarray:
    """Draw a smoothly bent rope that lies on the table, [13, 2]."""
    along = np.linspace(0.0, 1.0, NUM_POINTS - 1)
    while True:
        bend = rng.normal(scale=0.9) * along + rng.normal(scale=0.5) * np.sin(2.0 * np.pi * (along + rng.random()))
        heading = rng.uniform(-np.pi, np.pi) + bend
        steps = EDGE_M * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        points = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        middle = 0.5 * (points.min(axis=0) + points.max(axis=0))
        room = FIELD_M - 0.5 * np.ptp(points, axis=0)
        if room.min() > 0.01 and _is_tidy(points):
            return points - middle + rng.uniform(-room, room)


def _is_tidy(points: np.ndarray) -> bool:
    """Tell whether a rope [13, 2] neither crosses itself nor lies in tight curls."""
    number = np.arange(NUM_POINTS)
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    return bool(apart[np.abs(number[:, None] - number) >= 3].min() > APART_M)


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw a smoothly bent rope and a raised fingertip anywhere."""
    moved = _draw_rope(rng) - np.stack([STRAIGHT_X_M, np.zeros(NUM_POINTS)], axis=-1)
    finger = [*rng.uniform(-FIELD_M, FIELD_M, size=2), rng.uniform(*FINGER_HEIGHT_M)]
    return state_from_positions(model, np.concatenate([moved.ravel(), finger]))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drag the rope once or twice, in MuJoCo, at random points; what that leads to is the goal, at rest."""
    before = rope_points(start[1:])
    while True:
        data = mujoco.MjData(model)
        set_state(model, data, start)
        for _ in range(int(rng.integers(NUM_DRAGS[0], NUM_DRAGS[1] + 1))):
            _play_out(model, data, _draw_drag(get_state(model, data), rng))
        after = rope_points(data.qpos)
        distance = np.sqrt(np.square(after - before)[SHOWN].sum(axis=-1).mean())
        if distance >= MIN_GOAL_DISTANCE_M and np.abs(after).max() <= FIELD_M and _is_tidy(after):
            return state_from_positions(model, data.qpos)


def _play_out(model: mujoco.MjModel, data: mujoco.MjData, drag: "Drag") -> None:
    while not drag.done:
        ROPE.step(model, data, drag(get_state(model, data)).astype(np.float32))


def _draw_drag(state: np.ndarray, rng: np.random.Generator) -> "Drag":
    """Draw a drag of a random point of the rope by 7 to 15 cm, to a place on the table."""
    point = int(rng.integers(NUM_POINTS))
    place = rope_points(state[1:])[point]
    while True:
        heading = rng.uniform(-np.pi, np.pi)
        target = place + rng.uniform(*DRAG_M) * np.array([np.cos(heading), np.sin(heading)])
        if np.abs(target).max() <= FIELD_M:
            return Drag(point, target, speed=rng.uniform(0.6, 0.9))


class Drag:
    """A policy that goes over a point of the rope, presses on it, drags it to a place and rises; then it is done."""

    def __init__(self, point: int, target: np.ndarray, *, speed: float) -> None:
        """Prepare.

        Args:
            point: Number of the point.
            target: Where the point is to be, x and y (m).
            speed: Share of the greatest speed at which the rope is dragged.
        """
        self.point, self.target, self.speed = point, target, speed
        self.done = False
        self._pressing = self._leaving = False
        self._steps = 0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the action [3]."""
        finger, place = fingertip(state[1:]), rope_points(state[1:])[self.point]
        remaining = self.target - place
        distance = float(np.linalg.norm(remaining))
        self._steps += 1
        self._leaving = self._leaving or distance < 0.006 or self._steps > MOST_DRAG_STEPS
        if self._leaving:
            self.done = finger[2] > RAISED_M - 0.01
            return np.array([0.0, 0.0, float(not self.done)])
        aside = float(np.linalg.norm(finger[:2] - place))
        self._pressing = aside < (0.02 if self._pressing else 0.005) and finger[2] < RAISED_M + 0.01
        if not self._pressing:
            return self._go_over(finger, place)
        if finger[2] > PRESSED_M:
            return np.append(_towards(place - finger[:2]), -1.0)
        return np.append(min(self.speed, distance / STEP_M) * remaining / distance, -1.0)

    def _go_over(self, finger: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Return the action that rises, then goes to above `place`."""
        rise = (RAISED_M - finger[2]) / STEP_M
        sideways = _towards(place - finger[:2]) if rise < 0.5 else np.zeros(2)
        return np.append(sideways, np.clip(rise, -1.0, 1.0))


def _towards(step: np.ndarray) -> np.ndarray:
    """Return the velocity action that makes a step [2] (m), or goes its way at full speed."""
    return step / max(float(np.linalg.norm(step)), STEP_M)


class Shaper:
    """A policy that drags the rope's worst point to its place, then the next, until the shape is right."""

    def __init__(self, shape: np.ndarray) -> None:
        """Prepare for a shape [13, 2] (m)."""
        self.shape = shape
        self._drag: Drag | None = None

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the action [3]."""
        if self._drag is None or self._drag.done:
            error = np.linalg.norm(rope_points(state[1:]) - self.shape, axis=-1)
            if np.sqrt(np.square(error[SHOWN]).mean()) < CLOSE_ENOUGH_M:
                return np.zeros(3)
            worst = int(np.argmax(error))
            self._drag = Drag(worst, self.shape[worst], speed=0.9)
        return self._drag(state)


def drag_around(rng: np.random.Generator) -> Policy:
    """Return a policy that makes one random drag after another, some of them fast enough to slip."""
    drag: Drag | None = None
    noise = rng.uniform(0.0, 0.15)

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal drag
        if drag is None or drag.done:
            drag = _draw_drag(state, rng)
        return drag(state) + noise * rng.normal(size=3)

    return policy


def sweep(rng: np.random.Generator) -> Policy:
    """Return a policy that lowers the fingertip beside a point of the rope and pushes through it."""
    point, heading, speed = int(rng.integers(NUM_POINTS)), rng.uniform(-np.pi, np.pi), rng.uniform(0.4, 1.0)
    ahead = np.array([np.cos(heading), np.sin(heading)])
    ready = False

    def policy(state: np.ndarray) -> np.ndarray:
        nonlocal ready
        finger, place = fingertip(state[1:]), rope_points(state[1:])[point]
        step = place - 0.03 * ahead - finger[:2]
        ready = ready or bool(np.linalg.norm(step) < 0.008)
        if not ready:
            return np.append(_towards(step), np.clip((RAISED_M - finger[2]) / STEP_M, -1.0, 1.0))
        return np.append(speed * ahead * (finger[2] < PRESSED_M), -1.0)

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix drags of random points, sweeps through the rope, noise and steady moves."""
    choices = [
        (0.66, lambda: drag_around(rng)),
        (0.16, lambda: sweep(rng)),
        (0.12, lambda: noise_policy(3, rng)),
        (0.06, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=3))),
    ]
    return segments(choices, rng, lengths=(10, 28))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that shapes the rope as in the goal state."""
    policy = Shaper(rope_points(goal[1:]))
    return lambda state: policy(state).astype(np.float32)


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return how far the fingertip is from pressing on the rope's worst points, in metres, little beside the cost.

    The way to a point (over it first, then down) is averaged over points with weights that grow steeply with their
    distance from their places, and fades where the whole rope is in place. Three times as much of it kept the planner
    at its first point in an eighth of the episodes: as soon as another point was the worst, the way there cost more
    than the rope's shape had gained.
    """
    points, goal = (
        values[..., 3:].reshape(*values.shape[:-1], NUM_SHOWN, 2) for values in (quantities, goal_quantities)
    )
    error = np.sqrt(np.square(points - goal).sum(axis=-1))
    worst = error.max(axis=-1, keepdims=True)
    weights = np.exp((error - worst) / 0.01)
    aside = np.sqrt(np.square(quantities[..., None, :2] - points).sum(axis=-1))
    height = RAISED_M * np.clip((aside - 0.01) / 0.02, 0.0, 1.0)
    way = aside + np.abs(quantities[..., 2:3] - height)
    mean_way = (weights * way).sum(axis=-1) / weights.sum(axis=-1)
    return 0.05 * np.clip(worst[..., 0] / 0.02, 0.0, 1.0) * mean_way


ROPE = Task(
    name="rope",
    xml="rope.xml",
    action_names=("finger_velocity_x", "finger_velocity_y", "finger_velocity_z"),
    action_scale=(MAX_SPEED_M_S, MAX_SPEED_M_S, MAX_SPEED_M_S),
    substeps=5,
    episode_steps=50,
    quantities=(
        *(Quantity(name=f"finger_{axis}", unit="m") for axis in "xyz"),
        *(Quantity(name=f"point_{point}_{axis}", unit="m") for point in range(NUM_SHOWN) for axis in "xy"),
    ),
    quantities_of=quantities_of,
    proprioception=(
        *(Quantity(name=f"finger_{axis}", unit="m") for axis in "xyz"),
        *(Quantity(name=f"finger_velocity_{axis}", unit="m/s") for axis in "xyz"),
    ),
    proprioception_of=proprioception_of,
    proprioception_limits=(1.0, 1.0, 1.0, 10.0, 10.0, 10.0),
    goal_indices=tuple(range(3, 3 + 2 * NUM_SHOWN)),
    goal_points=NUM_SHOWN,
    tolerance_m=0.025,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    objects={name: (3 + 2 * point, 4 + 2 * point) for name, point in (("head", 0), ("middle", 3), ("tail", 6))},
    contact_sensor="touch",
    approach_cost=approach_cost,
)
