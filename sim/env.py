# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""The tasks as Gymnasium environments with a goal image, exact saving and restoring, and errors for bad physics."""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from sim.physics import raise_instability
from sim.render import AnyRenderer
from sim.tasks import get_task, task_names


class MujocoTaskEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One task; actions are in [-1, 1]^A.

    Observations are {"pixels", "proprioception", "goal"}, the goal a picture; or, with observation="state",
    {"quantities", "proprioception", "goal"} in physical units, the goal as quantities, and nothing is rendered.

    `info` holds `success` (bool), `cost_m` (float, metres) and `quantities` (float64 [Q], `task.quantity_names`). The
    reward is minus the cost. Success counts at the end: an episode is truncated after `task.episode_steps`, and
    terminated only where another's environment ends it (`sim.external`), never in a task of ours.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own form)

    def __init__(
        self,
        task: str,
        *,
        observation: Literal["pixels", "state"] = "pixels",
        image_size: int = 64,
        camera: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Create the environment; its OpenGL context is made with the first picture.

        Raises:
            ValueError: unknown task, observation, camera, render mode, or an image size below 1; the message lists what
                is valid.
        """
        self.task = get_task(task)
        self.camera = camera or self.task.cameras[0]
        if self.camera not in self.task.cameras:
            raise ValueError(
                f"task {task!r} has no camera {camera!r}; valid cameras are {', '.join(self.task.cameras)}"
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}; valid are None, {self.metadata['render_modes']}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if observation not in ("pixels", "state"):
            raise ValueError(f"unknown observation {observation!r}; valid are 'pixels' and 'state'")
        self.metadata = {**self.metadata, "render_fps": self.task.fps}
        self.render_mode = render_mode
        self.image_size = image_size
        self._simulation = self.task.simulation()
        self._renderer: AnyRenderer | None = None
        self._goal_state = self._simulation.state()
        self._goal = np.zeros(0)
        self._steps = 0
        self._seed: int | None = None
        self._seen = "pixels" if observation == "pixels" else "quantities"
        pixels = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        quantities = spaces.Box(-np.inf, np.inf, (len(self.task.quantities),), np.float64)
        seen = pixels if observation == "pixels" else quantities
        limits = np.asarray(self.task.proprioception_limits, dtype=np.float32)
        felt = spaces.Box(-limits, limits, dtype=np.float32)
        self.observation_space: spaces.Space = spaces.Dict({self._seen: seen, "proprioception": felt, "goal": seen})
        self.action_space = spaces.Box(-1.0, 1.0, (self.task.action_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of the start and the goal, and of the episodes that follow.
            options: `start` and `goal`, physics states to use instead of drawn ones (see `sim.manifest`).

        Raises:
            ValueError: an unknown option, or a state of another task.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"start", "goal"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; valid are 'start' and 'goal' (physics states)")
        self._seed = seed if seed is not None else self._seed
        model = self.task.model
        drawn = self.task.reset(model, self.np_random)
        start = options.get("start", drawn)
        goal = options["goal"] if "goal" in options else self.task.sample_goal(model, start, self.np_random)
        self._simulation.restore(goal)
        self._goal_state = self._simulation.state()
        self._goal = self._see()
        self._simulation.restore(start)
        self._steps = 0
        return self._observe(), self._describe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Hold `action` [A] for one control step; values beyond [-1, 1] are clipped.

        Raises:
            ValueError: the action has the wrong shape or is not finite.
            InstabilityError: MuJoCo warned that the simulation diverges; names task, seed and step.
        """
        action = np.asarray(action)
        if action.shape != (self.task.action_size,) or not np.isfinite(action).all():
            raise ValueError(
                f"an action of task {self.task.name!r} is {self.task.action_size} finite numbers "
                f"({', '.join(self.task.action_names)}), got {action.tolist()}"
            )
        _, warning = self._simulation.step(action)
        if warning is not None:
            raise_instability(self.task.name, self._seed, self._steps, warning)
        self._steps += 1
        info = self._describe()
        truncated = self._steps >= self.task.episode_steps
        return self._observe(), -info["cost_m"], self._simulation.ended, truncated, info

    def physics_state(self) -> np.ndarray:
        """Return the full physics state, float64 [nstate]; it alone decides what follows."""
        return self._simulation.state()

    def goal_state(self) -> np.ndarray:
        """Return the physics state whose picture is the goal image."""
        return self._goal_state.copy()

    def restore(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Put a saved physics state back, bit for bit, and return its observation; the step count is kept.

        Raises:
            ValueError: the state is of another task.
        """
        self._simulation.restore(state)
        return self._observe()

    def render(self) -> np.ndarray | None:
        """Return the present picture, uint8 [image_size, image_size, 3], or None without a render mode."""
        return self._get_renderer().render(self._simulation.data) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _get_renderer(self) -> AnyRenderer:
        if self._renderer is None:
            self._renderer = self.task.renderer(self.image_size, self.image_size, self.camera)
        return self._renderer

    def _see(self) -> np.ndarray:
        """Return the present picture, or the quantities where observations hold those."""
        if self._seen == "quantities":
            return self.task.state_quantities(self.physics_state())
        return self._get_renderer().render(self._simulation.data)

    def _observe(self) -> dict[str, np.ndarray]:
        felt = self.task.state_proprioception(self.physics_state()).astype(np.float32)
        return {self._seen: self._see(), "proprioception": felt, "goal": self._goal.copy()}

    def _describe(self) -> dict[str, Any]:
        quantities = self.task.state_quantities(self.physics_state())
        cost = float(self.task.cost(quantities, self.task.state_quantities(self._goal_state)))
        return {"success": cost <= self.task.tolerance_m, "cost_m": cost, "quantities": quantities}


def environment_id(task: str) -> str:
    """Return the Gymnasium id of a task, such as embodied_wm/Reach-v0."""
    return f"embodied_wm/{get_task(task).name.title().replace('_', '')}-v0"


def register_environments() -> None:
    """Register every task with Gymnasium, once."""
    for name in task_names():
        if environment_id(name) not in gymnasium.registry:
            gymnasium.register(id=environment_id(name), entry_point="sim.env:MujocoTaskEnv", kwargs={"task": name})
