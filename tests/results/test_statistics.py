"""Intervals and tests of accuracies against hand-worked numbers, other formulas and simulated truth."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dhel_kcl.results.statistics import (
    ALPHA,
    BOOTSTRAP_SEEDS,
    Interval,
    accuracy_interval,
    bootstrap_interval,
    compare_losses,
    difference_interval,
    hedges_correction,
    holm,
    paired_test,
)

ORDER = ["kcl_log", "dhel", "dcl"]
accuracies = st.lists(st.integers(0, 1000).map(lambda hits: hits / 1000), min_size=2, max_size=6)


def table(values: dict[str, dict[int, float]], images: float = 10_000, batch_size: int = 256) -> pd.DataFrame:
    """Accuracies by loss and seed as the rows of runs."""
    return pd.DataFrame(
        [("cifar10", batch_size, loss, seed, value, images) for loss in values for seed, value in values[loss].items()],
        columns=["dataset", "batch_size", "loss", "seed", "value", "images"],
    )


def pair(compared: pd.DataFrame, loss: str, other: str) -> pd.Series:
    return compared.set_index(["loss", "other"]).loc[(loss, other)]


def test_the_paired_test_is_that_of_the_textbook() -> None:
    """Differences 0.01, 0.02, 0.03, 0.04: mean 0.025, standard error 0.01291 / 2, t = 3.873 with 3 degrees."""
    test = paired_test([0.81, 0.72, 0.93, 0.64], [0.80, 0.70, 0.90, 0.60])
    error = math.sqrt(5 / 3) * 0.01 / 2
    assert (test.n, test.difference) == (4, pytest.approx(0.025))
    assert test.p == pytest.approx(2 * stats.t.sf(0.025 / error, 3))
    assert test.interval == pytest.approx((0.025 - 3.182446305 * error, 0.025 + 3.182446305 * error))
    assert test.effect_size == pytest.approx(0.025 / (2 * error) * math.gamma(1.5) / math.sqrt(1.5))
    assert test.p == pytest.approx(stats.ttest_rel([0.81, 0.72, 0.93, 0.64], [0.80, 0.70, 0.90, 0.60]).pvalue)


def test_the_sign_flip_test_enumerates_all_signs() -> None:
    first, second = [0.85, 0.83, 0.86, 0.80, 0.84], [0.80, 0.81, 0.83, 0.82, 0.80]
    differences = np.subtract(first, second)
    means = [np.mean(differences * signs) for signs in itertools.product((-1, 1), repeat=5)]
    extreme = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert paired_test(first, second).p_sign_flip == pytest.approx(extreme)


@pytest.mark.parametrize(("n", "smallest"), [(2, 0.5), (3, 0.25), (6, 0.03125)])
def test_few_seeds_bound_the_sign_flip_test_from_below(n: int, smallest: float) -> None:
    first = np.linspace(0.8, 0.9, n)
    assert paired_test(first, first - np.linspace(0.01, 0.02, n)).p_sign_flip == pytest.approx(smallest)


@pytest.mark.parametrize(("degrees", "j"), [(2, 0.5642), (4, 0.7979), (9, 0.9139), (50, 0.9849)])
def test_hedges_correction_is_the_published_table_and_nearly_its_approximation(degrees: int, j: float) -> None:
    assert hedges_correction(degrees) == pytest.approx(j, abs=1e-3)
    assert hedges_correction(degrees) == pytest.approx(1 - 3 / (4 * degrees - 1), abs=0.01)


def test_one_seed_allows_no_test_and_two_no_effect_size() -> None:
    one = paired_test([0.8], [0.7])
    assert (one.n, one.difference) == (1, pytest.approx(0.1))
    assert np.isnan([*one.interval, one.effect_size, one.p, one.p_sign_flip]).all()
    two = paired_test([0.8, 0.9], [0.7, 0.7])
    assert math.isnan(two.effect_size)
    assert 0 < two.p < 1
    none = paired_test([], [])
    assert none.n == 0
    assert math.isnan(none.difference)


def test_differences_that_are_all_the_same_are_not_taken_for_proof() -> None:
    """Rounding alone would give them a tiny variance, and p = 1e-16."""
    same = paired_test([0.81, 0.73, 0.93], [0.80, 0.72, 0.92])
    assert same.difference == pytest.approx(0.01)
    assert math.isnan(same.p)


def test_accuracies_that_are_not_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 accuracies are not pairs"):
        paired_test([0.1, 0.2], [0.1, 0.2, 0.3])


@settings(max_examples=40, deadline=None)
@given(accuracies, st.randoms(use_true_random=False))
def test_swapping_the_losses_negates_the_difference_and_the_order_of_seeds_does_not_matter(values, random) -> None:
    other = [random.random() for _ in values]
    test, swapped = paired_test(values, other), paired_test(other, values)
    assert swapped.difference == pytest.approx(-test.difference)
    assert [*swapped.interval] == pytest.approx([-test.interval.high, -test.interval.low], nan_ok=True)
    assert swapped.effect_size == pytest.approx(-test.effect_size, nan_ok=True)
    assert (swapped.p, swapped.p_sign_flip) == pytest.approx((test.p, test.p_sign_flip), nan_ok=True)
    order = random.sample(range(len(values)), len(values))
    shuffled = paired_test([values[i] for i in order], [other[i] for i in order])
    assert (shuffled.p, shuffled.p_sign_flip) == pytest.approx((test.p, test.p_sign_flip), nan_ok=True)


def test_the_interval_of_a_difference_covers_the_truth_in_95_percent_of_cases_at_three_seeds() -> None:
    random = np.random.default_rng(0)
    trials = 1500
    seeds = 0.8 + 0.01 * random.standard_normal((trials, 3))  # what a seed does to both
    first, second = (seeds + 0.004 * random.standard_normal((trials, 3)) for _ in range(2))
    intervals = [paired_test(a + 0.02, b).interval for a, b in zip(first, second, strict=True)]
    covered = np.mean([low <= 0.02 <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


def test_of_families_without_any_difference_at_most_5_percent_have_a_corrected_test_that_finds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it at each correction, 0.1 s each
    random = np.random.default_rng(1)
    trials, losses = 300, ["a", "b", "c", "d"]
    found, found_raw = 0, 0
    for _ in range(trials):
        values = 0.8 + 0.01 * random.standard_normal((len(losses), 4))
        compared = compare_losses(
            table({loss: dict(enumerate(v)) for loss, v in zip(losses, values, strict=True)}), losses
        )
        found += bool((compared["p_holm"] < ALPHA).any())
        found_raw += bool((compared["p"] < ALPHA).any())
    assert found / trials < ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)
    assert found_raw > 2 * found, "without correction there would be many more"


def test_holm_multiplies_by_the_number_of_tests_that_are_left() -> None:
    corrected = holm(pd.Series([0.04, 0.001, math.nan, 0.02]))
    assert corrected.tolist() == pytest.approx([0.04, 0.003, math.nan, 0.04], nan_ok=True)
    assert holm(pd.Series([math.nan])).isna().all()


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


def test_newcombes_interval_is_made_of_wilsons() -> None:
    p, q = 0.526, 0.508
    (p_low, p_high), (q_low, q_high) = accuracy_interval(p, 1000), accuracy_interval(q, 1000)
    expected = p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)
    assert [*difference_interval(p, q, 1000)] == pytest.approx(expected)


def test_the_interval_over_test_images_covers_the_truth_also_if_both_fail_on_the_same_images() -> None:
    random = np.random.default_rng(3)
    images, trials = 400, 1000
    covered = []
    for _ in range(trials):
        difficulty = random.random(images)  # shared: a hit wherever the difficulty is below the network's skill
        mixed = np.where(random.random(images) < 0.5, random.random(images), difficulty)
        low, high = difference_interval(np.mean(difficulty < 0.6), np.mean(mixed < 0.55), images)
        covered.append(low <= 0.05 <= high)
    assert np.mean(covered) >= 0.95


def test_unknown_numbers_of_images_give_no_interval() -> None:
    assert np.isnan([*accuracy_interval(0.5, math.nan), *difference_interval(0.5, 0.4, math.nan)]).all()
    assert np.isnan([*accuracy_interval(math.nan, 100), *difference_interval(0.5, math.nan, 100)]).all()


def test_every_two_losses_are_compared_on_the_seeds_that_they_share() -> None:
    runs = table(
        {
            "dhel": {0: 0.86, 1: 0.88, 2: 0.87, 3: 0.70},
            "dcl": {0: 0.85, 1: 0.86, 2: 0.86, 3: math.nan},
            "kcl_log": dict.fromkeys(range(4), math.nan),
        }
    )
    compared = compare_losses(runs, ORDER)
    assert compared[["loss", "other"]].to_numpy().tolist() == [["kcl_log", "dhel"], ["kcl_log", "dcl"], ["dhel", "dcl"]]
    row = pair(compared, "dhel", "dcl")
    assert (row["n"], row["difference"]) == (3, pytest.approx(0.04 / 3))
    assert row["p"] == pytest.approx(stats.ttest_rel([0.86, 0.88, 0.87], [0.85, 0.86, 0.86]).pvalue)
    assert row["p_holm"] == row["p"], "the only pair that can be tested is a family of one"
    assert (row["test_low"], row["test_high"]) == pytest.approx([*difference_interval(0.87, 2.57 / 3, 10_000)])
    lost = pair(compared, "kcl_log", "dcl")
    assert lost["n"] == 0
    assert lost[["difference", "low", "test_low", "p", "p_holm"]].isna().all()


def test_with_one_seed_only_the_test_images_give_an_interval() -> None:
    row = compare_losses(table({"dhel": {0: 0.5262}, "dcl": {0: 0.5084}}), ORDER).iloc[0]
    assert row["n"] == 1
    assert row[["low", "high", "effect_size", "p", "p_holm", "p_sign_flip"]].isna().all()
    error = math.sqrt((0.5262 * 0.4738 + 0.5084 * 0.4916) / 10_000)
    assert row[["test_low", "test_high"]].tolist() == pytest.approx(
        [0.0178 - 1.96 * error, 0.0178 + 1.96 * error], abs=1e-4
    )


def test_each_data_set_and_batch_size_is_a_family() -> None:
    random = np.random.default_rng(4)
    values = {loss: dict(enumerate(0.8 + 0.01 * random.standard_normal(4))) for loss in ORDER}
    both = pd.concat([table(values, batch_size=32), table(values, batch_size=256)])
    compared = compare_losses(both, ORDER)
    for _, family in compared.groupby("batch_size"):
        assert family["p_holm"].min() == pytest.approx(min(1, 3 * family["p"].min()))


def test_the_order_of_the_runs_does_not_matter_and_that_of_the_losses_only_negates() -> None:
    random = np.random.default_rng(5)
    runs = table({loss: dict(enumerate(0.8 + 0.01 * random.standard_normal(4))) for loss in ORDER})
    compared = compare_losses(runs, ORDER)
    pd.testing.assert_frame_equal(
        compared, compare_losses(runs.sample(frac=1, random_state=0), ORDER), check_exact=True
    )
    backwards = compare_losses(runs, ORDER[::-1]).rename(columns={"loss": "other", "other": "loss"})
    both = compared.merge(backwards, on=["loss", "other"], suffixes=("", "_back"))
    assert len(both) == 3
    assert both["difference"].tolist() == pytest.approx((-both["difference_back"]).tolist())
    assert both["test_low"].tolist() == pytest.approx((-both["test_high_back"]).tolist())


def test_one_loss_has_no_rival() -> None:
    assert compare_losses(table({"dhel": {0: 0.5}}), ORDER).empty
