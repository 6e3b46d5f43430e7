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

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.external import Environment, EnvironmentSimulation
from sim.shooting import seek
from sim.tasks.base import Policy, Quantity, Task

TOLERANCE_M = 0.05
"""Where the environment names none."""
MAX_EPISODE_STEPS = 100
_PROBE_EPISODES, _PROBE_STEPS = 3, 12
_MOVED_M = 1e-3
_AXES = ("x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One coordinate triple of the model: the place of a body or a site."""

    name: str
    is_site: bool
    index: int
    num_axes: int = 3


class Kinematics:
    """Turns joint positions into the places of points."""

    def __init__(self, model: mujoco.MjModel, points: Sequence[Point]) -> None:
        """Keep a copy of the model."""
        self._model = copy.copy(model)
        self._data = mujoco.MjData(self._model)
        self.points = tuple(points)

    def __call__(self, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Return coordinates [..., Q] in metres, of joint positions [..., nq]; velocities do not matter."""
        flat = positions.reshape(-1, positions.shape[-1])
        places = np.stack([self._places(row) for row in flat])
        return places.reshape(*positions.shape[:-1], -1)

    def _places(self, positions: np.ndarray) -> np.ndarray:
        self._data.qpos[:] = positions
        mujoco.mj_kinematics(self._model, self._data)
        return np.concatenate([place(self._data, point) for point in self.points])


def place(data: mujoco.MjData, point: Point) -> np.ndarray:
    """Return where a point is, [num_axes] in metres."""
    return (data.site_xpos if point.is_site else data.xpos)[point.index][: point.num_axes]


@functools.cache
def environment_task(env_id: str) -> Task:
    """Return the task of a Gymnasium MuJoCo environment.

    Raises:
        ValueError: no such id, or an environment that cannot be used; says why.
    """
    environment = Environment(env_id)
    scene = _Scene(environment)
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


class _Scene:
    """What a short probe of an environment shows: the robot, its hand, the objects, and what the goal is about."""

    def __init__(self, environment: Environment) -> None:
        simulation, model = environment.first, environment.model
        trees = _driven_trees(model)
        seen, observations = _probe(simulation)
        bodies = [point for point in _ends(model) if np.ptp(seen[:, point.index], axis=0).max() > _MOVED_M]
        if not bodies:
            raise ValueError(f"nothing moves in {environment.id}: there is nothing to imagine")
        self.ends = tuple(bodies)
        self.objects = tuple(point for point in bodies if model.body_treeid[point.index] not in trees)
        robot = [point for point in bodies if point not in self.objects]
        moved = {point: float(np.abs(np.diff(seen[:, point.index], axis=0)).max()) for point in robot}
        self.hand = max(robot, key=lambda point: moved[point]) if robot else None
        self.goal_points = _matching_points(simulation, observations)
        self.goal_body = _free_body_at(model, self.goal_points)
        self.robot_joints = _joints(model, trees)


def _probe(simulation: EnvironmentSimulation) -> tuple[np.ndarray, list[Any]]:
    """Play a few random steps of a few episodes; returns places of bodies [N, nbody, 3], and what resets returned."""
    rng = np.random.default_rng(1)
    seen, observations = [], []
    for seed in range(_PROBE_EPISODES):
        observations.append(simulation.reset(seed))
        seen.append(simulation.data.xpos.copy())
        for _ in range(_PROBE_STEPS):
            if simulation.step(rng.uniform(-1.0, 1.0, simulation.action_size))[1] is not None:
                break
            seen.append(simulation.data.xpos.copy())
    return np.stack(seen), observations


def _driven_trees(model: mujoco.MjModel) -> set[int]:
    """Return the kinematic trees that actuators or mocap bodies drive; all of them where none are."""
    bodies: list[int] = []
    for kind, target in zip(model.actuator_trntype, model.actuator_trnid[:, 0], strict=True):
        if kind in (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT):
            bodies.append(int(model.jnt_bodyid[target]))
        elif kind == mujoco.mjtTrn.mjTRN_SITE:
            bodies.append(int(model.site_bodyid[target]))
        elif kind == mujoco.mjtTrn.mjTRN_TENDON:
            first = model.tendon_adr[target]
            bodies += [
                int(model.jnt_bodyid[model.wrap_objid[wrap]])
                for wrap in range(first, first + model.tendon_num[target])
                if model.wrap_type[wrap] == mujoco.mjtWrap.mjWRAP_JOINT
            ]
    for kind, pair in zip(model.eq_type, zip(model.eq_obj1id, model.eq_obj2id, strict=True), strict=True):
        if kind == mujoco.mjtEq.mjEQ_WELD and any(model.body_mocapid[body] >= 0 for body in pair):
            bodies += [int(body) for body in pair]
    trees = {int(model.body_treeid[body]) for body in bodies} - {-1}
    return trees or set(range(model.ntree))


def _ends(model: mujoco.MjModel) -> list[Point]:
    """Return the last body of every chain, and every free body."""
    parents = set(model.body_parentid[1:])
    free = {int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE}
    drawn = model.body_geomnum > 0  # what has no shape marks a place, such as a camera's
    ends = [body for body in range(1, model.nbody) if drawn[body] and (body not in parents or body in free)]
    return [_point(model, body, is_site=False) for body in ends if model.body_treeid[body] >= 0]


def _point(model: mujoco.MjModel, index: int, *, is_site: bool, num_axes: int = 3) -> Point:
    found = (model.site(index) if is_site else model.body(index)).name
    name = (found or f"{'site' if is_site else 'body'}{index}").replace(":", "_").replace("/", "_")
    if found and is_site and any(model.body(body).name == found for body in range(model.nbody)):
        name += "_site"
    return Point(name=name, is_site=is_site, index=index, num_axes=num_axes)


def _matching_points(simulation: EnvironmentSimulation, observations: list[Any]) -> tuple[Point, ...]:
    """Return the bodies or sites whose places `achieved_goal` lists, three or two coordinates each; () where none."""
    if not all(isinstance(seen, dict) and {"achieved_goal", "desired_goal"} <= set(seen) for seen in observations):
        return ()
    model = simulation.data.model
    achieved = np.stack([np.ravel(seen["achieved_goal"]) for seen in observations])
    bodies, sites = [], []
    for seed in range(len(observations)):
        simulation.reset(seed)
        bodies.append(simulation.data.xpos.copy())
        sites.append(simulation.data.site_xpos.copy())
    num_axes = 3 if achieved.shape[1] % 3 == 0 else 2
    points: list[Point] = []
    for start in range(0, achieved.shape[1], num_axes):
        wanted = achieved[:, None, start : start + num_axes]
        for is_site, places in ((False, np.stack(bodies)), (True, np.stack(sites))):
            same = np.flatnonzero(np.abs(places[..., :num_axes] - wanted).max(axis=(0, 2)) < 1e-5)
            if len(same):
                points.append(_point(model, int(same[-1]), is_site=is_site, num_axes=num_axes))
                break
        else:
            return ()
    return tuple(points)


def _free_body_at(model: mujoco.MjModel, points: Sequence[Point]) -> int | None:
    """Return where the joint positions of the free body begin that the one goal point is on; None for others."""
    if len(points) != 1:
        return None
    body = int(model.site_bodyid[points[0].index]) if points[0].is_site else points[0].index
    joint = int(model.body_jntadr[body])
    if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE:
        return None
    return int(model.jnt_qposadr[joint])


def _joints(model: mujoco.MjModel, trees: set[int]) -> list[tuple[str, int, int, str]]:
    """Return name, position index, velocity index and unit of every hinge and slide of the robot."""
    found = []
    for joint in range(model.njnt):
        kind = model.jnt_type[joint]
        if kind not in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE):
            continue
        if int(model.body_treeid[model.jnt_bodyid[joint]]) in trees:
            name = (model.joint(joint).name or f"joint{joint}").replace(":", "_").replace("/", "_")
            unit = "rad" if kind == mujoco.mjtJoint.mjJNT_HINGE else "m"
            found.append((name, int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint]), unit))
    return found


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

    def __init__(self, simulation: EnvironmentSimulation, scene: _Scene, kinematics: Kinematics, num_goal: int) -> None:
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
        """Play from the start for a while, and take where that leads."""
        policy = noise_policy(self.simulation.action_size, rng)
        self.simulation.restore(start)
        reached = start
        for _ in range(int(rng.integers(15, 31))):
            _, warning = self.simulation.step(policy(reached))
            if warning is not None:
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
