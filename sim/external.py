# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Other people's MuJoCo environments, by Gymnasium id: stepped by their own `step`, saved and restored exactly.

What an environment's next step depends on is more than MuJoCo's FULLPHYSICS: the solver's warm start, mocap bodies and
controls (all in MuJoCo's INTEGRATION state), and what its reset drew once for the whole episode and keeps elsewhere: a
goal in a Python attribute (Fetch), a target moved in the model (dm_control). So a physics state here is the INTEGRATION
vector, then the seed of the episode's reset; restoring it means resetting with that seed, then putting the physics
back. Where the environment says that its episode has ended (`terminated`), -1 - seed stands instead of the seed, and
every step leaves such a state as it is, so that all who step agree where an episode ended. Its time limit (`truncated`)
is no matter of its state and is not followed. After every control step the quantities that follow from the state are
computed anew, so that a step depends on the state vector alone. That this suffices is not taken for granted:
`Environment` proves it on a short episode when it is made, and refuses an environment whose steps depend on anything
else.

Stepping through Python cannot use `mujoco.rollout`, whose threads know controls but no mocap bodies, callbacks or
warm starts: candidates are stepped by as many copies of the environment as there are threads, which gain where
MuJoCo's part of a step is long (it runs without Python's lock).
"""

import copy
import difflib
import importlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from sim.physics import raise_instability, warning_text
from sim.variation import FACTORS, Variation, seed_of

STATE_SPEC = int(mujoco.mjtState.mjSTATE_INTEGRATION)
PROBE_SEED = 20_011
FREE_CAMERA, WORKSPACE_CAMERA = "default", "workspace"
_NEAREST = 0.05
"""A free camera is at least so far away, in shares of the scene's extent."""
EXTRA = 'pip install "embodied-wm[environments]"'
_FILTERS = threading.RLock()
_PACKAGES = {"dm_control/": "shimmy", "": "gymnasium_robotics"}
"""Beginning of an id to the package whose import registers such ids."""


class EnvironmentSimulation:
    """Steps one copy of a Gymnasium environment; see the module's text for what a state is."""

    def __init__(self, env_id: str, factors: tuple[str, ...] = ()) -> None:
        """Make the environment; with factors its model is varied by the seed of each reset.

        Raises:
            ValueError: no such id, or no environment that this project can use; says what is missing.
        """
        self.id, self._factors = env_id, factors
        self.env = make_environment(env_id)
        draw_fast(self.data.model)
        self.reward, self.ended = 0.0, False
        self.low, self.high = _action_bounds(env_id, self.env.action_space)
        self.action_size = len(self.low)
        self.dt_s = self._measure_step()
        self._seed = self._marked = -1
        self.reset(0)

    @property
    def data(self) -> mujoco.MjData:
        """What MuJoCo holds now; the environment may make it anew at each reset."""
        return physics_of(self.id, self.env)

    def reset(self, seed: int) -> Any:
        """Start the environment's own episode of a seed, and return its own observation."""
        observation = self._reset(seed)
        self._settle()
        return observation

    def _reset(self, seed: int) -> Any:
        if self._factors and seed != self._seed:  # a fresh copy, whose model nothing has changed yet
            self.env.close()
            self.env = make_environment(self.id)
            draw_fast(self.data.model)
            Variation(factors=self._factors, seed=seed).edit(self.data.model)
            self._marked = -1
        observation, _ = self.env.reset(seed=seed)
        self._seed, self.ended = seed, False
        return observation

    def state(self) -> np.ndarray:
        """Return a copy of the physics state, float64 [nstate]."""
        return np.append(_get(self.data), float(-1 - self._seed if self.ended else self._seed))

    def restore(self, state: np.ndarray) -> None:
        """Put a physics state back, bit for bit.

        Raises:
            ValueError: the state is of another environment, or not finite.
        """
        values = np.ascontiguousarray(state, dtype=np.float64)
        size = mujoco.mj_stateSize(self.data.model, STATE_SPEC) + 1
        if values.shape != (size,):
            raise ValueError(
                f"a physics state of {self.id} has shape ({size},), got {values.shape}: was it stored for another task?"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"a physics state must be finite, got {values.tolist()}")
        self._reset(seed_of(values))
        self.ended = bool(values[-1] < 0)
        _set(self.data, values[:-1])
        draw_hook = getattr(self.env.unwrapped, "_render_callback", None)
        if draw_hook is not None and self._marked != self._seed:
            draw_hook()  # where gymnasium-robotics moves the goal's marker in the model, just before it draws
            self._marked = self._seed
            _set(self.data, values[:-1])

    def step(self, action: np.ndarray) -> tuple[bool, str | None]:
        """Hold `action` [A] for one step of the environment; do nothing where it has ended the episode.

        Returns:
            Whether bodies of two kinematic trees touch at its end, and what MuJoCo warned of, if anything.

        Raises:
            ValueError: the environment began a new episode by itself, as some do after their time limit.
        """
        if self.ended:
            self.reward = 0.0
            return False, None
        data = self.data
        before = data.time
        share = (np.clip(np.asarray(action, dtype=np.float32).astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
        native = (self.low + share * (self.high - self.low)).astype(self.env.action_space.dtype)
        try:
            _, reward, terminated, *_ = self.env.step(native)
        except Exception:
            warned = warning_text(data)  # dm_control turns MuJoCo's warnings into an error of its own
            if warned is None:
                raise
            return False, warned
        self.reward = float(reward)
        warned = warning_text(data)
        if warned is not None:
            return False, warned
        if abs(data.time - before - self.dt_s) > 0.5 * data.model.opt.timestep:
            raise ValueError(
                f"{self.id} began a new episode by itself, {before:.3f} s after its reset: take fewer rows or steps"
            )
        self.ended = bool(terminated)
        self._settle()
        return _trees_touch(data), None

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _settle(self) -> None:
        """Compute what follows from the state, and leave the state itself (the warm start too) as it is."""
        data = self.data
        state = _get(data)
        mujoco.mj_forward(data.model, data)
        mujoco.mj_setState(data.model, data, state, STATE_SPEC)

    def _measure_step(self) -> float:
        before = self.data.time
        self.env.step(((self.low + self.high) / 2.0).astype(self.env.action_space.dtype))
        return float(self.data.time - before)


def _get(data: mujoco.MjData) -> np.ndarray:
    state = np.empty(mujoco.mj_stateSize(data.model, STATE_SPEC))
    mujoco.mj_getState(data.model, data, state, STATE_SPEC)
    return state


def _set(data: mujoco.MjData, state: np.ndarray) -> None:
    mujoco.mj_setState(data.model, data, state, STATE_SPEC)
    mujoco.mj_forward(data.model, data)
    mujoco.mj_setState(data.model, data, state, STATE_SPEC)


def _trees_touch(data: mujoco.MjData) -> bool:
    """Tell whether two bodies that move by different roots touch; the world touches everything and does not count."""
    if data.ncon == 0:
        return False
    model = data.model
    roots = model.body_rootid[model.geom_bodyid[data.contact.geom]]
    movable = model.body_treeid[model.geom_bodyid[data.contact.geom]] >= 0
    near = data.contact.dist <= 0.0
    return bool((near & movable.all(axis=-1) & (roots[:, 0] != roots[:, 1])).any())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what other packages warn of while they load to themselves; Python's filters belong to all threads."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def draw_fast(model: mujoco.MjModel) -> None:
    """Switch off what small pictures cannot show and software OpenGL pays for: shadows, multisampling, fine meshes."""
    quality = model.vis.quality
    quality.shadowsize, quality.offsamples = 0, 0
    quality.numslices, quality.numstacks, quality.numquads = 16, 8, 1


def make_environment(env_id: str) -> gymnasium.Env[Any, Any]:
    """Make a Gymnasium environment, importing the package that registers it where that is one we know.

    Raises:
        ValueError: no such id (with near ones), a package that is not installed, or no usable environment.
    """
    known = find_id(env_id)
    try:
        with _quiet():
            env = gymnasium.make(known, disable_env_checker=True)
    except (ImportError, gymnasium.error.Error) as error:
        raise ValueError(f"Gymnasium cannot make {env_id!r} ({error}). It may need: {EXTRA}") from error
    try:
        with _quiet():
            env.reset(seed=0)  # some make their physics only here
        physics_of(env_id, env)
        _action_bounds(env_id, env.action_space)
    except ValueError:
        env.close()
        raise
    return env


def find_id(env_id: str) -> str:
    """Return `env_id` once it is registered, or `module:id` as it stands.

    Raises:
        ValueError: there is no such id; names near ones, and the package that may be missing.
    """
    if env_id in gymnasium.registry or ":" in env_id:
        return env_id
    package = next(package for start, package in _PACKAGES.items() if env_id.startswith(start))
    missing = ""
    try:
        with _quiet():
            importlib.import_module(package)
    except ImportError as error:
        missing = f" {package} is not installed ({error}); many more come with it: {EXTRA}."
    if env_id in gymnasium.registry:
        return env_id
    near = difflib.get_close_matches(env_id, list(gymnasium.registry), n=4, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"there is no Gymnasium environment {env_id!r}.{hint}{missing}")


def physics_of(env_id: str, env: gymnasium.Env[Any, Any]) -> mujoco.MjData:
    """Return the simulation data of an environment: its `data`, or dm_control's `physics.data`.

    Raises:
        ValueError: it has none.
    """
    inner = env.unwrapped
    data = getattr(inner, "data", None)
    if not isinstance(data, mujoco.MjData):
        physics = getattr(inner, "physics", None)
        data = getattr(getattr(physics, "data", None), "ptr", None)
    if not isinstance(data, mujoco.MjData):
        raise ValueError(
            f"{env_id} has no MuJoCo state: its environment has neither `data` nor `physics.data` of MuJoCo's own "
            "bindings. Only environments on `mujoco` can be branched, restored and judged"
        )
    return data


def _action_bounds(env_id: str, space: spaces.Space[Any]) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{env_id} has actions {space}; a planner here needs a vector of continuous actions (a Box of one "
            "dimension). Discrete actions are not supported"
        )
    if not space.is_bounded("both"):
        raise ValueError(f"{env_id} has unbounded actions ({space}); wrap it so that every action has a low and a high")
    return space.low.astype(np.float64), space.high.astype(np.float64)


class Environment:
    """One Gymnasium id, proven to be restored exactly; makes simulations of it."""

    def __init__(self, env_id: str) -> None:
        """Make the first copy and prove that its states say all.

        Raises:
            ValueError: no such id, or an environment that cannot be used; says why.
        """
        self.id = env_id
        self.first = EnvironmentSimulation(env_id)
        self._middle = np.median(self.first.data.geom_xpos, axis=0)
        self._moving = self._prove_exact()

    @property
    def model(self) -> mujoco.MjModel:
        """The model of the first copy, as its environment made it; do not change it."""
        return self.first.data.model

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras, the environment's own choice first; "default" and "workspace" are free ones."""
        named = self._named_cameras()
        viewer = self._viewer()
        # gymnasium's renderer says what it looks through (-1 is the free camera); dm_control looks through camera 0
        chosen = getattr(viewer, "camera_id", 0 if viewer is None and named else -1)
        first = named[chosen] if chosen >= 0 else FREE_CAMERA
        return tuple(dict.fromkeys([first, FREE_CAMERA, WORKSPACE_CAMERA, *named]))

    def _viewer(self) -> Any:
        return getattr(self.first.env.unwrapped, "mujoco_renderer", None)

    def _named_cameras(self) -> list[str]:
        return [self.model.camera(index).name or f"camera{index}" for index in range(self.model.ncam)]

    def camera(self, name: str, model: mujoco.MjModel) -> mujoco.MjvCamera | int:
        """Return what a renderer looks through, for one of `cameras` and the model of the episode.

        "default" is the free camera as the environment's own renderer sets it; "workspace" looks from there, at what
        moves and from so near that it fills the picture.
        """
        if name not in (FREE_CAMERA, WORKSPACE_CAMERA):
            return self._named_cameras().index(name)
        camera = mujoco.MjvCamera()
        if self._viewer() is None:
            mujoco.mjv_defaultFreeCamera(self.model, camera)
        else:
            camera.lookat[:], camera.distance = self._middle, self.model.stat.extent
            for key, value in (self._viewer().default_cam_config or {}).items():
                if key in ("lookat", "distance", "azimuth", "elevation"):
                    setattr(camera, key, value)
        if name == WORKSPACE_CAMERA:
            low, high = self._moving
            camera.lookat[:] = (low + high) / 2.0
            half_view = np.tan(np.deg2rad(model.vis.global_.fovy) / 2.0)
            camera.distance = max(0.65 * float(np.linalg.norm(high - low)) / half_view, _NEAREST * model.stat.extent)
        for key in ("azimuth", "elevation"):  # a variation turns the free camera by changing these
            turn = getattr(model.vis.global_, key) - getattr(self.model.vis.global_, key)
            setattr(camera, key, getattr(camera, key) + turn)
        return camera

    @property
    def state_size(self) -> int:
        """Return the number of float64 values in a physics state."""
        return len(self.first.state())

    def simulation(self, factors: tuple[str, ...] = ()) -> EnvironmentSimulation:
        """Make another copy, with its model varied where asked."""
        return EnvironmentSimulation(self.id, factors)

    def check_factor(self, name: str) -> None:
        """Raise ValueError where the environment's model cannot be varied by a factor."""
        if FACTORS[name].edit_file:
            possible = ", ".join(name for name, factor in FACTORS.items() if factor.edit)
            raise ValueError(
                f"{self.id} cannot be varied by {name!r}: that changes a model's file, and an environment loads its "
                f"own. What can be varied in one: {possible}"
            )
        Variation(factors=(name,), seed=0).edit(copy.copy(self.model))

    def _prove_exact(self, num_steps: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Step once through and once restored in the middle; both must end in the same bits.

        Returns:
            Corners [3], [3] of the box in which shapes moved.
        """
        simulation, rng = self.first, np.random.default_rng(0)
        simulation.reset(PROBE_SEED)
        actions = rng.uniform(-1.0, 1.0, size=(num_steps, simulation.action_size))
        states, seen = [simulation.state()], [simulation.data.geom_xpos.copy()]
        for action in actions:
            _, warning = simulation.step(action)
            if warning is not None:
                raise_instability(self.id, PROBE_SEED, len(states) - 1, warning)
            states.append(simulation.state())
            seen.append(simulation.data.geom_xpos.copy())
        for seed in (PROBE_SEED + 1, PROBE_SEED + 2):
            simulation.reset(seed)
            seen.append(simulation.data.geom_xpos.copy())
        for start in (0, num_steps // 2):
            simulation.restore(states[start])
            for step in range(start, num_steps):
                simulation.step(actions[step])
                if not np.array_equal(simulation.state(), states[step + 1]):
                    raise ValueError(
                        f"{self.id} cannot be restored exactly: {step + 1 - start} steps after restoring its MuJoCo "
                        "state and its reset's seed it is elsewhere. Its steps depend on something else, such as "
                        "random numbers or a counter, so replaying its actions would judge nothing"
                    )
        places = np.stack(seen)
        moved = np.ptp(places, axis=0).max(axis=-1) > 1e-3
        places = places[:, moved] if moved.any() else places
        return places.min(axis=(0, 1)), places.max(axis=(0, 1))
