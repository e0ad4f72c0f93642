"""Estimate the uncertainty of an accuracy and of the difference of two.

There are two sources of uncertainty, and each interval here covers only one of them:

- **over seeds**: how the result would change if training were repeated with other seeds, on the same test images. It
  needs several seeds.
- **over test images**: how the result would change with other test images of the same kind and the same trained
  networks. It needs the number of test images; one seed is enough.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from dhel_kcl.seeding import derive_seed

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
BOOTSTRAP_SEEDS = 5
"""Fewest seeds for a bootstrap interval. It lies between the smallest and the largest value, which enclose the centre
of a symmetric distribution with probability 1 - 2^(1 - n): 0.75 for 3 seeds, 0.88 for 4, 0.94 for 5."""

_RESAMPLES = 9999
_SAME = 1e-9  # far below one test image in a million


class Interval(NamedTuple):
    """A 95% confidence interval; NaN where there is none."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


class PairedTest(NamedTuple):
    """Two losses compared on the seeds that they share.

    `difference` is the mean of first minus second and `interval` its Student interval over seeds. `effect_size` is
    Cohen's d_z (the mean difference over its standard deviation) with Hedges' correction. `p` is from the paired t-test
    and `p_sign_flip` from the sign-flip permutation test, which assumes no distribution but is at least 2^(1 - n).
    """

    n: int
    difference: float
    interval: Interval
    effect_size: float
    p: float
    p_sign_flip: float


def bootstrap_interval(values: ArrayLike) -> Interval:
    """Return the bootstrap interval over seeds of a mean; the order of the values does not matter.

    This is the percentile interval with Hesterberg's correction for few values: its tails have probability
    Phi(-sqrt(n / (n - 1)) t), where t is the Student quantile with n - 1 degrees of freedom (T. Hesterberg, What
    Teachers Should Know About the Bootstrap, The American Statistician 69, 2015). Without the correction, and
    also with BCa, a nominal 95% interval of five normal values covers the mean in 84% of cases; with it, in 92%.

    Args:
        values: one value for each seed.

    Returns:
        The interval; NaN for fewer than `BOOTSTRAP_SEEDS` values.
    """
    sample = np.sort(np.asarray(values, dtype=float))
    n = len(sample)
    if n < BOOTSTRAP_SEEDS:
        return UNKNOWN
    tail = stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(ALPHA / 2, n - 1))
    interval = stats.bootstrap(
        (sample,),
        np.mean,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(derive_seed(0, "bootstrap")),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def paired_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Compare two losses seed by seed.

    With one seed, or if all differences are equal, nothing can be tested: interval, effect size and p are NaN. The
    effect size needs three seeds (with two, Hedges' correction is 0).

    Args:
        first: accuracies ``(n,)`` of one loss.
        second: accuracies ``(n,)`` of the other on the same seeds, in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} accuracies are not pairs")
    differences = a - b
    n = len(differences)
    mean = float(differences.mean()) if n else math.nan
    if n < 2 or float(np.ptp(differences)) < _SAME:
        return PairedTest(n, mean, UNKNOWN, math.nan, math.nan, math.nan)
    student = stats.ttest_1samp(differences, 0)
    low, high = student.confidence_interval(CONFIDENCE)
    flips = stats.permutation_test(
        (a, b),
        _mean_difference,
        permutation_type="samples",
        n_resamples=_RESAMPLES,  # exact up to 13 seeds
        rng=np.random.default_rng(derive_seed(0, "sign_flip")),
    )
    d_z = mean / float(differences.std(ddof=1))
    return PairedTest(
        n=n,
        difference=mean,
        interval=Interval(float(low), float(high)),
        effect_size=d_z * hedges_correction(n - 1) if n > 2 else math.nan,
        p=float(student.pvalue),
        p_sign_flip=float(flips.pvalue),
    )


def _mean_difference(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(np.mean(a - b, axis=axis))


def hedges_correction(degrees: int) -> float:
    """Return the factor that removes the bias of a standardised mean difference with two or more `degrees` of freedom.

    Source: L. V. Hedges, Distribution Theory for Glass's Estimator of Effect Size and Related Estimators, Journal of
    Educational Statistics 6, 1981.
    """
    half = degrees / 2
    return math.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / math.sqrt(half)


def holm(p: pd.Series) -> pd.Series:
    """Correct the p-values of one family by Holm's method; NaN (not tested) stays NaN and does not count.

    Source: S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6,
    1979.
    """
    corrected = p.astype(float).copy()
    tested = p.notna()
    if tested.any():
        corrected[tested] = multipletests(p[tested], method="holm")[1]
    return corrected


def accuracy_interval(accuracy: float, images: float) -> Interval:
    """Return Wilson's interval over test images of an accuracy.

    For the mean accuracy of several seeds it is conservative: the mean of a test image's hits over seeds varies less
    than a single hit.

    Args:
        accuracy: in [0, 1], or NaN.
        images: the number of test images, or NaN.

    Returns:
        The interval; NaN if an argument is NaN.
    """
    if math.isnan(accuracy) or math.isnan(images):
        return UNKNOWN
    return Interval(*map(float, proportion_confint(accuracy * images, images, alpha=ALPHA, method="wilson")))


def difference_interval(first: float, second: float, images: float) -> Interval:
    """Return Newcombe's hybrid score interval over test images of a difference of two accuracies.

    It treats the two as independent. Networks tested on the same images tend to fail on the same ones, so their
    difference varies less and the interval is conservative.

    Args:
        first: an accuracy in [0, 1], or NaN.
        second: the accuracy to subtract, or NaN.
        images: the number of test images, or NaN.

    Returns:
        The interval; NaN if an argument is NaN.
    """
    if math.isnan(first) or math.isnan(second) or math.isnan(images):
        return UNKNOWN
    counts = first * images, images, second * images, images
    interval = confint_proportions_2indep(*counts, method="newcomb", compare="diff", alpha=ALPHA)
    return Interval(*map(float, interval))


def compare_losses(runs: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Compare each pair of losses at each data set and batch size, on the seeds for which both have an accuracy.

    Args:
        runs: a row for each run: `dataset`, `batch_size`, `loss`, `seed`, its accuracy `value` (NaN if it has none;
            each loss has at most one per seed) and the number of test `images` (NaN if unknown).
        order: the losses; the first loss of a pair is the one that comes earlier here.

    Returns:
        A row for each pair: `n` shared seeds, `difference` of the mean accuracies
        (`loss` minus `other`), the intervals `low`, `high` over seeds and `test_low`, `test_high` over test images,
        `effect_size`, `p`, `p_holm` (Holm's correction over the pairs of the data set and batch size) and
        `p_sign_flip`; see `paired_test`.
    """
    family = ["dataset", "batch_size"]
    rows = []
    for key, group in runs.groupby(family):
        measured = group[group["value"].notna()]
        by_seed = measured.set_index(["seed", "loss"])["value"].unstack("loss")  # noqa: PD010, pivot_table would average
        images = float(measured["images"].min())
        for pair in itertools.combinations([loss for loss in order if loss in set(group["loss"])], 2):
            both = by_seed.reindex(columns=list(pair)).dropna()
            first, second = both[pair[0]], both[pair[1]]
            test = paired_test(first, second)
            on_images = difference_interval(float(first.mean()), float(second.mean()), images)
            numbers = (test.n, test.difference, *test.interval, *on_images, test.effect_size, test.p, math.nan)
            rows.append((*key, *pair, *numbers, test.p_sign_flip))
    intervals = ["low", "high", "test_low", "test_high"]
    columns = [*family, "loss", "other", "n", "difference", *intervals, "effect_size", "p", "p_holm", "p_sign_flip"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = table.groupby(family)["p"].transform(holm)
    return table
