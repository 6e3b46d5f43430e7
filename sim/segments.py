# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Which pixels show which moving body, by MuJoCo's own segmentation: where a small object must be seen."""

import mujoco
import numpy as np

from sim.physics import set_state
from sim.tasks.base import Task


def body_masks(task: Task, states: np.ndarray, height: int, width: int, camera: str) -> dict[str, np.ndarray]:
    """Return, for each body that can move, where it is seen: bool [N, height, width] of physics states [N, nstate].

    A pixel belongs to the body that its middle shows. The names are those of the model.

    Raises:
        ValueError: The task is somebody else's environment or varied, or has no such camera.
    """
    if task.environment is not None or task.factors:
        raise ValueError(f"bodies of {task.name!r} cannot be told apart: only tasks of ours without variation can")
    if camera not in task.cameras:
        raise ValueError(f"task {task.name!r} has no camera {camera!r}; valid cameras are {', '.join(task.cameras)}")
    model = task.model
    data = mujoco.MjData(model)
    bodies = {model.body(index).name: index for index in range(1, model.nbody) if model.body_weldid[index] != 0}
    masks = {name: np.zeros((len(states), height, width), dtype=bool) for name in bodies}
    renderer = mujoco.Renderer(model, height, width)
    try:
        renderer.enable_segmentation_rendering()
        for number, state in enumerate(states):
            set_state(model, data, state)
            renderer.update_scene(data, camera)
            numbers, kinds = np.moveaxis(renderer.render(), -1, 0)
            shown = np.where(kinds == int(mujoco.mjtObj.mjOBJ_GEOM), model.geom_bodyid[numbers], 0)
            for name, index in bodies.items():
                masks[name][number] = shown == index
    finally:
        renderer.close()
    return masks
