# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a compiled module without stubs)
"""The full physics state of a task: read it, put it back, step it, and notice when MuJoCo warns.

A physics state is MuJoCo's FULLPHYSICS vector (float64): time, positions, velocities, activations. Task models switch
the constraint solver's warm start off, so this vector alone decides what follows: restoring it reproduces every bit.
Controls are not part of it: every control step writes all of them before physics moves.
"""

import mujoco
import numpy as np

from sim.errors import InstabilityError

STATE_SPEC = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)
_INSTABILITIES = {
    int(mujoco.mjtWarning.mjWARN_INERTIA): "singular inertia matrix",
    int(mujoco.mjtWarning.mjWARN_CONTACTFULL): "contact buffer full",
    int(mujoco.mjtWarning.mjWARN_CNSTRFULL): "constraint buffer full",
    int(mujoco.mjtWarning.mjWARN_BADQPOS): "non-finite or huge position",
    int(mujoco.mjtWarning.mjWARN_BADQVEL): "non-finite or huge velocity",
    int(mujoco.mjtWarning.mjWARN_BADQACC): "non-finite or huge acceleration",
    int(mujoco.mjtWarning.mjWARN_BADCTRL): "non-finite control",
}


def state_size(model: mujoco.MjModel) -> int:
    """Return the number of float64 values in a physics state."""
    return mujoco.mj_stateSize(model, STATE_SPEC)


def get_state(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Return a copy of the full physics state, float64 [nstate]."""
    state = np.empty(state_size(model))
    mujoco.mj_getState(model, data, state, STATE_SPEC)
    return state


def set_state(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Put a full physics state back and compute what follows from it (positions of bodies, contacts).

    Raises:
        ValueError: the state has another size than this model's, or is not finite.
    """
    values = np.ascontiguousarray(state, dtype=np.float64)
    if values.shape != (state_size(model),):
        raise ValueError(
            f"a physics state of this model has shape ({state_size(model)},), got {values.shape}: "
            "was it stored for another task?"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"a physics state must be finite, got {values.tolist()}")
    mujoco.mj_resetData(model, data)
    mujoco.mj_setState(model, data, values, STATE_SPEC)
    mujoco.mj_forward(model, data)


def warning_text(data: mujoco.MjData) -> str | None:
    """Return what MuJoCo has warned of since the last reset, or None."""
    found = [text for index, text in _INSTABILITIES.items() if data.warning[index].number > 0]
    return ", ".join(found) if found else None


def raise_instability(task: str, seed: object, step: int, reason: str) -> None:
    """Raise the error that names where a simulation became unstable."""
    raise InstabilityError(
        f"MuJoCo became unstable in task {task!r}, seed {seed}, step {step}: {reason}. "
        "Nothing after this step is physics; use a smaller timestep, more armature or damping, or softer actuators."
    )
