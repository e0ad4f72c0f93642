"""Intervals and tests of accuracies against hand-worked numbers, other formulas and simulated truth."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from dhel_kcl.results.statistics import (
    BOOTSTRAP_SEEDS,
    Interval,
    accuracy_interval,
    bootstrap_interval,
)

ORDER = ["kcl_log", "dhel", "dcl"]
accuracies = st.lists(st.integers(0, 1000).map(lambda hits: hits / 1000), min_size=2, max_size=6)


def test_the_bootstrap_interval_is_that_of_resampled_means_at_the_corrected_level() -> None:
    values = np.array([0.80, 0.81, 0.83, 0.84, 0.86, 0.90])
    tail = stats.norm.cdf(math.sqrt(6 / 5) * stats.t.ppf(0.025, 5))
    means = np.random.default_rng(0).choice(values, (200_000, 6)).mean(axis=1)
    assert [*bootstrap_interval(values)] == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=2e-3)


@pytest.mark.parametrize(("n", "least"), [(5, 0.90), (8, 0.92)])
def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says(n: int, least: float) -> None:
    random = np.random.default_rng(2)
    samples = random.standard_normal((400, n))
    covered = np.mean([low <= 0 <= high for low, high in map(bootstrap_interval, samples)])
    assert least < covered < 0.98


@pytest.mark.parametrize("n", range(BOOTSTRAP_SEEDS))
def test_too_few_seeds_give_no_bootstrap_interval(n: int) -> None:
    assert np.isnan([*bootstrap_interval([0.8] * n)]).all()


def test_the_bootstrap_interval_does_not_depend_on_the_order_nor_on_the_call() -> None:
    values = [0.8, 0.83, 0.79, 0.85, 0.81]
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1]) == bootstrap_interval(values)
    assert bootstrap_interval([0.8] * 5) == pytest.approx(Interval(0.8, 0.8))


def test_wilsons_interval_is_the_root_of_its_equation() -> None:
    """Both ends e satisfy |p - e| = z sqrt(e (1 - e) / n)."""
    for end in accuracy_interval(0.526, 10_000):
        assert abs(0.526 - end) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(end * (1 - end) / 10_000))
    low, high = accuracy_interval(1.0, 50)
    assert (low < 1, high) == (True, pytest.approx(1))
