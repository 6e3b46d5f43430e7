"""Intervals and correlations against scipy, published values and simulation."""

import numpy as np
import pytest
from scipy import stats

from embodied_wm.evaluation.statistics import (
    StatisticsError,
    agresti_caffo,
    bootstrap_mean,
    bootstrap_quantile,
    by_horizon,
    ranks,
    spearman,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (45, 50), (81, 263), (100, 100)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    got = wilson(successes, n)
    assert got["value"] == successes / n
    assert got["n"] == n
    assert got["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_wilson_known_value() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson(81, 263)["ci95"] == pytest.approx([0.2553, 0.3662], abs=5e-5)


def test_agresti_caffo_known_value_and_symmetry() -> None:
    """56/70 against 48/80, worked by hand: 57/72 - 49/82 -+ 1.96 * 0.0724."""
    got = agresti_caffo(56, 70, 48, 80)
    assert got["value"] == pytest.approx(0.2)
    assert got["ci95"] == pytest.approx([0.0524, 0.3358], abs=2e-4)
    assert got["n"] == 70
    swapped = agresti_caffo(48, 80, 56, 70)
    assert swapped["ci95"] == pytest.approx([-got["ci95"][1], -got["ci95"][0]])


def test_agresti_caffo_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.binomial(30, 0.9, 2000), rng.binomial(40, 0.7, 2000)
    intervals = [agresti_caffo(int(a), 30, int(b), 40)["ci95"] for a, b in zip(first, second, strict=True)]
    coverage = np.mean([low <= 0.2 <= high for low, high in intervals])
    assert 0.93 <= coverage <= 0.98


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 5), (0, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(StatisticsError, match=f"{successes} successes of {n}"):
        wilson(successes, n)


def test_bootstrap_mean_matches_the_normal_interval_and_repeats() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.5, 400)
    got = bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / 20
    assert got["value"] == pytest.approx(values.mean())
    assert got["ci95"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.006)
    assert got == bootstrap_mean(values, seed=0)
    assert got != bootstrap_mean(values, seed=1)


def test_bootstrap_over_episodes_is_wider_than_over_steps() -> None:
    """Steps of an episode are alike: 20 episodes of 50 equal values carry the information of 20 values."""
    episode_means = np.random.default_rng(2).normal(size=20)
    groups = np.repeat([f"episode {i}" for i in range(20)], 50)
    clustered = bootstrap_mean(np.repeat(episode_means, 50), seed=0, groups=groups)
    alone = bootstrap_mean(episode_means, seed=0)
    assert clustered["value"] == pytest.approx(alone["value"])
    assert clustered["n"] == 1000
    assert np.diff(clustered["ci95"])[0] == pytest.approx(np.diff(alone["ci95"])[0], rel=0.05)


def test_bootstrap_weighs_unequal_episodes_by_their_length() -> None:
    assert bootstrap_mean([0, 0, 0, 1], seed=0, groups=[7, 7, 7, 9])["value"] == 0.25


def test_one_episode_has_no_interval() -> None:
    assert bootstrap_mean([1.0, 2.0], seed=0, groups=["a", "a"]) == {"value": 1.5, "ci95": None, "n": 2}
    assert bootstrap_quantile([3.0], 0.5, seed=0)["ci95"] is None
    assert by_horizon([[1.0, 2.0]], seed=0)["by_horizon"]["2"] == {"value": 2.0, "ci95": None, "n": 1}


def test_by_horizon_equals_one_bootstrap_per_step() -> None:
    values = np.random.default_rng(3).normal(size=(60, 3))
    groups = np.arange(60) // 4
    steps = by_horizon(values, seed=5, groups=groups)["by_horizon"]
    assert list(steps) == ["1", "2", "3"]
    for h, step in enumerate(steps.values()):
        alone = bootstrap_mean(values[:, h], seed=5, groups=groups)
        assert step["value"] == pytest.approx(alone["value"])
        assert step["ci95"] == pytest.approx(alone["ci95"])


def test_quantiles() -> None:
    values = np.random.default_rng(4).exponential(size=2000)
    got = bootstrap_quantile(values, 0.5, seed=0)
    assert got["value"] == np.median(values)
    assert got["ci95"][0] < np.log(2) < got["ci95"][1]


def test_spearman_and_ranks_equal_scipy_with_ties() -> None:
    rng = np.random.default_rng(5)
    a = rng.integers(0, 6, 50).astype(float)
    b = a + rng.integers(0, 5, 50)
    assert np.array_equal(ranks(a), stats.rankdata(a))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_bad_values_are_located() -> None:
    with pytest.raises(StatisticsError, match=r"index \[2\] is nan"):
        bootstrap_mean([0.0, 1.0, np.nan], seed=0)
    with pytest.raises(StatisticsError, match="3 groups for 2 values"):
        bootstrap_mean([0.0, 1.0], seed=0, groups=[1, 2, 3])
    with pytest.raises(StatisticsError, match="at least one"):
        bootstrap_mean([], seed=0)
    with pytest.raises(StatisticsError, match=r"\(3,\) and \(2,\)"):
        spearman([1, 2, 3], [1, 2])
