# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""What a task is: a model file, a few constants, and the functions that give it meaning."""

import copy
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from sim.external import Environment
from sim.physics import get_state, set_state, state_size, warning_text
from sim.render import AnyRenderer, Renderer, SideBySide
from sim.simulation import ControlSimulation, Simulation
from sim.variation import Variation, factor_names, seed_of, varied_model

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
        environment: Somebody else's environment, whose own `step` steps the task (see `sim.tasks.gym`); None for ours,
            which are a model file and hold their actions as MuJoCo controls.
        clumsy_policy: rng to a play policy that often misses what it aims at; None for none.
        factors: By what the model differs from episode to episode (see `varied`).
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
    objects: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reversible: bool = False
    contact_sensor: str | None = None
    goal_points: int = 1
    approach_cost: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    environment: Environment | None = None
    clumsy_policy: Callable[[np.random.Generator], Policy] | None = None
    factors: tuple[str, ...] = ()

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled model without any variation, shared; do not change it (copy it first)."""
        return _load_model(self.xml) if self.environment is None else self.environment.model

    def model_of(self, state: np.ndarray) -> mujoco.MjModel:
        """Return the model that a physics state belongs to; another than `model` where the task is varied.

        Raises:
            ValueError: the state is not of this task.
        """
        if not self.factors or self.environment is not None:
            return self.model
        return _load_varied(self.xml, Variation(factors=self.factors, seed=seed_of(state)))[0]

    @property
    def state_size(self) -> int:
        """Return the number of float64 values in a physics state."""
        if self.environment is not None:
            return self.environment.state_size
        return state_size(self.model_of(np.zeros(1))) + bool(self.factors)

    def simulation(self) -> Simulation:
        """Make what steps the task."""
        if self.environment is None:
            return ControlSimulation(self)
        return self.environment.simulation(self.factors)

    def renderer(self, height: int, width: int, camera: str | None = None) -> AnyRenderer:
        """Make what draws the task's physics states, and the data of its simulations.

        Args:
            height: Of a picture, in pixels.
            width: Of a picture, in pixels.
            camera: One of `cameras`; the first when None; "first+second" draws several side by side.

        Raises:
            ValueError: no such camera, a size below 1, or a width that the cameras cannot share.
            RenderingError: this machine cannot render; the message says what to install or set.
        """
        names = (camera or self.cameras[0]).split("+")
        for name in names:
            if name not in self.cameras:
                raise ValueError(
                    f"task {self.name!r} has no camera {name!r}; valid cameras are {', '.join(self.cameras)}"
                )
        if width % len(names):
            raise ValueError(f"a width of {width} cannot be shared by {len(names)} cameras: {', '.join(names)}")
        drawn = [self._renderer(height, width // len(names), name) for name in names]
        return drawn[0] if len(drawn) == 1 else SideBySide(drawn)

    def _renderer(self, height: int, width: int, camera: str) -> Renderer:
        if self.environment is None:
            simulation = self.simulation() if self.factors else None
            return Renderer(self.model, height, width, camera, simulation=simulation)
        through = functools.partial(self.environment.camera, camera)
        return Renderer(self.model, height, width, through, simulation=self.simulation())

    def varied(self, factors: Iterable[str]) -> "Task":
        """Return the task whose model differs from episode to episode by some factors; itself where there are none.

        A physics state of a varied task ends with the seed of its variation, which its start state gave: replay,
        branching and pictures need nothing else. Starts, goals and policies are drawn as without a variation.

        Args:
            factors: Names of `sim.variation.FACTORS`; "visual" and "physical" stand for all of that kind that this
                task's model has anything of.

        Raises:
            ValueError: unknown factors, or one that this task's model has nothing of.
        """
        asked = tuple(factors)
        names = tuple(name for name in factor_names(asked) if name in asked or self._has(name))
        if not names:
            return self
        for name in names:
            self._check_factor(name)
        task = replace(self, name="+".join([self.name, *names]), factors=names)
        if self.environment is not None:
            return task

        def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
            start = self.reset(self.model, rng)
            return task.with_variation(start, zlib.crc32(start.tobytes()))

        def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            plain = start[: self.state_size]
            return task.with_variation(self.sample_goal(self.model, plain, rng), seed_of(start))

        return replace(task, reset=reset, sample_goal=sample_goal)

    def _check_factor(self, name: str) -> None:
        """Raise ValueError where this task's model has nothing that a factor varies."""
        if self.environment is not None:
            self.environment.check_factor(name)
        else:
            _load_varied(self.xml, Variation(factors=(name,), seed=0))

    def _has(self, name: str) -> bool:
        try:
            self._check_factor(name)
        except ValueError:
            return False
        return True

    def with_variation(self, state: np.ndarray, seed: int) -> np.ndarray:
        """Return a state of the task without variation as one of this varied task; no delayed action is on its way."""
        model = self.model_of(np.array([float(seed)]))
        delayed = get_state(model, mujoco.MjData(model))[len(state) :]
        return np.concatenate([state, delayed, [float(seed)]])

    def variation_of(self, state: np.ndarray) -> dict[str, Any]:
        """Return the factors, the seed and what was drawn, as JSON values, for a physics state of a varied task."""
        variation = Variation(factors=self.factors, seed=seed_of(state))
        if self.environment is None:
            values = _load_varied(self.xml, variation)[1]
        else:
            values = variation.edit(copy.copy(self.environment.model))
        return {"factors": list(variation.factors), "seed": variation.seed, "values": values}

    @property
    def robot(self) -> str:
        """Return whose actions and cameras these are: the task's name, without its variation."""
        return self.name.split("+")[0]

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
        """Turn actions [..., A] into MuJoCo controls; rounded to float32 as stored, then clipped to [-1, 1].

        Raises:
            ValueError: the task is somebody else's environment, whose actions need not be controls.
        """
        if self.environment is not None:
            raise ValueError(f"{self.name} is stepped by its own environment, not by controls: use simulation()")
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

    def has_ended(self, states: np.ndarray) -> np.ndarray:
        """Tell in which physics states [..., nstate] an environment has ended its episode, [...]; a task of ours never.

        What is done there moves nothing. The last number of such a state says so (`sim.external`).
        """
        last = np.asarray(states)[..., -1]
        return last < 0 if self.environment is not None else np.zeros(last.shape, dtype=bool)

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


@functools.lru_cache(maxsize=64)
def _load_varied(xml: str, variation: Variation) -> tuple[mujoco.MjModel, dict[str, Any]]:
    return varied_model(ASSETS / xml, variation)


def state_from_positions(model: mujoco.MjModel, positions: np.ndarray) -> np.ndarray:
    """Return the physics state at rest with joint positions [nq], at time zero."""
    data = mujoco.MjData(model)
    data.qpos[:] = positions
    return get_state(model, data)


__all__ = ["ASSETS", "Policy", "Quantity", "Task", "get_state", "set_state", "state_from_positions"]
