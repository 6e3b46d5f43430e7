# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""What a task is: a model file, a few constants, and the functions that give it meaning."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from sim.external import Environment
from sim.physics import get_state, set_state, state_size, warning_text
from sim.render import Renderer
from sim.simulation import ControlSimulation, Simulation
from sim.variation import FACTORS, Variation, factor_names, varied_model

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
        tolerance_m: Success means a cost of at most this.
        cameras: Camera names; the first is the default.
        objects: Things that must not move untouched: name to the indices of their x and y among the quantities.
        reversible: Whether reversed actions lead back.
        contact_sensor: Name of the model's contact sensor, or None where the task has no contacts that count.
        reset: (model, rng) to a start state.
        sample_goal: (model, start state, rng) to a goal state.
        play_policy: rng to a policy without a goal that covers states and actions.
        expert: (goal state, rng) to a scripted policy that solves the task.
        approach_cost: What a planner should also keep small, (quantities, goal quantities) to metres [...]; None
            where the cost alone shows the way. It never counts for success.
        environment: Somebody else's environment, whose own `step` steps the task (see `sim.tasks.gym`); None for ours,
            which are a model file and hold their actions as MuJoCo controls.
        variation: How this episode's model differs from the file's; None is not at all (see `varied`).
    """

    name: str
    xml: str = ""
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
    objects: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    reversible: bool = False
    contact_sensor: str | None = None
    approach_cost: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    environment: Environment | None = None
    variation: Variation | None = None

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model, shared; do not change it (copy it first)."""
        if self.environment is not None:
            return self.environment.model
        return _load_model(self.xml) if self.variation is None else _load_varied(self.xml, self.variation)[0]

    @property
    def state_size(self) -> int:
        """Return the number of float64 values in a physics state."""
        return state_size(self.model) if self.environment is None else self.environment.state_size

    def simulation(self) -> Simulation:
        """Make what steps the task."""
        if self.environment is None:
            return ControlSimulation(self)
        return self.environment.simulation(self.variation)

    def renderer(self, height: int, width: int, camera: str | None = None) -> Renderer:
        """Make what draws the task's physics states, and the data of its simulations.

        Args:
            height: Of a picture, in pixels.
            width: Of a picture, in pixels.
            camera: One of `cameras`; the first when None.

        Raises:
            ValueError: no such camera, or a size below 1.
            RenderingError: this machine cannot render; the message says what to install or set.
        """
        camera = camera or self.cameras[0]
        if camera not in self.cameras:
            raise ValueError(f"task {self.name!r} has no camera {camera!r}; valid cameras are {', '.join(self.cameras)}")
        if self.environment is None:
            return Renderer(self.model, height, width, camera)
        simulation = self.simulation()
        model = simulation.data.model
        seen = self.environment.camera(camera, model)
        return Renderer(model, height, width, seen, simulation=simulation)

    def varied(self, factors: Sequence[str], seed: int) -> "Task":
        """Return the task with the model of one episode, varied by some factors; itself where there are none.

        Its physics states and its replay belong to this variation: give the same factors and seed to branch them.

        Raises:
            ValueError: unknown factors, or some that this task's model cannot be varied by.
        """
        if not factors:
            return self
        names = factor_names(factors)
        needing = [name for name in names if FACTORS[name].edit_file]
        if self.environment is not None and needing:
            raise ValueError(
                f"{self.name} cannot be varied by {', '.join(needing)}: that changes a model's file, and its environment "
                f"loads its own. It can be varied by {', '.join(name for name, factor in FACTORS.items() if factor.edit)}"
            )
        return replace(self, variation=Variation(factors=names, seed=seed))

    def variation_info(self) -> dict[str, Any]:
        """Return the factors, the seed and what was drawn, as JSON values; of a varied task."""
        if self.variation is None:
            raise ValueError(f"task {self.name!r} is not varied; call varied() first")
        if self.environment is None:
            values = _load_varied(self.xml, self.variation)[1]
        else:
            values = self.variation.edit(copy.copy(self.environment.model))
        return {"factors": list(self.variation.factors), "seed": self.variation.seed, "values": values}

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
        return np.sqrt(np.square(difference).sum(axis=-1))

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


@functools.lru_cache(maxsize=4)
def _load_varied(xml: str, variation: Variation) -> tuple[mujoco.MjModel, dict[str, Any]]:
    return varied_model(ASSETS / xml, variation)


def state_from_positions(model: mujoco.MjModel, positions: np.ndarray) -> np.ndarray:
    """Return the physics state at rest with joint positions [nq], at time zero."""
    data = mujoco.MjData(model)
    data.qpos[:] = positions
    return get_state(model, data)


__all__ = ["ASSETS", "Policy", "Quantity", "Task", "get_state", "set_state", "state_from_positions"]
