"""Checks of whole rows: one written twice, and parts of the store that repeat others."""

import hashlib
from collections.abc import Mapping

import numpy as np

from embodied_wm.data.validation.findings import Finding
from embodied_wm.data.validation.frames import MOVING, runs_of

COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that count on even where everything else is repeated."""
MIN_REPEATED_ROWS = 5


def hash_rows(features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return [T] uint64 that name the content of each row, counters aside."""
    arrays = [np.ascontiguousarray(rows) for name, rows in sorted(features.items()) if name not in COUNTERS]
    if not arrays:
        return np.arange(len(next(iter(features.values()))), dtype=np.uint64)
    hashes = np.empty(len(arrays[0]), dtype=np.uint64)
    for row in range(len(hashes)):
        digest = hashlib.blake2b(digest_size=8)
        for array in arrays:
            digest.update(array[row : row + 1].data)
        hashes[row] = int.from_bytes(digest.digest(), "little")
    return hashes


def find_duplicated(names: str, hashes: np.ndarray, episode: int, moved: np.ndarray | None) -> Finding | None:
    """Find rows that equal the row before in the midst of a movement; a robot at rest may repeat itself.

    Args:
        names: The features that are equal.
        hashes: [T] what names each row.
        episode: Number of the episode.
        moved: [T-1] how far the robot moved from row to row, in typical steps; None where nothing says so.
    """
    if moved is None:
        return None
    found = [
        (start, stop)
        for start, stop in runs_of(hashes[1:] == hashes[:-1])
        if start > 0 and stop < len(moved) and min(moved[start - 1], moved[stop]) >= MOVING
    ]
    if not found:
        return None
    count = sum(stop - start for start, stop in found)
    return Finding(
        check="duplicated_rows",
        severity="warning",
        feature=names,
        episode=episode,
        row=found[0][0] + 1,
        num_rows=count,
        message=f"{count} row{'s' if count > 1 else ''} equal the row before in the midst of a movement",
        advice="The recorder wrote a row twice: leave the second one out, or the episode.",
    )


def find_repeats(names: str, hashes: np.ndarray, ends: np.ndarray) -> list[Finding]:
    """Find runs of rows that stand elsewhere in the store, too.

    Args:
        names: The features that are equal.
        hashes: [N] what names each row of the store.
        ends: [num_episodes] one past the last row of each episode.
    """
    if not len(hashes):
        return []
    at_rest = np.concatenate([[False], hashes[1:] == hashes[:-1]])
    rows = np.flatnonzero(~at_rest)
    _, first, inverse = np.unique(hashes[rows], return_index=True, return_inverse=True)
    original = rows[first[inverse]]
    repeated = np.flatnonzero(original != rows)
    if not len(repeated):
        return []
    copies, sources = rows[repeated], original[repeated]
    episodes = np.searchsorted(ends, copies, side="right")
    breaks = (np.diff(repeated) != 1) | (np.diff(copies - sources) != 0) | (np.diff(episodes) != 0)
    starts = np.concatenate([[0], ends[:-1]])
    found = []
    for run in np.split(np.arange(len(copies)), np.flatnonzero(breaks) + 1):
        count = int(copies[run[-1]] - copies[run[0]]) + 1
        if count < MIN_REPEATED_ROWS:
            continue
        episode, source = int(episodes[run[0]]), int(np.searchsorted(ends, sources[run[0]], side="right"))
        row, from_row = int(copies[run[0]] - starts[episode]), int(sources[run[0]] - starts[source])
        whole = count == ends[episode] - starts[episode]
        found.append(
            Finding(
                check="repeated_rows",
                severity="warning",
                feature=names,
                episode=episode,
                row=row,
                num_rows=count,
                message=f"{'the whole episode repeats' if whole else f'{count} rows repeat'} episode {source} from "
                f"row {from_row} on",
                advice="The same moments twice weigh double, and may stand in both training and test data: leave "
                "the copy out.",
            )
        )
    return found
