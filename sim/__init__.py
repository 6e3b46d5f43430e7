"""MuJoCo tasks from pixels: physics that can be branched, rendered, collected and used as the judge.

Importing this package chooses a headless OpenGL back end where none is set and registers `embodied_wm/<Task>-v0`.
"""

from sim.gl import import_mujoco

import_mujoco()

from sim.env import register_environments  # noqa: E402
from sim.errors import InstabilityError, RenderingError  # noqa: E402
from sim.tasks import get_task, task_names  # noqa: E402

register_environments()

__all__ = ["InstabilityError", "RenderingError", "get_task", "task_names"]
