# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""What the physical factors of variation change in a model; see `sim.variation` for their ranges."""

from typing import TYPE_CHECKING

import mujoco
import numpy as np

if TYPE_CHECKING:
    from sim.variation import Draw


def change_mass(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Scale mass and inertia of every body that moves."""
    moving = (model.body_weldid > 0) & (model.body_mass > 0)
    scale = np.where(moving, draw("scale", model.nbody, scale=True), 1.0)
    model.body_mass[:] *= scale
    model.body_inertia[:] *= scale[:, None]
    center, extent = model.stat.center.copy(), model.stat.extent
    mujoco.mj_setConst(model, mujoco.MjData(model))  # inertia at rest, which solver and servos are scaled by
    model.stat.center[:], model.stat.extent = center, extent
    return bool(moving.any())


def change_friction(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Scale the friction of contacts, and of joints that have dry friction."""
    geoms, joints = draw("geoms", model.ngeom, scale=True), draw("joints", model.nv, scale=True)
    model.geom_friction[:] *= geoms[:, None]
    model.dof_frictionloss[:] *= joints
    contacts = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT
    touching = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
    return bool((contacts and touching.any()) or model.dof_frictionloss.any())


def change_damping(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Let every degree of freedom lose speed faster: damping over inertia is the rate of decay."""
    rate = draw("rate", model.nv)
    model.dof_damping[:] += rate * model.dof_M0
    return model.nv > 0


def change_gain(model: mujoco.MjModel, draw: "Draw") -> bool:
    """Scale what each actuator makes of its control."""
    model.actuator_gainprm[:] *= draw("scale", model.nu, scale=True)[:, None]
    return model.nu > 0


def change_delay(spec: mujoco.MjSpec, draw: "Draw") -> bool:
    """Delay all controls by the same time, rounded up to physics steps, in MuJoCo's own buffer.

    The buffer is as long as the longest delay needs, so that states of all seeds have one size.
    """
    seconds = float(draw("seconds"))
    for actuator in spec.actuators:
        actuator.delay = seconds
        actuator.nsample = int(np.ceil(draw.ranges["seconds"][1] / spec.option.timestep)) + 1
    return len(spec.actuators) > 0
