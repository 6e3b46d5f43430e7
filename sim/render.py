# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Render MuJoCo states to small pictures, fast: no shadows, no multisampling in OpenGL, optional supersampling."""

import atexit
import copy
import functools
import warnings
import weakref

import mujoco
import numpy as np

from sim.errors import RenderingError
from sim.gl import ADVICE
from sim.physics import set_state

_MAX_GEOMS = 256
_FAST_FLAGS_OFF = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_SKYBOX,
    mujoco.mjtRndFlag.mjRND_FOG,
    mujoco.mjtRndFlag.mjRND_HAZE,
)
_OPEN: weakref.WeakSet["Renderer"] = weakref.WeakSet()


class Renderer:
    """Draws one camera of one model into uint8 [height, width, 3] pictures.

    Every picture is drawn `supersample` times larger and averaged, which smooths edges and keeps motion of less than a
    pixel visible; this is cheaper in software OpenGL than multisampling. An OpenGL context belongs to the thread that
    made it: make one renderer per thread.
    """

    def __init__(
        self, model: mujoco.MjModel, height: int, width: int, camera: str | int, *, supersample: int = 2
    ) -> None:
        """Create the OpenGL context.

        Raises:
            ValueError: a size below 1, or no such camera (the message lists the model's cameras).
            RenderingError: this machine cannot render; the message says what to install or set.
        """
        if min(height, width, supersample) < 1:
            raise ValueError(f"height, width and supersample must be at least 1, got {height}, {width}, {supersample}")
        _check_camera(model, camera)
        self.height, self.width, self.camera, self.supersample = height, width, camera, supersample
        self._model = copy.copy(model)
        self._data: mujoco.MjData | None = None
        full_height, full_width = height * supersample, width * supersample
        self._model.vis.global_.offheight, self._model.vis.global_.offwidth = full_height, full_width
        self._model.vis.quality.offsamples = 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GLFW warns on its way to the error below
                self._renderer = mujoco.Renderer(
                    self._model, full_height, full_width, max_geom=max(_MAX_GEOMS, 2 * model.ngeom)
                )
        except (mujoco.FatalError, RuntimeError, ImportError, AttributeError, OSError) as error:
            raise RenderingError(f"MuJoCo cannot render here ({type(error).__name__}: {error}). {ADVICE}") from error
        for flag in _FAST_FLAGS_OFF:
            self._renderer.scene.flags[flag] = 0
        self._buffer = np.empty((full_height, full_width, 3), dtype=np.uint8)
        _OPEN.add(self)
        _close_all_at_exit()

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """Draw what `data` holds, whose positions must be up to date; returns a new array."""
        self._renderer.update_scene(data, camera=self.camera)
        self._renderer.render(out=self._buffer)
        return _average_blocks(self._buffer, self.supersample)

    def render_states(self, states: np.ndarray) -> np.ndarray:
        """Draw physics states [N, nstate]; returns uint8 [N, height, width, 3]."""
        if self._data is None:
            self._data = mujoco.MjData(self._model)
        frames = np.empty((len(states), self.height, self.width, 3), dtype=np.uint8)
        for frame, state in zip(frames, states, strict=True):
            set_state(self._model, self._data, state)
            frame[...] = self.render(self._data)
        return frames

    def close(self) -> None:
        """Free the OpenGL context; closing twice is fine."""
        self._renderer.close()
        _OPEN.discard(self)


def _average_blocks(image: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return image.copy()
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    rows = blocks.sum(axis=1, dtype=np.uint16)
    total = rows.sum(axis=2, dtype=np.uint16)
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def _check_camera(model: mujoco.MjModel, camera: str | int) -> None:
    names = [model.camera(index).name for index in range(model.ncam)]
    if isinstance(camera, str) and camera not in names:
        raise ValueError(f"no camera {camera!r}; this model has {names}")
    if isinstance(camera, int) and not -1 <= camera < model.ncam:
        raise ValueError(f"no camera number {camera}; this model has {model.ncam}: {names} (-1 is the free camera)")


@functools.cache
def _close_all_at_exit() -> None:
    """Free contexts while OpenGL is still there; must be registered after mujoco's own clean-up, to run before it."""
    atexit.register(lambda: [renderer.close() for renderer in list(_OPEN)])
