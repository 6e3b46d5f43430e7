"""Which windows of consecutive rows exist; a window never crosses from one episode into the next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embodied_wm.data.layout import StoreError


@dataclass(frozen=True, kw_only=True)
class WindowIndex:
    """List every window of one length.

    Attributes:
        starts: [N] int64, first row of each window, counted over the whole store.
        episodes: [N] int64, the episode of each window.
        length: Rows in a window.
        skipped: Episodes asked for that are shorter than a window.
    """

    starts: np.ndarray
    episodes: np.ndarray
    length: int
    skipped: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.starts)


def index_windows(episode_ends: np.ndarray, episodes: Sequence[int], length: int, stride: int = 1) -> WindowIndex:
    """Index the windows of `length` rows, `stride` rows apart, inside the given episodes, in their order.

    Raises:
        StoreError: No episode given, an episode that does not exist, or every one of them shorter than a window.
    """
    if length < 1 or stride < 1:
        raise StoreError(f"A window's length and stride must be at least 1, got length {length} and stride {stride}.")
    chosen = np.asarray(list(episodes), dtype=np.int64)
    if not len(chosen):
        raise StoreError(
            f"No episode was given to take windows from; the store has {len(episode_ends)}, counted from 0."
        )
    unknown = [int(index) for index in chosen if not 0 <= index < len(episode_ends)]
    if unknown:
        raise StoreError(f"Episodes {_some(unknown)} do not exist; the store has {len(episode_ends)}, counted from 0.")
    ends = np.asarray(episode_ends, dtype=np.int64)
    firsts = np.concatenate([[0], ends[:-1]])[chosen]
    lengths = ends[chosen] - firsts
    counts = np.maximum(lengths - length, -stride) // stride + 1
    skipped = tuple(int(index) for index in chosen[counts == 0])
    if not counts.any():
        shown = ", ".join(f"{index} ({rows} rows)" for index, rows in zip(chosen[:8], lengths[:8], strict=True))
        raise StoreError(
            f"Every episode is shorter than a window of {length} rows: episodes "
            f"{shown}{', ...' if len(chosen) > 8 else ''}. Use windows of at most {lengths.max()} rows (fewer context "
            "frames or a shorter horizon), or longer episodes."
        )
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(firsts, counts) + offsets * stride
    return WindowIndex(starts=starts, episodes=np.repeat(chosen, counts), length=length, skipped=skipped)


def split_episodes(num_episodes: int, held_out_fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Split episode numbers into those to train on and those held out, which are the last ones, at least one.

    Raises:
        StoreError: Fewer than two episodes, or a fraction outside (0, 1).
    """
    if num_episodes < 2:
        raise StoreError(f"Holding episodes out needs at least 2 of them, got {num_episodes}. Collect or import more.")
    if not 0 < held_out_fraction < 1:
        raise StoreError(f"The held-out fraction must lie between 0 and 1, got {held_out_fraction}.")
    num_held_out = min(max(1, round(num_episodes * held_out_fraction)), num_episodes - 1)
    numbers = np.arange(num_episodes)
    return numbers[:-num_held_out], numbers[-num_held_out:]


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
