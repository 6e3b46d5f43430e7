# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Collect episodes: rows of (observation_t, action_t), where action_t is applied between frame t and frame t+1.

An episode depends on the task, the seed and its number alone, so the number of workers changes nothing but the time.
"""

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np

from sim.physics import raise_instability
from sim.tasks import get_task
from sim.tasks.base import Task
from sim.workers import end_with_parent

EPISODE_ROWS = 50
POLICIES = ("play", "clumsy", "random", "expert")


def features(
    task: Task, image_size: int = 64, camera: str | None = None
) -> dict[str, tuple[str, tuple[int, ...], tuple[str, ...], tuple[str, ...]]]:
    """Describe what `collect` yields: name to (dtype, shape of one row, names, units)."""
    felt = task.proprioception
    contact = {} if task.contact_sensor is None else {"sim.contact": ("float32", (1,), ("contact",), ("1",))}
    reward = {"sim.reward": ("float32", (1,), ("reward",), ("1",))} if task.environment else {}
    return (
        reward
        | {
            f"observation.images.{name}": ("uint8", (image_size, image_size, 3), (), ())
            for name in (camera or task.cameras[0]).split("+")
        }
        | {
            "observation.state": (
                "float32",
                (len(felt),),
                tuple(quantity.name for quantity in felt),
                tuple(quantity.unit for quantity in felt),
            ),
            "action": ("float32", (task.action_size,), task.action_names, ("1",) * task.action_size),
            "sim.physics": ("float64", (task.state_size,), (), ()),
            "sim.quantities": ("float32", (len(task.quantities),), task.quantity_names, task.quantity_units),
        }
        | contact
    )


def collect(
    task_name: str,
    *,
    num_episodes: int,
    seed: int,
    image_size: int = 64,
    policy: str = "play",
    camera: str | None = None,
    num_workers: int = 2,
    num_rows: int = EPISODE_ROWS,
    first_episode: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield episodes in order, each a dict of `features` (name to array [rows, ...]) and `info` (JSON values).

    Args:
        task_name: What `get_task` takes: a task of ours or a Gymnasium id, and factors of variation. Episodes of a
            varied task say in `info["variation"]` how they differ.
        num_episodes: How many.
        seed: Seed of the whole collection; episode i draws from (seed, i).
        image_size: Height and width of the frames, in pixels.
        policy: "play" (covers states and actions, no goal), "clumsy" (play that often misses what it aims at; arm tasks
            alone), "random" (uniform) or "expert" (seeks a drawn goal).
        camera: A camera of the task; its first when None; several as "first+second", each of which becomes a feature.
        num_workers: Processes; 0 or 1 collects in this one.
        num_rows: Rows per episode. Where an environment ends an episode before, the state that it ended in is the last
            row, and `info["ended"]` is true.
        first_episode: Number of the first episode, so that a collection can be continued.

    Raises:
        ValueError: unknown task, policy or camera, or a size below 1.
        InstabilityError: MuJoCo became unstable; names task, seed and step.
    """
    task = get_task(task_name)
    camera = _check_arguments(task, num_episodes, image_size, policy, camera, num_rows)
    numbers = range(first_episode, first_episode + num_episodes)
    arguments = (task_name, seed, image_size, policy, camera, num_rows)
    if num_workers <= 1 or num_episodes == 1:
        return _collect_here(arguments, numbers)
    return _collect_in_processes(arguments, numbers, num_workers)


def _check_arguments(
    task: Task, num_episodes: int, image_size: int, policy: str, camera: str | None, num_rows: int
) -> str:
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; valid policies are {', '.join(POLICIES)}")
    if policy == "clumsy" and task.clumsy_policy is None:
        raise ValueError(f"task {task.name!r} has no clumsy policy; pick_place and stack have. Choose policy=play")
    for name in (camera or task.cameras[0]).split("+"):
        if name not in task.cameras:
            raise ValueError(f"task {task.name!r} has no camera {name!r}; valid cameras are {', '.join(task.cameras)}")
    for name, value in (("num_episodes", num_episodes), ("image_size", image_size), ("num_rows", num_rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return camera or task.cameras[0]


class _Collector:
    """Keeps one task's simulation and renderer warm and records episodes with them."""

    def __init__(self, task_name: str, seed: int, image_size: int, policy: str, camera: str, num_rows: int) -> None:
        self.task = get_task(task_name)
        self.seed, self.policy, self.num_rows = seed, policy, num_rows
        self.simulation = self.task.simulation()
        self.cameras = camera.split("+")
        self.renderer = self.task.renderer(image_size, image_size * len(self.cameras), camera)
        self._specs = features(self.task, image_size, camera)

    def close(self) -> None:
        """Free the simulation and the renderer."""
        self.renderer.close()
        self.simulation.close()

    def episode(self, number: int) -> dict[str, Any]:
        """Record episode `number`."""
        task, simulation = self.task, self.simulation
        rng = np.random.default_rng([self.seed, number])
        simulation.restore(task.reset(task.model, rng))
        policy = self._make_policy(simulation.state(), rng)
        rows = {name: np.zeros((self.num_rows, *spec[1]), dtype=spec[0]) for name, spec in self._specs.items()}
        contacts, touched = 0, task.in_contact(simulation.data.model, simulation.data)
        for row in range(self.num_rows):
            state = simulation.state()
            action = np.asarray(policy(state), dtype=np.float32)
            for name, picture in zip(self.cameras, self._pictures(row), strict=True):
                rows[f"observation.images.{name}"][row] = picture
            rows["observation.state"][row] = task.state_proprioception(state)
            rows["action"][row] = action
            rows["sim.physics"][row] = state
            rows["sim.quantities"][row] = task.state_quantities(state)
            if "sim.contact" in rows:
                rows["sim.contact"][row] = touched  # in the step that led to this row, as `sim.branch` has it
            if simulation.ended:
                rows = {name: values[: row + 1] for name, values in rows.items()}
                break
            if row + 1 < self.num_rows:
                touched, warning = simulation.step(action)
                contacts += touched
                if warning is not None:
                    raise_instability(task.name, (self.seed, number), row, warning)
                if task.environment is not None:
                    rows["sim.reward"][row] = simulation.reward
        info: dict[str, Any] = {
            "task": task.name,
            "policy": self.policy,
            "seed": self.seed,
            "episode": number,
            "contact_steps": int(contacts),
        }
        if simulation.ended:
            info["ended"] = True
        if task.factors:
            info["variation"] = task.variation_of(simulation.state())
        return {"features": rows, "info": info}

    def _pictures(self, row: int) -> list[np.ndarray]:
        """Return the picture of each camera."""
        pictures = np.split(self.renderer.render(self.simulation.data), len(self.cameras), axis=1)
        for camera, picture in zip(self.cameras, pictures, strict=True):
            if row == 0 and (picture == picture[0, 0]).all():
                raise ValueError(
                    f"camera {camera!r} of {self.task.name} sees nothing: its picture has one colour. Choose another: "
                    f"{', '.join(self.task.cameras)}"
                )
        return pictures

    def _make_policy(self, start: np.ndarray, rng: np.random.Generator):
        if self.policy == "play":
            return self.task.play_policy(rng)
        if self.policy == "clumsy" and self.task.clumsy_policy is not None:
            return self.task.clumsy_policy(rng)
        if self.policy == "expert":
            return self.task.expert(self.task.sample_goal(self.task.model, start, rng), rng)
        return lambda state: rng.uniform(-1.0, 1.0, size=self.task.action_size)


def _collect_here(arguments: tuple, numbers: range) -> Iterator[dict[str, Any]]:
    collector = _Collector(*arguments)
    try:
        for number in numbers:
            yield collector.episode(number)
    finally:
        collector.close()


_worker: _Collector | None = None


def _start_worker(arguments: tuple) -> None:
    global _worker
    end_with_parent()
    _worker = _Collector(*arguments)


def _work(number: int) -> dict[str, Any]:
    assert _worker is not None
    return _worker.episode(number)


def _collect_in_processes(arguments: tuple, numbers: range, num_workers: int) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(arguments,))
    pending: list[Future] = []
    upcoming = iter(numbers)
    try:
        pending += [pool.submit(_work, number) for number in itertools.islice(upcoming, 4 * num_workers)]
        while pending:
            episode = pending.pop(0).result()
            pending += [pool.submit(_work, number) for number in itertools.islice(upcoming, 1)]
            yield episode
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
