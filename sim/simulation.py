# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""One running copy of a task: put a physics state in, hold actions, read the state that follows."""

from typing import TYPE_CHECKING, Protocol

import mujoco
import numpy as np

from sim.physics import get_state, set_state

if TYPE_CHECKING:
    from sim.tasks.base import Task


class Simulation(Protocol):
    """What steps a task, whoever wrote it. A control step is a function of the state and the action alone.

    Attributes:
        reward: The environment's own reward of the last step; 0 where it has none.
        ended: Whether the environment has ended the episode, after which steps do nothing; never in a task of ours.
        action_size: Channels of an action.
    """

    reward: float
    ended: bool
    action_size: int

    @property
    def data(self) -> mujoco.MjData:
        """What MuJoCo holds now; `data.model` is the model of this episode."""
        ...

    def state(self) -> np.ndarray:
        """Return a copy of the physics state, float64 [nstate]."""
        ...

    def restore(self, state: np.ndarray) -> None:
        """Put a physics state back, bit for bit."""
        ...

    def step(self, action: np.ndarray) -> tuple[bool, str | None]:
        """Hold `action` [A] in [-1, 1] for one control step.

        Returns:
            Whether a contact that counts happened, and what MuJoCo warned of, if anything.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class ControlSimulation:
    """Steps a task of ours: its actions are MuJoCo controls. Where it is varied, the state says which model that is."""

    reward, ended = 0.0, False

    def __init__(self, task: "Task") -> None:
        """Make the simulation data."""
        self._task = task
        self.action_size = task.action_size
        self._seed = np.zeros(1 if task.factors else 0)  # what a state ends with
        self.data = mujoco.MjData(task.model_of(np.zeros(1)))

    def state(self) -> np.ndarray:
        """Return a copy of the physics state, float64 [nstate]."""
        return np.concatenate([get_state(self.data.model, self.data), self._seed])

    def restore(self, state: np.ndarray) -> None:
        """Put a physics state back, bit for bit.

        Raises:
            ValueError: the state is of another model, or not finite.
        """
        model = self._task.model_of(state)
        if model is not self.data.model:
            self.data = mujoco.MjData(model)
        split = len(state) - len(self._seed)
        set_state(model, self.data, state[:split])
        self._seed = np.array(state[split:], dtype=np.float64)

    def step(self, action: np.ndarray) -> tuple[bool, str | None]:
        """Hold `action` [A] for one control step; see `Task.step`."""
        return self._task.step(self.data.model, self.data, action)

    def close(self) -> None:
        """Do nothing: the memory goes with the object."""
