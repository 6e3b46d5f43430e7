"""The tasks, by name."""

from sim.tasks.base import Task
from sim.tasks.drawer import DRAWER
from sim.tasks.maze import MAZE
from sim.tasks.pick_place import PICK_PLACE
from sim.tasks.push import PUSH
from sim.tasks.push_t import PUSH_T
from sim.tasks.reach import REACH
from sim.tasks.rope import ROPE
from sim.tasks.stack import STACK

_TASKS = {task.name: task for task in (REACH, PUSH, PUSH_T, MAZE, DRAWER, PICK_PLACE, STACK, ROPE)}


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks."""
    return tuple(_TASKS)


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        ValueError: there is no such task; the message lists the valid names.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; valid tasks are {', '.join(_TASKS)}")
    return _TASKS[name]


__all__ = ["Task", "get_task", "task_names"]
