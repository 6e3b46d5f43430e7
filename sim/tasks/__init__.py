"""The tasks: ours by name, other people's MuJoCo environments by their Gymnasium id."""

import re
from collections.abc import Iterable

from sim.tasks.base import Task
from sim.tasks.curtain import CURTAIN
from sim.tasks.drawer import DRAWER
from sim.tasks.fork import FORK
from sim.tasks.gym import environment_task
from sim.tasks.maze import MAZE
from sim.tasks.pick_place import PICK_PLACE
from sim.tasks.push import PUSH
from sim.tasks.push_t import PUSH_T
from sim.tasks.reach import REACH
from sim.tasks.rope import ROPE
from sim.tasks.stack import STACK

_TASKS = {task.name: task for task in (REACH, PUSH, PUSH_T, MAZE, DRAWER, PICK_PLACE, STACK, ROPE)}

_STUDIES = {task.name: task for task in (FORK, CURTAIN)}
"""Tasks that are asked for by name and are no part of the suite."""


def task_names() -> tuple[str, ...]:
    """Return the names of our own tasks, those for studies (such as fork) left out."""
    return tuple(_TASKS)


def get_task(name: str) -> Task:
    """Return the task called `name`, or of the Gymnasium environment with that id, such as FetchPush-v4.

    Factors of variation follow a plus sign: push+light+friction (see `sim.variation`).

    Raises:
        ValueError: there is no such task; the message lists the valid names. An environment that cannot be used says
            why.
    """
    name, *factors = name.split("+")
    return _plain_task(name).varied(factors)


def varied_name(name: str, factors: Iterable[str]) -> str:
    """Return the name of a task that is varied by some factors; `get_task` takes it."""
    return "+".join([name, *factors])


def _plain_task(name: str) -> Task:
    if name in _TASKS or name in _STUDIES:
        return _TASKS.get(name) or _STUDIES[name]
    if not re.search(r"-v\d+$", name):
        raise ValueError(
            f"unknown task {name!r}; valid tasks are {', '.join(_TASKS)}, and any Gymnasium MuJoCo environment by its "
            "id (task=gym id=FetchPush-v4)"
        )
    return environment_task(name)


__all__ = ["Task", "get_task", "task_names", "varied_name"]
