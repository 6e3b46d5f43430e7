"""Figures with 95% intervals: Wilson, Agresti-Caffo, bootstrap over episodes, and rank correlation.

Every estimate is a plain dict {"value", "ci95": [low, high] or None, "n"}, ready for report.json. The interval is None
where the data say nothing about the spread (a single value or a single episode).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""


class StatisticsError(ValueError):
    """Say that numbers cannot be summarised as asked."""


def estimate(value: float, ci95: Sequence[float] | None, n: int) -> dict[str, Any]:
    """Return the dict that stands for one figure in report.json."""
    return {"value": float(value), "ci95": None if ci95 is None else [float(ci95[0]), float(ci95[1])], "n": int(n)}


def _check_count(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise StatisticsError(f"Got {successes} successes of {n} tries; expected 0 <= successes <= n and n >= 1.")


def wilson(successes: int, n: int) -> dict[str, Any]:
    """Estimate a success rate with Wilson's score interval (Wilson 1927)."""
    _check_count(successes, n)
    rate = successes / n
    centre = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return estimate(rate, [low, high], n)


def agresti_caffo(successes_1: int, n_1: int, successes_2: int, n_2: int) -> dict[str, Any]:
    """Estimate the difference of two independent success rates, first minus second (Agresti and Caffo 2000).

    `n` of the result is the smaller of both, as the number of pairs that both were tried on.
    """
    _check_count(successes_1, n_1)
    _check_count(successes_2, n_2)
    rate_1, rate_2 = (successes_1 + 1) / (n_1 + 2), (successes_2 + 1) / (n_2 + 2)
    half = Z95 * np.sqrt(rate_1 * (1 - rate_1) / (n_1 + 2) + rate_2 * (1 - rate_2) / (n_2 + 2))
    centre = rate_1 - rate_2
    interval = [max(-1.0, centre - half), min(1.0, centre + half)]
    return estimate(successes_1 / n_1 - successes_2 / n_2, interval, min(n_1, n_2))


def _checked(values: ArrayLike, groups: Sequence[Any] | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return float values [N, ...] and group indices [N] counted from 0."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or len(array) == 0:
        raise StatisticsError(f"Got values of shape {array.shape}; expected at least one value.")
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0].tolist()
        raise StatisticsError(
            f"Value at index {bad} is {array[tuple(bad)]}; expected finite values. Drop what is undefined, and say so."
        )
    if groups is None:
        return array, np.arange(len(array))
    if len(groups) != len(array):
        raise StatisticsError(f"Got {len(groups)} groups for {len(array)} values; expected one group per value.")
    return array, np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def _resampled_means(array: np.ndarray, group: np.ndarray, *, seed: int, num_resamples: int) -> np.ndarray:
    """Return means [num_resamples, ...] over groups drawn with replacement."""
    count = int(group.max()) + 1
    sums = np.zeros((count, *array.shape[1:]))
    np.add.at(sums, group, array)
    sizes = np.bincount(group, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=num_resamples).astype(np.float64)
    totals = (draws @ sums.reshape(count, -1)).reshape(num_resamples, *array.shape[1:])
    return totals / (draws @ sizes).reshape(-1, *([1] * (array.ndim - 1)))


def bootstrap_mean(
    values: ArrayLike, *, seed: int, groups: Sequence[Any] | np.ndarray | None = None, num_resamples: int = 4000
) -> dict[str, Any]:
    """Estimate a mean with a percentile bootstrap interval.

    Args:
        values: Values [N].
        seed: Seed of the resampling.
        groups: Label of the episode of each value [N]; whole episodes are resampled, because the steps of one episode
            are not independent. None makes every value its own group.
        num_resamples: Number of resamples.
    """
    array, group = _checked(values, groups)
    if array.ndim != 1:
        raise StatisticsError(f"Got values of shape {array.shape}; expected one axis (by_horizon takes [N, H]).")
    if group.max() == 0:
        return estimate(float(array.mean()), None, len(array))
    means = _resampled_means(array, group, seed=seed, num_resamples=num_resamples)
    return estimate(float(array.mean()), np.quantile(means, [0.025, 0.975]).tolist(), len(array))


def by_horizon(
    values: ArrayLike, *, seed: int, groups: Sequence[Any] | np.ndarray | None = None, num_resamples: int = 4000
) -> dict[str, Any]:
    """Estimate means of [N, H] values at every horizon step: {"by_horizon": {"1": estimate, ...}}.

    Every resample draws the same episodes for all steps.
    """
    array, group = _checked(values, groups)
    if array.ndim != 2:
        raise StatisticsError(f"Got values of shape {array.shape}; expected two axes [samples, horizon].")
    means = array.mean(axis=0)
    bounds = np.full((2, array.shape[1]), np.nan)
    if group.max() > 0:
        resampled = _resampled_means(array, group, seed=seed, num_resamples=num_resamples)
        bounds = np.quantile(resampled, [0.025, 0.975], axis=0)
    steps = {
        str(h + 1): estimate(means[h], None if group.max() == 0 else bounds[:, h].tolist(), len(array))
        for h in range(array.shape[1])
    }
    return {"by_horizon": steps}


def bootstrap_quantile(values: ArrayLike, quantile: float, *, seed: int, num_resamples: int = 1000) -> dict[str, Any]:
    """Estimate a quantile (0.5 is the median) of independent values [N] with a percentile bootstrap interval."""
    array, _ = _checked(values, None)
    if array.ndim != 1 or not 0 <= quantile <= 1:
        raise StatisticsError(
            f"Got values of shape {array.shape} and quantile {quantile}; expected one axis and a quantile in [0, 1]."
        )
    value = float(np.quantile(array, quantile))
    if len(array) == 1:
        return estimate(value, None, 1)
    rng = np.random.default_rng(seed)
    resampled = [np.quantile(rng.choice(array, len(array)), quantile) for _ in range(num_resamples)]
    return estimate(value, np.quantile(resampled, [0.025, 0.975]).tolist(), len(array))


def ranks(values: ArrayLike) -> np.ndarray:
    """Return ranks from 1; tied values share their mean rank."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return the rank correlation of two [N] arrays; NaN where one of them is constant (it is undefined there)."""
    first, second = _checked(a, None)[0], _checked(b, None)[0]
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise StatisticsError(
            f"Got arrays of shapes {first.shape} and {second.shape}; expected the same [N] with N >= 2."
        )
    x, y = ranks(first), ranks(second)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")
