# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Read from a MuJoCo environment, by trying it for a moment, what in it is the robot, what an object, what the goal."""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from sim.external import Environment, EnvironmentSimulation

_PROBE_EPISODES, _PROBE_STEPS = 3, 12
_MOVED_M = 1e-3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One coordinate triple of the model: the place of a body or a site."""

    name: str
    is_site: bool
    index: int
    num_axes: int = 3


class Kinematics:
    """Turns joint positions into the places of points; several threads may ask at once."""

    def __init__(self, model: mujoco.MjModel, points: Sequence[Point]) -> None:
        """Keep a copy of the model."""
        self._model = copy.copy(model)
        self._data = mujoco.MjData(self._model)
        self._one_at_a_time = threading.Lock()
        self.points = tuple(points)

    def __call__(self, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
        """Return coordinates [..., Q] in metres, of joint positions [..., nq]; velocities do not matter."""
        flat = positions.reshape(-1, positions.shape[-1])
        places = np.stack([self._places(row) for row in flat])
        return places.reshape(*positions.shape[:-1], -1)

    def _places(self, positions: np.ndarray) -> np.ndarray:
        with self._one_at_a_time:
            self._data.qpos[:] = positions
            mujoco.mj_kinematics(self._model, self._data)
            return np.concatenate([place(self._data, point) for point in self.points])


def place(data: mujoco.MjData, point: Point) -> np.ndarray:
    """Return where a point is, [num_axes] in metres."""
    return (data.site_xpos if point.is_site else data.xpos)[point.index][: point.num_axes]


class Scene:
    """What a short probe of an environment shows: the robot, its hand, the objects, and what the goal is about.

    Attributes:
        ends: Bodies that move and end a chain, the robot's and the objects.
        objects: Those that nothing drives.
        hand: The robot's end that actions move most; None where nothing is driven.
        goal_points: Whose places the environment's `achieved_goal` lists; () where it is no goal environment, or its
            goals are something else.
        goal_body: Where the joint positions of the one free body begin that the goal is about, or None.
        robot_joints: Name, position index, velocity index and unit of every hinge and slide of the robot.
    """

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
