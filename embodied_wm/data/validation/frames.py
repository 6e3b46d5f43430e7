"""Checks of frames: blank ones, cameras that hang, and the small grey copies that the alignment reads."""

import numpy as np

from embodied_wm.data.validation.columns import absolute_steps
from embodied_wm.data.validation.findings import Finding

BLANK_STD = 2.0
"""A frame whose pixels spread less than this (of 255 levels) shows nothing: black, white, or one colour."""
WHOLE_EPISODE = 0.9
SMALL = 16
"""Side of the small grey copies."""
MAX_SIDE = 128
"""Larger frames are looked at through every n-th pixel."""
FROZEN_MIN_S = 0.3
FROZEN_MIN_ROWS = 3
FROZEN_UNSEEN_S = 2.0
"""Without a state that says whether the robot moves, only such a long still counts, and only as a warning."""
MOVING = 0.5
"""A robot moves when its columns step, on average, at least this part of their own median step."""


def shrink(frames: np.ndarray) -> np.ndarray:
    """Return small grey copies [T, SMALL * SMALL] float32 of frames [T, height, width, channels]."""
    stride = [max(1, side // MAX_SIDE) for side in frames.shape[1:3]]
    seen = frames[:, :: stride[0], :: stride[1]]
    grey = seen[..., 0].astype(np.float32)
    for channel in range(1, seen.shape[-1]):  # faster than the mean over a last axis of three
        grey += seen[..., channel]
    grey /= seen.shape[-1]
    rows = np.linspace(0, grey.shape[1], SMALL + 1).astype(int)[:-1]
    columns = np.linspace(0, grey.shape[2], SMALL + 1).astype(int)[:-1]
    if min(grey.shape[1:]) < SMALL:
        return grey[:, rows][:, :, columns].reshape(len(grey), -1)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)
    areas = np.diff(rows, append=grey.shape[1])[:, None] * np.diff(columns, append=grey.shape[2])
    return (sums / areas).reshape(len(grey), -1)


def find_blank(name: str, frames: np.ndarray, small: np.ndarray, episode: int) -> Finding | None:
    """Find frames [T, height, width, channels] of one colour; `small` is what `shrink` makes of them."""
    stride = [max(1, side // MAX_SIDE) for side in frames.shape[1:3]]
    seen = frames[:, :: stride[0], :: stride[1]]
    blank = small.std(axis=1) < BLANK_STD  # averages spread less than pixels, so all blank frames are among these
    blank[blank] = seen[blank].std(axis=(1, 2), dtype=np.float32).max(axis=-1) < BLANK_STD
    if not blank.any():
        return None
    row, whole = int(np.argmax(blank)), blank.mean() >= WHOLE_EPISODE
    level = float(seen[row].mean())
    colour = "black" if level < 16 else "white" if level > 239 else "of one colour"
    return Finding(
        check="blank_frames",
        severity="error" if whole else "warning",
        feature=name,
        episode=episode,
        row=row,
        num_rows=int(blank.sum()),
        message=f"{blank.sum()} of {len(blank)} frames are {colour}",
        advice="The camera saw nothing: leave the episode out (embodied-wm edit operation=filter delete_episodes=[...])"
        + ("." if whole else ", or cut these rows."),
    )


def motion(states: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """Return [T-1]: the mean over columns of each step of states [T, columns], in typical (median) steps."""
    moving = typical > 0
    if not moving.any():
        return np.zeros(len(states) - 1)
    return (absolute_steps(states[:, moving]) / typical[moving]).mean(axis=1)


def runs_of(flags: np.ndarray) -> list[tuple[int, int]]:
    """Return the [start, stop) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def find_frozen(name: str, frames: np.ndarray, episode: int, moved: np.ndarray | None, fps: float) -> Finding | None:
    """Find a frame that stays, to the last bit, while the robot moves.

    Args:
        name: The camera.
        frames: [T, height, width, channels].
        episode: Number of the episode.
        moved: [T-1] how far the robot moved from row to row, in typical steps; None where nothing says so.
        fps: Rows per second.
    """
    if len(frames) < 2:
        return None
    flat = frames.reshape(len(frames), -1)
    same = np.array([np.array_equal(flat[row], flat[row + 1]) for row in range(len(flat) - 1)])
    least = max(FROZEN_MIN_ROWS, round((FROZEN_MIN_S if moved is not None else FROZEN_UNSEEN_S) * fps))
    found = [
        (start, stop)
        for start, stop in runs_of(same)
        if stop - start >= min(least, len(same)) and (moved is None or moved[start:stop].mean() >= MOVING)
    ]
    if not found:
        return None
    start, stop = max(found, key=lambda run: run[1] - run[0])
    whole = stop - start >= WHOLE_EPISODE * len(same)
    while_moving = "while the robot moves" if moved is not None else "which may be a scene at rest"
    return Finding(
        check="frozen_frames",
        severity="error" if whole and moved is not None else "warning",
        feature=name,
        episode=episode,
        row=start,
        num_rows=sum(stop - start for start, stop in found),
        message=f"the frame stays the same for {stop - start} steps {while_moving}",
        advice="The camera hung: the frames teach that actions do nothing. Leave the episode out, or cut these rows.",
    )
