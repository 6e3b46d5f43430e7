"""A state from which MuJoCo cannot go on."""

import numpy as np
import pytest

from sim.branch import branch
from sim.errors import InstabilityError
from sim.tasks.base import Task


def wild(task: Task, state: np.ndarray) -> np.ndarray:
    """Return a copy of a physics state, with a velocity that MuJoCo warns of in its next step."""
    changed = state.copy()
    changed[1 + task.model.nq] = 1e11
    return changed


def check_names_the_wild_candidate(task: Task) -> None:
    """Branch a calm and a wild state, of a task with two actions, and check what is said."""
    calm = task.reset(task.model, np.random.default_rng(0))
    with pytest.raises(InstabilityError, match=f"task '{task.name}', candidate 1, step 0"):
        branch(task, np.stack([calm, wild(task, calm)]), np.zeros((2, 3, 2)))
