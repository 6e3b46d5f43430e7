# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""Drawer: open or shut a sliding drawer as far as a goal image shows, with the finger of a three-joint arm.

The camera looks down at a slant. The finger hangs from the hand; to open the drawer it must get behind the handle, a
bar on a post, from one of its ends. To shut it, it may push the handle or the front. The drawer slides with dry
friction and stays where it is left. Only its opening counts; the arm's pose does not.
"""

import mujoco
import numpy as np

from sim.experts import constant_policy, noise_policy, segments
from sim.tasks.base import Policy, Quantity, Task, state_from_positions

BASE_M = np.array([-0.15, -0.16])
LINKS_M = np.array([0.16, 0.15, 0.06])
JOINT_RANGE_RAD = np.deg2rad([[-35.0, 120.0], [5.0, 150.0], [-110.0, 110.0]])
MAX_SPEED_RAD_S = 1.5
STEP_RAD = 0.1 * MAX_SPEED_RAD_S
STEP_M = 0.03
MAX_OPENING_M = 0.12
FRONT_Y_M = 0.086
"""Where the drawer's front is when it is shut; the handle's middle is 44 mm before it."""
HANDLE_Y_M = 0.042
HANDLE_HALF_M = (0.045, 0.006)
FINGER_RADIUS_M = 0.009
HOOK_M = np.array([0.026, 0.025])
"""Middle of the gap between handle and front, right of the post, from the handle's middle."""
CORNER_M = np.array([HANDLE_HALF_M[0] + FINGER_RADIUS_M + 0.006, HANDLE_HALF_M[1] + FINGER_RADIUS_M + 0.004])
"""Where the finger goes round the handle's right end, behind it, from its middle."""
FRONT_HALF_M = 0.085
FRONT_CORNER_M = np.array([FRONT_HALF_M + FINGER_RADIUS_M + 0.006, FRONT_Y_M - HANDLE_Y_M - FINGER_RADIUS_M - 0.004])
"""Where the finger goes round the right end of the front, before it, from the handle's middle."""
AHEAD_RAD = np.pi / 2
MIN_GOAL_DISTANCE_M = 0.05


def forward(joints: np.ndarray) -> np.ndarray:
    """Return the places of elbow, wrist and fingertip, [..., 3, 2], in metres, of joint angles [..., 3]."""
    headings = np.cumsum(joints, axis=-1)
    links = LINKS_M[:, None] * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    return BASE_M + np.cumsum(links, axis=-2)


def inverse(tip: np.ndarray, heading: float) -> np.ndarray | None:
    """Return joint angles [3] that bring the tip to `tip` [2] with the hand along `heading` (rad), None if none do."""
    wrist = tip - LINKS_M[2] * np.array([np.cos(heading), np.sin(heading)]) - BASE_M
    cosine = (wrist @ wrist - LINKS_M[0] ** 2 - LINKS_M[1] ** 2) / (2.0 * LINKS_M[0] * LINKS_M[1])
    if abs(cosine) > 1.0:
        return None
    bend = np.arccos(cosine)
    shoulder = np.arctan2(wrist[1], wrist[0]) - np.arctan2(
        LINKS_M[1] * np.sin(bend), LINKS_M[0] + LINKS_M[1] * np.cos(bend)
    )
    joints = np.array([shoulder, bend, heading - shoulder - bend])
    inside = (joints > JOINT_RANGE_RAD[:, 0] + 0.05) & (joints < JOINT_RANGE_RAD[:, 1] - 0.05)
    return joints if inside.all() else None


def quantities_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the opening, tip x, y and elbow x, y, in metres [..., 5]."""
    places = forward(positions[..., 1:4])
    return np.concatenate([positions[..., 0:1], places[..., 2, :], places[..., 0, :]], axis=-1)


def proprioception_of(positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Return the three joints' angles and speeds."""
    return np.concatenate([positions[..., 1:4], velocities[..., 1:4]], axis=-1)


def _is_clear(tip: np.ndarray, opening: float) -> bool:
    """Tell whether a finger at `tip` [2] is before the drawer and the cabinet and off the handle."""
    beside = np.abs(tip[0]) > HANDLE_HALF_M[0] + FINGER_RADIUS_M + 0.004
    before_handle = tip[1] < HANDLE_Y_M - opening - HANDLE_HALF_M[1] - FINGER_RADIUS_M - 0.004
    before_front = tip[1] < FRONT_Y_M - opening - FINGER_RADIUS_M - 0.004
    return bool(before_front and (beside or before_handle))


def _random_pose(opening: float, rng: np.random.Generator) -> np.ndarray:
    """Draw an arm pose whose finger is clear of the drawer."""
    while True:
        joints = inverse(rng.uniform((-0.17, -0.15), (0.17, 0.08)), AHEAD_RAD + rng.normal(scale=0.6))
        if joints is not None and _is_clear(forward(joints)[2], opening):
            return joints


def reset(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Draw an opening and a resting arm pose beside the drawer."""
    opening = rng.uniform(0.0, MAX_OPENING_M)
    return state_from_positions(model, np.array([opening, *_random_pose(opening, rng)]))


def sample_goal(model: mujoco.MjModel, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw an opening at least 5 cm from the start's, with the finger where such a move would have left it."""
    while True:
        opening = rng.uniform(0.0, MAX_OPENING_M)
        change = opening - start[1]
        if abs(change) < MIN_GOAL_DISTANCE_M:
            continue
        at_bar = HANDLE_HALF_M[1] + FINGER_RADIUS_M
        offset = np.array([rng.choice([-1.0, 1.0]) * HOOK_M[0], at_bar])
        if change < 0 and rng.random() < 0.5:
            offset = np.array([rng.uniform(-0.035, 0.035), -at_bar])
        joints = inverse(np.array([0.0, HANDLE_Y_M - opening]) + offset, AHEAD_RAD + rng.normal(scale=0.3))
        if joints is not None:
            return state_from_positions(model, np.array([opening, *joints]))


def way_to_hook(tip: np.ndarray, opening: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of the way into the gap behind the handle, round its nearer end, and the next place on it.

    Args:
        tip: The finger's place [..., 2], in metres.
        opening: The drawer's opening [...], in metres.

    Returns:
        Length [..., 2] and next place [..., 2, 2] of the ways to the gap's left and right half.
    """
    own = _from_handle(tip, opening)
    local, is_past, past = _round_front(own)
    lengths, places = [], []
    for side in (-1.0, 1.0):
        hook = np.array([side, 1.0]) * HOOK_M
        behind, before = np.array([side, 1.0]) * CORNER_M, np.array([side, -1.0]) * CORNER_M
        is_behind = local[..., 1] >= 0.8 * CORNER_M[1]
        is_beside = side * local[..., 0] >= CORNER_M[0] - 0.003
        rest = _length(hook - behind)
        by_corner = _length(local - behind) + rest
        round_end = _length(local - before) + _length(behind - before) + rest
        way = np.where(is_behind, _length(local - hook), np.where(is_beside, by_corner, round_end))
        lengths.append(past + way)
        place = np.where(is_behind[..., None], hook, np.where(is_beside[..., None], behind, before))
        places.append(np.where(is_past[..., None], local, place) + (tip - own))
    return np.stack(lengths, axis=-1), np.stack(places, axis=-2)


def _from_handle(tip: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """Return the tip's place [..., 2] from the handle's middle, in metres."""
    return tip - np.stack([np.zeros_like(opening), HANDLE_Y_M - opening], axis=-1)


def _round_front(local: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where a finger beside the drawer comes round its front, whether it must, and how far that is.

    Args:
        local: Its place [..., 2] from the handle's middle, in metres.

    Returns:
        Place [..., 2], the finger's own where it need not; whether [...]; and length [...] of the way there.
    """
    must = (local[..., 1] > FRONT_Y_M - HANDLE_Y_M - FINGER_RADIUS_M) & (np.abs(local[..., 0]) > FRONT_HALF_M)
    corner = np.stack(
        [np.copysign(FRONT_CORNER_M[0], local[..., 0]), np.full_like(local[..., 1], FRONT_CORNER_M[1])], -1
    )
    place = np.where(must[..., None], corner, local)
    return place, must, _length(local - place)


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(vectors).sum(axis=-1))


def approach_cost(quantities: np.ndarray, goal_quantities: np.ndarray) -> np.ndarray:
    """Return 0.3 times the finger's way to where it can move the drawer as needed, [...], in metres.

    To open, that is behind the handle; to shut, before it as well.
    """
    opening, tip = quantities[..., 0], quantities[..., 1:3]
    way = way_to_hook(tip, opening)[0].min(axis=-1)
    local, _, past = _round_front(_from_handle(tip, opening))
    aside = np.maximum(np.abs(local[..., 0]) - HANDLE_HALF_M[0], 0.0)
    before = past + np.hypot(aside, local[..., 1] + HANDLE_HALF_M[1] + FINGER_RADIUS_M)
    way = np.where(goal_quantities[..., 0] < opening, np.minimum(way, before), way)
    return 0.3 * np.maximum(way - 0.012, 0.0)


def _joint_action(joints: np.ndarray, step: np.ndarray, heading: float) -> np.ndarray:
    """Return the action that moves the fingertip by `step` [2] (m) in a control step, the hand nearer to `heading`."""
    places = forward(joints)
    origins = np.concatenate([BASE_M[None], places[:2]])
    lever = places[2] - origins
    jacobian = np.concatenate([np.stack([-lever[:, 1], lever[:, 0]]), 0.05 * np.ones((1, 3))])
    turned = (joints.sum() - heading + np.pi) % (2.0 * np.pi) - np.pi
    wanted = np.array([*step, -0.05 * np.clip(turned, -0.2, 0.2)])
    turn = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-5 * np.eye(3), wanted)
    return turn / max(STEP_RAD, float(np.abs(turn).max()))


def slide_to(target: float, heading: float = AHEAD_RAD) -> Policy:
    """Return a policy that hooks the handle and slides the drawer to `target`.

    Args:
        target: Opening, in metres.
        heading: Where the hand should point, in rad.
    """

    def policy(state: np.ndarray) -> np.ndarray:
        opening, joints = state[1], state[2:5]
        tip, missing = forward(joints)[2], target - opening
        lengths, places = way_to_hook(tip, np.asarray(opening))
        near = int(np.argmin(lengths))
        if abs(missing) < 0.003:
            return np.zeros(3)
        from_handle = tip[1] - (HANDLE_Y_M - opening)
        if 0.0 < from_handle < HANDLE_Y_M and abs(tip[0]) < HANDLE_HALF_M[0]:
            at_bar, at_front = HANDLE_HALF_M[1] + FINGER_RADIUS_M, FRONT_Y_M - HANDLE_Y_M - FINGER_RADIUS_M
            slack = from_handle - (at_bar if missing > 0 else at_front)
            sideways = np.sign(tip[0]) * HOOK_M[0] - tip[0]
            return _joint_action(
                joints, np.array([0.3 * sideways, np.clip(-missing - slack, -STEP_M, STEP_M)]), heading
            )
        step = places[near] - tip
        return _joint_action(joints, step * min(1.0, STEP_M / max(float(np.linalg.norm(step)), 1e-6)), heading)

    return policy


def move_to(tip: np.ndarray, heading: float = AHEAD_RAD) -> Policy:
    """Return a policy that moves the fingertip to `tip` [2] (m), the hand along `heading` (rad), into what is there."""

    def policy(state: np.ndarray) -> np.ndarray:
        step = tip - forward(state[2:5])[2]
        return _joint_action(state[2:5], step * min(1.0, STEP_M / max(float(np.linalg.norm(step)), 1e-6)), heading)

    return policy


def play_policy(rng: np.random.Generator) -> Policy:
    """Mix sliding to random openings, moves to random places, noise and rest; the drawer moves in 45% of steps.

    The hand points anywhere, since a planner bends it as it likes: of a model that had seen hands straight ahead, the
    reading of the fingertip was off by 4 cm on the frames in which plans stood still.
    """

    def slide_somewhere() -> Policy:
        target, speed = rng.uniform(0.0, MAX_OPENING_M), rng.uniform(0.6, 1.0)
        heading = AHEAD_RAD + rng.normal(scale=0.4)

        def policy(state: np.ndarray) -> np.ndarray:
            nonlocal target
            if abs(target - state[1]) < 0.008:
                target = rng.uniform(0.0, MAX_OPENING_M)
            return slide_to(target, heading)(state) * speed

        return policy

    def move_somewhere() -> Policy:
        return move_to(rng.uniform((-0.15, -0.13), (0.15, 0.09)), AHEAD_RAD + rng.uniform(-2.0, 2.0))

    choices = [
        (0.58, slide_somewhere),
        (0.24, move_somewhere),
        (0.15, lambda: noise_policy(3, rng)),
        (0.03, lambda: constant_policy(np.zeros(3))),
    ]
    return segments(choices, rng, lengths=(8, 24))


def expert(goal: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that slides the drawer to the goal state's opening."""
    policy = slide_to(float(goal[1]))
    return lambda state: policy(state).astype(np.float32)


DRAWER = Task(
    name="drawer",
    xml="drawer.xml",
    action_names=("shoulder_velocity", "elbow_velocity", "wrist_velocity"),
    action_scale=(MAX_SPEED_RAD_S, MAX_SPEED_RAD_S, MAX_SPEED_RAD_S),
    substeps=10,
    episode_steps=40,
    quantities=tuple(Quantity(name=name, unit="m") for name in ("opening", "tip_x", "tip_y", "elbow_x", "elbow_y")),
    quantities_of=quantities_of,
    proprioception=(
        *(Quantity(name=f"{joint}_angle", unit="rad") for joint in ("shoulder", "elbow", "wrist")),
        *(Quantity(name=f"{joint}_velocity", unit="rad/s") for joint in ("shoulder", "elbow", "wrist")),
    ),
    proprioception_of=proprioception_of,
    proprioception_limits=(2.0 * np.pi, 2.0 * np.pi, 2.0 * np.pi, 50.0, 50.0, 50.0),
    goal_indices=(0,),
    tolerance_m=0.012,
    cameras=("top", "front"),
    reset=reset,
    sample_goal=sample_goal,
    play_policy=play_policy,
    expert=expert,
    contact_sensor="finger_drawer",
    approach_cost=approach_cost,
)
