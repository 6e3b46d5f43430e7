# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""What the visual factors of variation change in a model; see `sim.variation` for their ranges.

None of them touches physics: geoms that are added neither collide nor weigh anything.
"""

import colorsys
from typing import TYPE_CHECKING

import mujoco
import numpy as np

if TYPE_CHECKING:
    from sim.variation import Draw

_PLAIN = np.array([0.5, 0.5, 0.5, 1.0])
"""Colour of a geom that leaves it to its material."""
_SHAPES = (mujoco.mjtGeom.mjGEOM_ELLIPSOID, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER)
_THICKNESS = 0.003
"""Half the height of a distractor, in shares of its distance from the camera."""


def change_color(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Change the colour of every geom and every material, each by itself."""
    plain = (model.geom_matid >= 0) & np.isclose(model.geom_rgba, _PLAIN).all(axis=1)
    number = model.ngeom + model.nmat
    changes = np.stack([draw("hue", number), draw("saturation", number), draw("brightness", number)], axis=1)
    for index in np.flatnonzero(~plain):
        model.geom_rgba[index, :3] = _turned(model.geom_rgba[index, :3], *changes[index])
    for index in range(model.nmat):
        model.mat_rgba[index, :3] = _turned(model.mat_rgba[index, :3], *changes[model.ngeom + index])
    return model.ngeom > 0


def _turned(rgb: np.ndarray, hue: float, saturation: float, brightness: float) -> np.ndarray:
    old = colorsys.rgb_to_hsv(*(float(value) for value in rgb))
    new = ((old[0] + hue) % 1.0, min(old[1] * saturation, 1.0), min(old[2] * brightness, 1.0))
    return np.array(colorsys.hsv_to_rgb(*new))


def change_light(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Change brightness and tint of the headlight and of all lights, and where the lights shine."""
    color = float(draw("brightness")) * draw("tint", 3)
    headlight = model.vis.headlight
    headlight.ambient[:] = headlight.ambient * color
    headlight.diffuse[:] = headlight.diffuse * color
    model.light_ambient[:] *= color
    model.light_diffuse[:] *= color
    degrees = draw("direction", model.nlight, 3)
    for direction, angles in zip(model.light_dir, degrees, strict=True):
        direction[:] = _rotated(direction, np.deg2rad(angles))
    return True


def change_camera(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Shift and turn every camera a little, the free one too."""
    number = model.ncam + 1
    shift, turn, zoom = draw("shift", number, 3), draw("turn", number, 3), draw("zoom", number, scale=True)
    for index in range(model.ncam):
        model.cam_pos[index] += shift[index] * model.stat.extent
        rotation, turned = np.empty(4), np.empty(4)
        angles = np.deg2rad(turn[index])
        mujoco.mju_euler2Quat(rotation, angles, "xyz")
        mujoco.mju_mulQuat(turned, model.cam_quat[index], rotation)
        model.cam_quat[index] = turned
        model.cam_fovy[index] *= zoom[index]
    free = model.vis.global_
    free.azimuth += float(turn[-1, 0])
    free.elevation += float(turn[-1, 1])
    free.fovy *= float(zoom[-1])
    return True


def _rotated(vector: np.ndarray, angles_rad: np.ndarray) -> np.ndarray:
    rotation, result = np.empty(4), np.empty(3)
    mujoco.mju_euler2Quat(rotation, angles_rad, "xyz")
    mujoco.mju_rotVecQuat(result, np.asarray(vector, dtype=np.float64), rotation)
    return result


def add_texture(spec: mujoco.MjSpec, draw: "Draw") -> bool:
    """Put a texture on every geom of the world that has no material yet."""
    geoms = [geom for geom in spec.worldbody.geoms if not geom.material]
    contrast, repeats, graded = (draw(name, len(geoms)) for name in ("contrast", "repeats", "graded"))
    for index, geom in enumerate(geoms):
        name, color = f"varied{index}", np.asarray(geom.rgba[:3], dtype=np.float64)
        is_graded = graded[index] > 0.5
        spec.add_texture(
            name=name,
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT if is_graded else mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
            rgb1=color * (1.0 - contrast[index]),
            rgb2=np.minimum(color * (1.0 + contrast[index]), 1.0),
            width=64,
            height=64,
        )
        material = spec.add_material(name=name, texrepeat=[repeats[index] / (4.0 if is_graded else 1.0)] * 2)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        geom.material = name
        geom.rgba = _PLAIN
    return len(geoms) > 0


def add_distractors(spec: mujoco.MjSpec, draw: "Draw") -> bool:
    """Put flat shapes on what does not move, near the border of what the first camera sees; they hide nothing."""
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    added = 0
    for _ in range(int(draw("number"))):
        for _ in range(50):
            found = _place_in_view(model, data, draw)
            if found is not None:
                break
        else:
            continue
        place, distance = found
        size, thickness = float(draw("size")) * distance, _THICKNESS * distance
        shape = _SHAPES[int(draw.rng.integers(len(_SHAPES)))]
        is_round = shape == mujoco.mjtGeom.mjGEOM_CYLINDER
        spec.worldbody.add_geom(
            name=f"distractor{added}",
            type=shape,
            size=[size, thickness, 0.0] if is_round else [size, 0.6 * size, thickness],
            pos=place + np.array([0.0, 0.0, thickness]),
            euler=[0.0, 0.0, float(draw.rng.uniform(0.0, 360.0))],
            rgba=[*colorsys.hsv_to_rgb(float(draw.rng.uniform()), 0.75, 0.85), 1.0],
            contype=0,
            conaffinity=0,
        )
        added += 1
    draw.values = {"number": added}
    return added > 0


def _place_in_view(model: mujoco.MjModel, data: mujoco.MjData, draw: "Draw") -> tuple[np.ndarray, float] | None:
    """Return where a ray through the picture's border meets something static, and how far from the camera."""
    if model.ncam == 0:
        return None
    place = draw.rng.uniform(-1.0, 1.0, size=2) * draw.ranges["place"][1]
    if np.abs(place).max() < draw.ranges["place"][0]:
        return None
    slope = np.tan(np.deg2rad(model.cam_fovy[0]) / 2.0)
    rotation, position = data.cam_xmat[0].reshape(3, 3), data.cam_xpos[0]
    direction = rotation @ np.array([place[0] * slope, place[1] * slope, -1.0])
    geom = np.full(1, -1, dtype=np.int32)
    along = mujoco.mj_ray(model, data, position, direction, None, 1, -1, geom)
    if along < 0 or model.body_weldid[model.geom_bodyid[geom[0]]] != 0:
        return None
    return position + along * direction, along * float(np.linalg.norm(direction))
