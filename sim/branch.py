# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Branch physics: from one exact state, what would each of many action sequences do?"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mujoco
import numpy as np
from mujoco import rollout

from sim.errors import InstabilityError
from sim.physics import STATE_SPEC
from sim.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class BranchResult:
    """What S candidates of H steps led to; index h is what holds *after* action h.

    Where an environment ends its episode, a candidate's states stay as they are from there on.

    Attributes:
        states: Physics states, float64 [S, H, nstate].
        quantities: The task's quantities, float64 [S, H, Q].
        contacts: Whether a contact that counts happened during the step, bool [S, H].
    """

    states: np.ndarray
    quantities: np.ndarray
    contacts: np.ndarray


class Brancher:
    """Rolls out candidates in threads, bit for bit as stepping them one by one would.

    Our own tasks run in MuJoCo's native threads (`mujoco.rollout`). Another environment is stepped by its own `step`,
    in as many copies as there are threads: see `sim.external`.
    """

    def __init__(self, task: Task, *, num_threads: int = 2) -> None:
        """Start the threads and their simulation data."""
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        self.task = task
        self._model = task.model
        self._stepper = _Stepper(task, num_threads) if task.environment else _Rollouts(task, num_threads)

    def __call__(self, physics: np.ndarray, actions: np.ndarray) -> BranchResult:
        """Replay actions [S, H, A] from one physics state [nstate], or from one state per candidate [S, nstate].

        Raises:
            ValueError: shapes do not fit this task.
            InstabilityError: MuJoCo stopped a candidate; names the task, the candidate and the step.
        """
        initial, actions = self._check(physics, actions)
        states, contacts = self._stepper(initial, actions)
        self._raise_if_unstable(initial, states)
        return BranchResult(states=states, quantities=self.task.state_quantities(states), contacts=contacts)

    def close(self) -> None:
        """Stop the threads."""
        self._stepper.close()

    def _check(self, physics: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        actions = np.asarray(actions)
        size = self.task.action_size
        if actions.ndim != 3 or actions.shape[-1] != size or 0 in actions.shape:
            raise ValueError(
                f"actions of task {self.task.name!r} must be [candidates, horizon, {size}], none of them empty; "
                f"got {actions.shape}"
            )
        if not np.isfinite(actions).all():
            raise ValueError(
                f"actions must be finite; candidate {int(np.argwhere(~np.isfinite(actions))[0][0])} is not"
            )
        initial = np.atleast_2d(np.asarray(physics, dtype=np.float64))
        nstate = self.task.state_size
        if initial.shape not in {(1, nstate), (len(actions), nstate)}:
            raise ValueError(
                f"physics of task {self.task.name!r} must be [{nstate}] or [{len(actions)}, {nstate}], "
                f"got {np.shape(physics)}: was it stored for another task?"
            )
        initial = np.ascontiguousarray(np.broadcast_to(initial, (len(actions), nstate)))
        return initial, actions

    def _raise_if_unstable(self, initial: np.ndarray, states: np.ndarray) -> None:
        """Find candidates whose clock stopped: that is how a rollout of ours ends when MuJoCo warns."""
        horizon = states.shape[1]
        bad = ~np.isfinite(states).all(axis=-1)
        if self.task.environment is None:  # an environment's clock stands after the end of its episode
            expected = initial[:, :1] + self.task.control_dt_s * np.arange(1, horizon + 1)
            bad |= np.abs(states[..., 0] - expected) > 0.5 * self._model.opt.timestep
        if np.any(bad):
            candidate, step = (int(index) for index in np.argwhere(bad)[0])
            raise InstabilityError(
                f"MuJoCo became unstable in task {self.task.name!r}, candidate {candidate}, step {step} of {horizon}; "
                "use a smaller timestep, more armature or damping, or softer actuators."
            )


class _Rollouts:
    """Steps a task of ours in native threads."""

    def __init__(self, task: Task, num_threads: int) -> None:
        self._task, self._num_threads = task, num_threads
        self._model: mujoco.MjModel | None = None
        self._data: list[mujoco.MjData] = []
        self._rollout = rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)

    def __call__(self, initial: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return states [S, H, nstate] and contacts [S, H]."""
        if not self._task.factors:
            return self._roll(self._task.model, initial, actions)
        states = np.empty((*actions.shape[:2], initial.shape[-1]))
        contacts = np.empty(actions.shape[:2], dtype=bool)
        states[..., -1] = initial[:, None, -1]
        for seed in np.unique(initial[:, -1]):  # each variation is a model of its own
            same = initial[:, -1] == seed
            model = self._task.model_of(initial[same][0])
            states[same, :, :-1], contacts[same] = self._roll(
                model, np.ascontiguousarray(initial[same, :-1]), actions[same]
            )
        return states, contacts

    def _roll(self, model: mujoco.MjModel, initial: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if model is not self._model:
            self._model, self._data = model, [mujoco.MjData(model) for _ in range(self._num_threads)]
        (num_candidates, horizon), substeps = actions.shape[:2], self._task.substeps
        repeated = np.repeat(self._task.controls(actions), substeps, axis=1)
        outputs = self._rollout.rollout(model, self._data, initial, repeated)
        all_states, sensors = (np.asarray(output) for output in outputs)
        states = np.ascontiguousarray(all_states.reshape(num_candidates, horizon, substeps, -1)[:, :, -1])
        contacts = np.zeros((num_candidates, horizon), dtype=bool)
        if self._task.contact_sensor is not None:
            found = sensors[..., model.sensor(self._task.contact_sensor).adr[0]] > 0
            contacts |= found.reshape(num_candidates, horizon, substeps).any(axis=-1)
        return states, contacts

    def close(self) -> None:
        self._rollout.close()


class _Stepper:
    """Steps copies of an environment, one in each thread."""

    def __init__(self, task: Task, num_threads: int) -> None:
        self._simulations = [task.simulation() for _ in range(num_threads)]
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def __call__(self, initial: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return states [S, H, nstate] and contacts [S, H]; after MuJoCo warned, the state is not a number."""
        states = np.full((*actions.shape[:2], initial.shape[-1]), np.nan)
        contacts = np.zeros(actions.shape[:2], dtype=bool)

        def work(number: int) -> None:
            simulation = self._simulations[number]
            for candidate in range(number, len(actions), len(self._simulations)):
                simulation.restore(initial[candidate])
                for step, action in enumerate(actions[candidate]):
                    contacts[candidate, step], warning = simulation.step(action)
                    if warning is not None:
                        break
                    states[candidate, step] = simulation.state()

        if self._pool is None:
            work(0)
        else:
            list(self._pool.map(work, range(len(self._simulations))))
        return states, contacts

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for simulation in self._simulations:
            simulation.close()


def branch(task: Task, physics: np.ndarray, actions: np.ndarray, *, num_threads: int = 2) -> BranchResult:
    """Replay actions [S, H, A] from one physics state once; keep a `Brancher` where this is done often."""
    brancher = Brancher(task, num_threads=num_threads)
    try:
        return brancher(physics, actions)
    finally:
        brancher.close()


__all__ = ["STATE_SPEC", "BranchResult", "Brancher", "branch"]
