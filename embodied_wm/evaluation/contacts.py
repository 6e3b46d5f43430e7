"""Contact onsets: do imagined contacts begin when MuJoCo's do?"""

import numpy as np

TOLERANCE_STEPS = 1
"""An imagined onset counts as right up to this many steps early or late."""


def onset_steps(touching: np.ndarray) -> list[int]:
    """Return the steps, counted from 1, at which a contact begins, of [H + 1] flags, the first of them the present."""
    return (np.flatnonzero(touching[1:] & ~touching[:-1]) + 1).tolist()


def count_matches(found: list[int], true: list[int]) -> int:
    """Return how many onsets of two sorted lists pair up within the tolerance, each used once."""
    matches = i = j = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= TOLERANCE_STEPS:
            matches, i, j = matches + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return matches


def onset_f1(imagined: np.ndarray, true: np.ndarray) -> float:
    """Return F1 of contact onsets over candidates, flags [S, H + 1] each, the present first.

    NaN where neither holds an onset: there is nothing to be right about.
    """
    pairs = [(onset_steps(one), onset_steps(other)) for one, other in zip(imagined, true, strict=True)]
    total = sum(len(found) + len(wanted) for found, wanted in pairs)
    matches = sum(count_matches(found, wanted) for found, wanted in pairs)
    return 2 * matches / total if total else float("nan")
