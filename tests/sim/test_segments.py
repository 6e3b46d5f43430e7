"""Masks of bodies: moving a body changes pixels where it was and where it is, and nowhere else."""

import numpy as np
import pytest

from sim.segments import body_masks
from sim.tasks import get_task
from sim.tasks.base import state_from_positions

TASK = get_task("push")


def grown(mask: np.ndarray) -> np.ndarray:
    """Grow an area by a pixel on each side."""
    padded = np.pad(mask, 1)
    size = mask.shape[0]
    return np.any([padded[r : r + size, c : c + size] for r in range(3) for c in range(3)], axis=0)


@pytest.mark.render
@pytest.mark.parametrize("camera", ["top", "front"])
def test_only_masked_pixels_change_when_a_body_moves(camera: str) -> None:
    box, pusher = [0.0, 0.0, 0.3], [0.12, 0.1]
    states = np.stack(
        [
            state_from_positions(TASK.model, np.array([*box, *pusher])),
            state_from_positions(TASK.model, np.array([*box, -0.12, -0.05])),
        ]
    )
    masks = body_masks(TASK, states, 64, 64, camera)
    assert set(masks) == {"box", "pusher"}
    assert np.array_equal(masks["box"][0], masks["box"][1])
    assert 10 < masks["pusher"][0].sum() < masks["box"][0].sum() < 600
    assert not (masks["pusher"] & masks["box"]).any()
    renderer = TASK.renderer(64, 64, camera)
    frames = renderer.render_states(states).astype(int)
    renderer.close()
    changed = np.abs(frames[0] - frames[1]).max(-1) > 40
    either = masks["pusher"].any(0)
    assert not (changed & ~grown(np.asarray(either))).any()
    assert changed[either].mean() > 0.9


def test_what_cannot_be_told_apart_is_refused() -> None:
    states = TASK.reset(TASK.model, np.random.default_rng(0))[None]
    with pytest.raises(ValueError, match="no camera 'side'"):
        body_masks(TASK, states, 8, 8, "side")
    with pytest.raises(ValueError, match="without variation"):
        body_masks(get_task("push+light"), states, 8, 8, "top")
