"""Checks of numbers: NaN and infinity, leaps, columns that never change, and timestamps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embodied_wm.data.validation.findings import Finding
from embodied_wm.types import FeatureSpec

LEAP_FACTOR = 20.0
"""A leap is this many times the usual step: the 90th percentile of the steps that are not zero."""
ISOLATED_FACTOR = 8.0
NEAR_ROWS = 3
"""A leap is 8 times every step this near: a joint that moves ramps up and jitters, a glitch comes out of nothing."""
LEAP_OF_RANGE = 0.1
"""A leap crosses at least this part of its column's range (1st to 99th percentile, or all of it where that is 0)."""
NOISE_OF_WIDEST = 0.01
"""A column that spans less than this part of its feature's widest column holds noise, in which leaps mean nothing."""
GAP_PERIODS = 3.0
RATE_TOLERANCE = 0.05
_MEND = "Mend or leave out the episode: embodied-wm edit operation=filter delete_episodes=[...]."


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Hold what is usual in each column of a feature.

    Attributes:
        usual: [columns] 90th percentile of the steps that are not zero, between rows of one episode.
        spread: [columns] 1st to 99th percentile, or the whole range where that is 0.
        is_noise: [columns] whether the column hardly moves beside its feature's widest one.
    """

    usual: np.ndarray
    spread: np.ndarray
    is_noise: np.ndarray


def column_labels(spec: FeatureSpec) -> list[str]:
    """Return "3 (gripper)", or "3" where the names are not known, for each column of a flattened row."""
    width = int(np.prod(spec.shape, dtype=int))
    names = spec.names if len(spec.names) == width else ()
    return [f"{column} ({names[column]})" if names else str(column) for column in range(width)]


def absolute_steps(rows: np.ndarray) -> np.ndarray:
    """Return [T-1, columns]: how far each column of rows [T, columns] goes from row to row; NaN where not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(np.diff(rows, axis=0))


def measure_scales(episodes: Iterable[np.ndarray]) -> Scales | None:
    """Measure what is usual from a sample of episodes, each [T, columns]; None where no step is finite."""
    listed = list(episodes)
    if not listed:
        return None
    values = np.concatenate(listed)
    steps = np.concatenate([absolute_steps(rows) for rows in listed])
    usual, spread, full = (np.zeros(values.shape[1]) for _ in range(3))
    for column in range(values.shape[1]):
        finite = values[np.isfinite(values[:, column]), column]
        moved = steps[np.isfinite(steps[:, column]) & (steps[:, column] > 0), column]
        if len(moved):
            usual[column] = np.percentile(moved, 90)
            low, high = np.percentile(finite, [1, 99])
            full[column] = finite.max() - finite.min()
            spread[column] = high - low or full[column]
    return Scales(usual=usual, spread=spread, is_noise=full < NOISE_OF_WIDEST * full.max(initial=0.0))


def find_not_finite(name: str, rows: np.ndarray, episode: int) -> Finding | None:
    """Find NaN and infinity in an episode's rows [T, columns]."""
    bad = ~np.isfinite(rows).all(axis=1)
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    column = int(np.argmax(~np.isfinite(rows[row])))
    return Finding(
        check="not_finite",
        severity="error",
        feature=name,
        episode=episode,
        row=row,
        num_rows=int(bad.sum()),
        message=f"column {column} is {rows[row, column]}",
        advice=f"Training stops at such a row. {_MEND}",
    )


def find_jumps(name: str, rows: np.ndarray, episode: int, scales: Scales, labels: list[str]) -> Finding | None:
    """Find leaps in an episode's rows [T, columns], and report the largest, in usual steps."""
    if len(rows) < 4:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        steps = absolute_steps(rows)
        is_large = (steps > LEAP_FACTOR * scales.usual) & (steps >= LEAP_OF_RANGE * scales.spread) & (scales.usual > 0)
        is_large &= ~scales.is_noise
        if not is_large.any():
            return None
        is_leap = is_large & (_is_alone(steps) | _is_half_of_a_spike(rows, steps))
    if not is_leap.any():
        return None
    ratios = np.where(is_leap, steps / np.where(scales.usual > 0, scales.usual, 1), 0)
    row, column = (int(place) for place in np.unravel_index(int(np.argmax(ratios)), ratios.shape))
    before, after = rows[row, column], rows[row + 1, column]
    return Finding(
        check="jump",
        severity="warning",
        feature=name,
        episode=episode,
        row=row + 1,
        num_rows=int(is_leap.any(axis=1).sum()),
        message=f"column {labels[column]} leaps from {before:.4g} to {after:.4g}, "
        f"{ratios[row, column]:.0f} times its usual step{_turn(after - before)}",
        advice="A glitch of a sensor, or rows left out: cut or leave out the episode. Angles that wrap are better "
        "stored unwrapped, or as sine and cosine.",
    )


def _is_alone(steps: np.ndarray) -> np.ndarray:
    """Tell which steps [T-1, columns] dwarf all those near by."""
    return steps > ISOLATED_FACTOR * _largest_near(steps, [*range(-NEAR_ROWS, 0), *range(1, NEAR_ROWS + 1)])


def _is_half_of_a_spike(rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Tell which steps lead to or from a single row that stands apart from its neighbours, where little else moves."""
    near = _largest_near(steps, [*range(-NEAR_ROWS, 0), *range(2, NEAR_ROWS + 2)])[:-1]
    across = np.maximum(np.abs(rows[2:] - rows[:-2]), near)
    is_spike = np.minimum(steps[:-1], steps[1:]) > ISOLATED_FACTOR * across
    none = np.zeros((1, rows.shape[1]), dtype=bool)
    return np.vstack([is_spike, none]) | np.vstack([none, is_spike])


def _largest_near(steps: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    """Return [T-1, columns]: the largest of the steps at some offsets from each, as far as there are any."""
    length = len(steps)
    largest = np.zeros_like(steps)
    for offset in offsets:
        first, stop = max(0, -offset), min(length, length - offset)
        if first < stop:
            largest[first:stop] = np.fmax(largest[first:stop], steps[first + offset : stop + offset])
    return largest


def _turn(step: float) -> str:
    for turn, unit in ((2 * np.pi, "2 pi"), (360.0, "360")):
        if abs(abs(step) - turn) < 0.05 * turn:
            return f"; nearly {unit}, so an angle that wraps"
    return ""


def find_constant(
    name: str, minimum: np.ndarray, maximum: np.ndarray, labels: list[str], *, is_action: bool
) -> Finding | None:
    """Find columns whose smallest and largest value, over the whole store, are the same."""
    same = np.flatnonzero(minimum == maximum)
    if not len(same):
        return None
    whole = len(same) == len(minimum)
    listed = ", ".join(labels[column] for column in same[:8]) + (f", ... ({len(same)})" if len(same) > 8 else "")
    return Finding(
        check="constant",
        severity="error" if whole and is_action else "warning",
        feature=name,
        message="no column ever changes" if whole else f"never changes: column {listed}",
        advice="A model cannot learn what actions do from actions that are all the same; check the recording."
        if whole and is_action
        else "Harmless if that part is meant to rest; otherwise it was not recorded.",
    )


def find_timestamp_faults(name: str, times_s: np.ndarray, episode: int, fps: float) -> list[Finding]:
    """Find timestamps [T] that go back, leave gaps, or run at another rate than the store's."""
    steps_s = np.diff(times_s.astype(np.float64))
    if not len(steps_s) or not np.isfinite(steps_s).all():
        return []
    found: list[Finding] = []

    def add(row: int | None, num_rows: int, message: str, advice: str) -> None:
        found.append(
            Finding(
                check="timestamp",
                severity="warning",
                feature=name,
                episode=episode,
                row=row,
                num_rows=num_rows,
                message=message,
                advice=advice,
            )
        )

    back, gaps = steps_s <= 0, steps_s > GAP_PERIODS / fps
    if back.any():
        row = int(np.argmax(back))
        add(
            row + 1,
            int(back.sum()),
            f"time goes from {times_s[row]:.4g} to {times_s[row + 1]:.4g} s",
            "Rows are out of order or written twice; sort or leave out the episode.",
        )
    if gaps.any():
        row = int(np.argmax(steps_s))
        add(
            row + 1,
            int(gaps.sum()),
            f"a gap of {steps_s[row]:.3g} s, where rows come every {1 / fps:.3g} s",
            "Rows are missing there, so one action stands for several steps; leave the episode out, or cut it.",
        )
    rate = len(steps_s) / steps_s.sum() if steps_s.sum() > 0 else fps
    if not gaps.any() and not back.any() and abs(rate / fps - 1) > RATE_TOLERANCE:
        add(
            None,
            len(times_s),
            f"timestamps say {rate:.3g} rows per second, the store {fps:g}",
            "Training counts rows and is not harmed; what is said in seconds (speeds, latencies) is off by that much.",
        )
    return found


def extremes(
    known: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest finite value of each column, of rows [T, columns] and of what is known."""
    low = np.where(np.isfinite(rows), rows, np.inf).min(axis=0)
    high = np.where(np.isfinite(rows), rows, -np.inf).max(axis=0)
    if name in known:
        low, high = np.minimum(low, known[name][0]), np.maximum(high, known[name][1])
    return low, high
