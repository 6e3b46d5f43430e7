# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""What a task is: a model file, a few constants, and the functions that give it meaning."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mujoco
import numpy as np

from sim.physics import get_state, set_state, warning_text

ASSETS = Path(__file__).resolve().parent.parent / "assets"

Policy = Callable[[np.ndarray], np.ndarray]
"""A scripted policy: physics state [nstate] to action [A] in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A named number and its unit."""

    name: str
    unit: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A manipulation task from pixels; every function in it is pure but for the `data` or `rng` it is handed.

    Positions are in the world frame. Goals are physics states: the goal image is what such a state looks like.

    Attributes:
        name: How the task is asked for.
        xml: File in sim/assets.
        action_names: One name per action channel; actions are in [-1, 1].
        action_scale: What an action of 1 commands, per channel (a velocity, in the unit of its joint).
        substeps: Physics steps per control step.
        episode_steps: Control steps of an evaluation episode.
        quantities: The physical quantities of the task, in order; Q of them.
        quantities_of: Positions and velocities, [..., nq] and [..., nv], to quantities [..., Q].
        proprioception: What the robot feels of itself, in order; P of them.
        proprioception_of: Positions and velocities to proprioception [..., P].
        proprioception_limits: Bound on the size of each, generous, for the observation space.
        goal_indices: Which quantities the goal is about, all in metres; the cost is their Euclidean distance.
        goal_points: How many points those are coordinates of; the cost is the root mean square of their distances.
        tolerance_m: Success means a cost of at most this.
        cameras: Camera names; the first is the default.
        objects: Things that must not move untouched: name to the indices of its place among the quantities.
        reversible: Whether reversed actions lead back.
        contact_sensor: Name of the model's contact sensor, or None where the task has no contacts that count.
        reset: (model, rng) to a start state.
        sample_goal: (model, start state, rng) to a goal state.
        play_policy: rng to a policy without a goal that covers states and actions.
        expert: (goal state, rng) to a scripted policy that solves the task.
        approach_cost: What a planner should also keep small, (quantities, goal quantities) to metres [...]; None
            where the cost alone shows the way. It never counts for success.
    """

    name: str
    xml: str
    action_names: tuple[str, ...]
    action_scale: tuple[float, ...]
    substeps: int
    episode_steps: int
    quantities: tuple[Quantity, ...]
    quantities_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    proprioception: tuple[Quantity, ...]
    proprioception_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
    proprioception_limits: tuple[float, ...]
    goal_indices: tuple[int, ...]
    tolerance_m: float
    cameras: tuple[str, ...]
    reset: Callable[[mujoco.MjModel, np.random.Generator], np.ndarray]
    sample_goal: Callable[[mujoco.MjModel, np.ndarray, np.random.Generator], np.ndarray]
    play_policy: Callable[[np.random.Generator], Policy]
    expert: Callable[[np.ndarray, np.random.Generator], Policy]
    objects: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reversible: bool = False
    contact_sensor: str | None = None
    goal_points: int = 1
    approach_cost: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model, shared; do not change it (copy it first)."""
        return _load_model(self.xml)

    @property
    def action_size(self) -> int:
        """Return the number of action channels."""
        return len(self.action_names)

    @property
    def control_dt_s(self) -> float:
        """Return seconds between two actions, which is also the time between two frames."""
        return float(self.model.opt.timestep) * self.substeps

    @property
    def fps(self) -> float:
        """Return frames per second."""
        return round(1.0 / self.control_dt_s, 6)

    @property
    def quantity_names(self) -> tuple[str, ...]:
        """Return the quantities' names, in order."""
        return tuple(quantity.name for quantity in self.quantities)

    @property
    def quantity_units(self) -> tuple[str, ...]:
        """Return the quantities' units, in order."""
        return tuple(quantity.unit for quantity in self.quantities)

    def controls(self, actions: np.ndarray) -> np.ndarray:
        """Turn actions [..., A] into MuJoCo controls; rounded to float32 as stored, then clipped to [-1, 1]."""
        rounded = np.asarray(actions, dtype=np.float32).astype(np.float64)
        return np.clip(rounded, -1.0, 1.0) * np.asarray(self.action_scale)

    def apply_action(self, data: mujoco.MjData, action: np.ndarray) -> None:
        """Write the controls that `action` [A] commands."""
        data.ctrl[:] = self.controls(action)

    def step(self, model: mujoco.MjModel, data: mujoco.MjData, action: np.ndarray) -> tuple[bool, str | None]:
        """Hold `action` for one control step.

        Returns:
            Whether a contact that counts happened during the step, and what MuJoCo warned of, if anything.
        """
        self.apply_action(data, action)
        touched = False
        for _ in range(self.substeps):
            mujoco.mj_step(model, data)
            touched = touched or self.in_contact(model, data)
        mujoco.mj_forward(model, data)
        return touched, warning_text(data)

    def in_contact(self, model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        """Tell whether a contact that counts was there in the last physics step."""
        if self.contact_sensor is None:
            return False
        return bool(data.sensordata[model.sensor(self.contact_sensor).adr[0]] > 0)

    def state_quantities(self, states: np.ndarray) -> np.ndarray:
        """Read the quantities [..., Q] of physics states [..., nstate]."""
        return self.quantities_of(*_split(self.model, states))

    def state_proprioception(self, states: np.ndarray) -> np.ndarray:
        """Read the proprioception [..., P] of physics states [..., nstate]."""
        return self.proprioception_of(*_split(self.model, states))

    def cost(self, quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
        """Return the distance to the goal in metres, [...], of quantities [..., Q]; goal [Q] or broadcastable."""
        index = list(self.goal_indices)
        difference = np.asarray(quantities)[..., index] - np.asarray(goal_quantities)[..., index]
        return np.sqrt(np.square(difference).sum(axis=-1) / self.goal_points)

    def planning_cost(self, quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
        """Return the cost plus the approach cost, [...], in metres: what a planner that sees quantities minimises."""
        cost = self.cost(quantities, goal_quantities)
        if self.approach_cost is None:
            return cost
        return cost + self.approach_cost(np.asarray(quantities), np.asarray(goal_quantities))

    def success(self, quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
        """Tell whether the cost is within the tolerance, [...]."""
        return self.cost(quantities, goal_quantities) <= self.tolerance_m


def _split(model: mujoco.MjModel, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    states = np.asarray(states, dtype=np.float64)
    return states[..., 1 : 1 + model.nq], states[..., 1 + model.nq : 1 + model.nq + model.nv]


@functools.cache
def _load_model(xml: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(ASSETS / xml))


def state_from_positions(model: mujoco.MjModel, positions: np.ndarray) -> np.ndarray:
    """Return the physics state at rest with joint positions [nq], at time zero."""
    data = mujoco.MjData(model)
    data.qpos[:] = positions
    return get_state(model, data)


__all__ = ["ASSETS", "Policy", "Quantity", "Task", "get_state", "set_state", "state_from_positions"]
