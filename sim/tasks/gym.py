# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Any Gymnasium MuJoCo environment as a task, by its id and nothing else.

What a task needs to be judged is read from the environment's own model and reset:

- Quantities are positions (m): what a goal environment's `achieved_goal` measures, where it is the place of a site or a
  body (else it is left out), then the last bodies of every chain that move.
- Proprioception is the angles and speeds of the robot's joints; the robot is whatever actuators or mocap bodies drive,
  everything else that moves is an object.
- Actions are the environment's own, scaled to [-1, 1] between their bounds; they need not be MuJoCo controls.
- A goal is a state. A goal environment's desired goal becomes one by placing the object that the goal is about, or by
  driving the robot there; elsewhere the goal is a state that the environment's own dynamics reach.
- The cost is the distance of those positions from the goal's; the tolerance is the environment's `distance_threshold`.

The environment's reward is no part of the cost, which must be a function of state; it is recorded (`sim.reward`).
"""

import functools
from collections.abc import Callable

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.external import Environment, EnvironmentSimulation
from sim.scene import Kinematics, Scene
from sim.shooting import seek
from sim.tasks.base import Policy, Quantity, Task

TOLERANCE_M = 0.05
"""Where the environment names none."""
MAX_EPISODE_STEPS = 100
_AXES = ("x", "y", "z")


@functools.cache
def environment_task(env_id: str) -> Task:
    """Return the task of a Gymnasium MuJoCo environment.

    Raises:
        ValueError: no such id, or an environment that cannot be used; says why.
    """
    environment = Environment(env_id)
    scene = Scene(environment)
    simulation, model = environment.first, environment.model
    about = {(point.is_site, point.index) for point in scene.goal_points}
    points = scene.goal_points + tuple(point for point in scene.ends if (point.is_site, point.index) not in about)
    kinematics = Kinematics(model, points)
    coordinates = [(f"{point.name}_{axis}") for point in points for axis in _AXES[: point.num_axes]]
    num_goal = sum(point.num_axes for point in scene.goal_points) or len(coordinates)
    starts = np.cumsum([0, *(point.num_axes for point in points)])
    place_of = {point.name: int(start) for point, start in zip(points, starts, strict=False)}
    objects = {point.name: (place_of[point.name], place_of[point.name] + 1) for point in scene.objects}
    whole = {point.name: place_of[point.name] for point in points if point.num_axes == 3}
    hand = whole.get(scene.hand.name) if scene.hand else None
    targets = [whole[point.name] for point in scene.objects if point.name in whole]
    joints = scene.robot_joints
    goals = _Goals(simulation, scene, kinematics, num_goal)
    return Task(
        name=env_id,
        action_names=_action_names(model, simulation.action_size),
        action_scale=tuple((simulation.high - simulation.low) / 2.0),
        substeps=round(simulation.dt_s / model.opt.timestep),
        episode_steps=_episode_steps(simulation),
        quantities=tuple(Quantity(name=name, unit="m") for name in coordinates),
        quantities_of=kinematics,
        proprioception=tuple(
            Quantity(name=f"{name}{end}", unit=unit + per)
            for end, per in (("", ""), ("_velocity", "/s"))
            for name, _, _, unit in joints
        ),
        proprioception_of=_joint_values(joints),
        proprioception_limits=(np.inf,) * (2 * len(joints)),
        goal_indices=tuple(range(num_goal)),
        tolerance_m=float(getattr(simulation.env.unwrapped, "distance_threshold", TOLERANCE_M)),
        cameras=environment.cameras,
        reset=goals.reset,
        sample_goal=goals.sample,
        play_policy=_play(environment, kinematics, hand, targets),
        expert=_expert(environment, kinematics, num_goal, hand, targets),
        objects=objects,
        approach_cost=_approach(hand, targets) if scene.goal_body is not None else None,
        environment=environment,
    )


def _joint_values(joints: list[tuple[str, int, int, str]]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    positions_at, velocities_at = [joint[1] for joint in joints], [joint[2] for joint in joints]

    def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        return np.concatenate([positions[..., positions_at], velocities[..., velocities_at]], axis=-1)

    return proprioception_of


def _action_names(model: mujoco.MjModel, size: int) -> tuple[str, ...]:
    names = [model.actuator(index).name for index in range(model.nu)] if model.nu == size else []
    names = [name.replace(":", "_").replace("/", "_") for name in names]
    return tuple(names) if all(names) and len(set(names)) == size else tuple(f"action_{i}" for i in range(size))


def _episode_steps(simulation: EnvironmentSimulation) -> int:
    spec = simulation.env.spec
    named = spec.max_episode_steps if spec is not None else None
    return min(named or MAX_EPISODE_STEPS, MAX_EPISODE_STEPS)


class _Goals:
    """Draws starts by the environment's own reset, and goal states."""

    def __init__(self, simulation: EnvironmentSimulation, scene: Scene, kinematics: Kinematics, num_goal: int) -> None:
        self.simulation, self.scene, self.kinematics, self.num_goal = simulation, scene, kinematics, num_goal

    def reset(self, model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
        """Draw a start state by the environment's own reset."""
        self.simulation.reset(int(rng.integers(2**31)))
        return self.simulation.state()

    def sample(self, model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a goal state of the episode that `start` belongs to."""
        if self.scene.goal_points:
            observation = self.simulation.reset(int(start[-1]))
            desired = np.ravel(observation["desired_goal"]).astype(np.float64)
            body = self.scene.goal_body
            goal = self._driven(start, desired) if body is None else self._with_object_at(start, desired, body)
            if goal is not None:
                return goal
        return self._played(start, rng)

    def _with_object_at(self, start: np.ndarray, desired: np.ndarray, body: int) -> np.ndarray:
        """Put the free body whose joint positions begin at `body` where the goal wants it, everything at rest."""
        model, goal = self.simulation.data.model, start.copy()
        first = 1 + body
        point = self.scene.goal_points[0]
        now = self.kinematics(start[None, 1 : 1 + model.nq], np.empty(0))[0, : point.num_axes]
        goal[first : first + point.num_axes] += desired - now
        goal[1 + model.nq : 1 + model.nq + model.nv] = 0.0
        self.simulation.restore(goal)
        return self.simulation.state()

    def _driven(self, start: np.ndarray, desired: np.ndarray) -> np.ndarray | None:
        """Drive the robot to the desired goal by how it answers to each action at the start; None where it misses."""
        size, moved = self.simulation.action_size, []
        for action in np.vstack([np.zeros(size), np.eye(size)]):
            self.simulation.restore(start)
            self.simulation.step(action)
            moved.append(self._achieved())
        answer = np.linalg.pinv(np.stack([after - moved[0] for after in moved[1:]], axis=1), rcond=0.05)
        self.simulation.restore(start)
        for _ in range(30):
            missing = desired - self._achieved()
            if np.linalg.norm(missing) < 0.2 * TOLERANCE_M:
                return self.simulation.state()
            _, warning = self.simulation.step(np.clip(answer @ missing, -1.0, 1.0))
            if warning is not None:
                return None
        return None

    def _achieved(self) -> np.ndarray:
        return self.kinematics(self.simulation.data.qpos[None], np.empty(0))[0, : self.num_goal]

    def _played(self, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Play from the start for a while, and take where that leads, before the environment ends the episode."""
        policy = noise_policy(self.simulation.action_size, rng)
        self.simulation.restore(start)
        reached = start
        for _ in range(int(rng.integers(15, 31))):
            _, warning = self.simulation.step(policy(reached))
            if warning is not None or self.simulation.ended:
                break
            reached = self.simulation.state()
        return reached


def _distance(quantities: np.ndarray, one: int, other: int) -> np.ndarray:
    gap = quantities[..., one : one + 3] - quantities[..., other : other + 3]
    return np.sqrt(np.square(gap).sum(axis=-1))


def _approach(hand: int | None, targets: list[int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    if hand is None or not targets:
        return None

    def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
        return 0.3 * np.maximum(_distance(quantities, hand, targets[0]) - 0.05, 0.0)

    return approach_cost


def _play(
    environment: Environment, kinematics: Kinematics, hand: int | None, targets: list[int]
) -> Callable[[np.random.Generator], Policy]:
    """Mix noise, steady actions and, where there are objects, runs of the hand at one of them."""
    size = environment.first.action_size

    def poke(rng: np.random.Generator) -> Policy:
        target = targets[int(rng.integers(len(targets)))]

        def cost(quantities: np.ndarray) -> np.ndarray:
            moved = np.linalg.norm(quantities[..., target : target + 3] - quantities[:1, target : target + 3], axis=-1)
            return _distance(quantities, hand or 0, target) - 5.0 * moved

        return seek(environment.first, kinematics, cost, rng)

    def play_policy(rng: np.random.Generator) -> Policy:
        choices = [
            (0.45, lambda: noise_policy(size, rng)),
            (0.15, lambda: constant_policy(rng.uniform(-1.0, 1.0, size=size))),
        ]
        if hand is not None and targets:
            choices.append((0.40, lambda: poke(rng)))
        return segments(choices, rng, lengths=(5, 15))

    return play_policy


def _expert(
    environment: Environment, kinematics: Kinematics, num_goal: int, hand: int | None, targets: list[int]
) -> Callable[[np.ndarray, np.random.Generator], Policy]:
    """Search by shooting for actions that lead to the goal; it promises nothing where a task needs more."""
    approach = _approach(hand, targets)

    def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
        wanted = kinematics(goal[None, 1 : 1 + environment.model.nq], np.empty(0))[0]

        def cost(quantities: np.ndarray) -> np.ndarray:
            missing = np.linalg.norm(quantities[..., :num_goal] - wanted[:num_goal], axis=-1)
            return missing if approach is None else missing + approach(quantities, wanted)

        return seek(environment.first, kinematics, cost, rng, num_candidates=24)

    return expert
