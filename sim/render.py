# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Render MuJoCo states to small pictures, fast: no shadows, no multisampling in OpenGL, optional supersampling."""

import atexit
import copy
import warnings
import weakref
from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from sim.errors import RenderingError
from sim.gl import ADVICE
from sim.physics import set_state
from sim.simulation import Simulation

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
        self,
        model: mujoco.MjModel,
        height: int,
        width: int,
        camera: "_Camera",
        *,
        supersample: int = 2,
        simulation: Simulation | None = None,
    ) -> None:
        """Create the OpenGL context.

        Args:
            model: What is drawn.
            height: Of a picture, in pixels.
            width: Of a picture, in pixels.
            camera: Name or number of one of the model's cameras (-1 is the free one), or what finds it, or a free one,
                for a model.
            supersample: How many times larger a picture is drawn before it is averaged.
            simulation: What puts the states of `render_states` in, where it takes more than the model; it is closed
                with the renderer.

        Raises:
            ValueError: a size below 1, or no such camera (the message lists the model's cameras).
            RenderingError: this machine cannot render; the message says what to install or set.
        """
        if min(height, width, supersample) < 1:
            raise ValueError(f"height, width and supersample must be at least 1, got {height}, {width}, {supersample}")
        _check_camera(model, camera)
        self.height, self.width, self.supersample = height, width, supersample
        self._option = mujoco.MjvOption()
        self._wanted_camera = camera
        self._simulation = simulation
        self._open(model)
        _OPEN.add(self)
        _close_all_at_exit()

    def _open(self, model: mujoco.MjModel) -> None:
        """Create the OpenGL context, which holds the model's meshes and textures."""
        self._model = copy.copy(model)
        self._drawn, self._camera = model, _camera(model, self._wanted_camera)
        self._data: mujoco.MjData | None = None
        full_height, full_width = self.height * self.supersample, self.width * self.supersample
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

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """Draw what `data` holds, whose positions must be up to date; returns a new array.

        Colours, lights and cameras are those of `data.model`, which may differ from episode to episode.
        """
        if data.model is not self._drawn:
            self._follow(data.model)
        scene, everything = self._renderer.scene, int(mujoco.mjtCatBit.mjCAT_ALL)
        mujoco.mjv_updateScene(data.model, data, self._option, None, self._camera, everything, scene)
        self._renderer.render(out=self._buffer)
        return _average_blocks(self._buffer, self.supersample)

    def _follow(self, model: mujoco.MjModel) -> None:
        """Go on with the model of another episode; only other textures need another OpenGL context."""
        if model.ntex != self._model.ntex or not np.array_equal(model.tex_data, self._model.tex_data):
            self._renderer.close()
            self._open(model)
        self._drawn, self._camera = model, _camera(model, self._wanted_camera)

    def render_states(self, states: np.ndarray) -> np.ndarray:
        """Draw physics states [N, nstate]; returns uint8 [N, height, width, 3]."""
        if self._data is None:
            self._data = mujoco.MjData(self._model)
        frames = np.empty((len(states), self.height, self.width, 3), dtype=np.uint8)
        for frame, state in zip(frames, states, strict=True):
            if self._simulation is None:
                set_state(self._model, self._data, state)
                frame[...] = self.render(self._data)
            else:
                self._simulation.restore(state)
                frame[...] = self.render(self._simulation.data)
        return frames

    def close(self) -> None:
        """Free the OpenGL context; closing twice is fine."""
        self._renderer.close()
        if self._simulation is not None:
            self._simulation.close()
        _OPEN.discard(self)


class SideBySide:
    """Draws several cameras, each by a renderer of its own, into one picture, from left to right."""

    def __init__(self, renderers: Sequence[Renderer]) -> None:
        """Take the renderers, all of one height; they are closed with this."""
        self._renderers = list(renderers)

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """Draw what `data` holds; see `Renderer.render`."""
        return np.concatenate([renderer.render(data) for renderer in self._renderers], axis=1)

    def render_states(self, states: np.ndarray) -> np.ndarray:
        """Draw physics states [N, nstate]; returns uint8 [N, height, width of all, 3]."""
        return np.concatenate([renderer.render_states(states) for renderer in self._renderers], axis=2)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers:
            renderer.close()


type AnyRenderer = Renderer | SideBySide


def _average_blocks(image: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return image.copy()
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    rows = blocks.sum(axis=1, dtype=np.uint16)
    total = rows.sum(axis=2, dtype=np.uint16)
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


type _Camera = str | int | Callable[[mujoco.MjModel], mujoco.MjvCamera | int]


def _camera(model: mujoco.MjModel, camera: _Camera) -> mujoco.MjvCamera:
    """Return what the scene is seen through."""
    if callable(camera):
        camera = camera(model)
    if isinstance(camera, mujoco.MjvCamera):
        return camera
    found = mujoco.MjvCamera()
    if camera == -1:
        mujoco.mjv_defaultFreeCamera(model, found)
    else:
        found.type = mujoco.mjtCamera.mjCAMERA_FIXED
        found.fixedcamid = model.camera(camera).id
    return found


def _check_camera(model: mujoco.MjModel, camera: _Camera) -> None:
    names = [model.camera(index).name for index in range(model.ncam)]
    if isinstance(camera, str) and camera not in names:
        raise ValueError(f"no camera {camera!r}; this model has {names}")
    if isinstance(camera, int) and not -1 <= camera < model.ncam:
        raise ValueError(f"no camera number {camera}; this model has {model.ncam}: {names} (-1 is the free camera)")


def _close_all() -> None:
    for renderer in list(_OPEN):
        renderer.close()


def _close_all_at_exit() -> None:
    """Free contexts while OpenGL is still there: registered after every other clean-up, to run before it.

    mujoco ends OpenGL at exit, and so does dm_control, which may have been imported since the last renderer was made.
    """
    atexit.unregister(_close_all)
    atexit.register(_close_all)
