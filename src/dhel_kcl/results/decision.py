"""The rule that turns contrasts into verdicts: one Holm family, and intervals that decide what the verdicts say.

A *hypothesis* is a claim about one loss on one data set; it has one contrast for each baseline, positive where the
claim holds. It is

- *supported* if it holds against each baseline (intersection-union: nothing is picked, and nothing needs correcting);
- *contradicted* if it fails against at least one (Bonferroni's correction over the baselines);
- *equivalent* if each interval lies between minus and plus the smallest effect of interest;
- *inconclusive* otherwise.

A claim of *no effect* is supported if the interval lies between minus and plus the smallest effect, contradicted if it
lies outside, and otherwise inconclusive.

The two directions of all hypotheses of a family are tested together by Holm's method at `alpha`, so that in at most
`alpha` of all studies a family has a wrong direction. Equivalence is tested at Bonferroni's level, the first step of
Holm's. Each end of an interval has the level at which it decides, so interval and verdict cannot disagree: a
rejected hypothesis has the level of Holm's last step, the others that of the first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SUPPORTED, CONTRADICTED, EQUIVALENT, INCONCLUSIVE, NOT_RUN = (
    *("supported", "contradicted", "equivalent", "inconclusive"),
    "not run",
)
STATES = (SUPPORTED, EQUIVALENT, INCONCLUSIVE, CONTRADICTED, NOT_RUN)
"""The states of a claim, in the order of legends."""


@dataclass(frozen=True)
class Contrasts:
    """The contrasts of one family, (n,) each; those of a hypothesis have the same number, and numbers count from 0.

    Attributes:
        estimate: positive where the claim holds; NaN if the contrast cannot be estimated.
        standard_error: of the estimate; NaN if it is not known, as with one seed.
        degrees: degrees of freedom of the standard error.
        hypothesis: the number of the contrast's hypothesis.
        smallest: the smallest effect of interest; NaN if there is none, then nothing is equivalent.
        no_effect: whether the claim is that there is no effect.
    """

    estimate: Floats
    standard_error: Floats
    degrees: Floats
    hypothesis: Integers
    smallest: Floats
    no_effect: NDArray[np.bool_]


@dataclass(frozen=True)
class Decisions:
    """What follows from the contrasts of a family.

    Attributes:
        low: (n,) lower ends of the intervals.
        high: (n,) upper ends.
        error_low: (n,) the probability that the truth is below the lower end.
        error_high: (n,) the probability that the truth is above the upper end.
        against: (n,) the state of each contrast by itself, by its interval.
        p: (hypotheses,) two-sided p-value; NaN if the hypothesis cannot be tested.
        p_holm: (hypotheses,) the same, corrected for the family.
        state: (hypotheses,) one of `STATES`, except `NOT_RUN`.
    """

    low: Floats
    high: Floats
    error_low: Floats
    error_high: Floats
    against: NDArray[np.str_]
    p: Floats
    p_holm: Floats
    state: NDArray[np.str_]


def decide(family: Contrasts, alpha: float, corrected: bool = True) -> Decisions:
    """Judge the hypotheses of a family.

    A hypothesis of which some contrast is not known can be contradicted by the others, but not supported.

    Args:
        family: the contrasts.
        alpha: the probability of an error, over the family or, if it is not `corrected`, for each hypothesis.
        corrected: whether to correct for the number of hypotheses; exploratory comparisons are not.
    """
    number = int(family.hypothesis.max()) + 1 if len(family.hypothesis) else 0
    known = np.isfinite(family.standard_error) & (family.standard_error > 0) & (family.degrees > 0)
    error, degrees = np.where(known, family.standard_error, 1.0), np.where(known, family.degrees, 1.0)

    def below(point: Floats | float) -> Floats:
        """Return the one-sided p-value of the hypothesis that the effect is not below a point."""
        return np.where(known, stats.t.cdf((family.estimate - point) / error, degrees), 1.0)

    def above(point: Floats | float) -> Floats:
        return np.where(known, stats.t.sf((family.estimate - point) / error, degrees), 1.0)

    small = np.where(np.isnan(family.smallest), 0.0, family.smallest)
    inside = np.maximum(below(small), above(-small))
    outside = np.minimum(above(small), below(-small))
    size = np.bincount(family.hypothesis[known], minlength=number)
    # A claim of no effect can fail on two sides, and so counts as two baselines; its interval has two equal tails.
    tails_low = np.where(family.no_effect, 2, 1)
    tails_high = np.where(family.no_effect, 2, np.maximum(size, 1)[family.hypothesis])
    holds = _of_each(np.maximum, np.where(family.no_effect, 2 * inside, above(0.0)), family.hypothesis, number)
    fails = _of_each(
        np.minimum, np.where(family.no_effect, outside, below(0.0)) * tails_high, family.hypothesis, number
    )
    testable = size > 0
    p = np.where(testable, np.minimum(1, 2 * np.minimum(holds, fails)), np.nan)
    p_holm = p.copy()
    rejected = np.zeros(number, dtype=bool)
    count = int(testable.sum())
    first = last = alpha
    if count and corrected:
        rejected[testable], p_holm[testable], *_ = multipletests(p[testable], alpha, method="holm")
        first, last = alpha / count, alpha / max(1, count - int(rejected.sum()))
    elif count:
        rejected[testable] = p[testable] <= alpha
    level = np.where(rejected, last, first)[family.hypothesis] / 2
    error_low, error_high = level / tails_low, level / tails_high
    nothing = np.where(known, 0.0, np.nan)
    low = family.estimate - error * stats.t.isf(error_low, degrees) + nothing
    high = family.estimate + error * stats.t.isf(error_high, degrees) + nothing
    within = (low > -family.smallest) & (high < family.smallest)
    against = _by_interval(low, high, within, family)

    def all_of(contrasts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray(_of_each(np.minimum, contrasts.astype(float), family.hypothesis, number) == 1)

    failed = ~all_of(against != CONTRADICTED)
    equivalent = all_of(within & ~family.no_effect)
    states = [CONTRADICTED, SUPPORTED, EQUIVALENT]
    state = np.select([failed, all_of(against == SUPPORTED), equivalent], states, INCONCLUSIVE).astype("<U16")
    return Decisions(low, high, error_low + nothing, error_high + nothing, against, p, p_holm, state)


def _by_interval(low: Floats, high: Floats, inside: NDArray[np.bool_], family: Contrasts) -> NDArray[np.str_]:
    """Return the state of each contrast by its interval, which may lie `inside` the smallest effect on both sides."""
    outside = (low > family.smallest) | (high < -family.smallest)
    states = np.select([low > 0, high < 0, inside], [SUPPORTED, CONTRADICTED, EQUIVALENT], INCONCLUSIVE)
    of_none = np.select([inside, outside], [SUPPORTED, CONTRADICTED], INCONCLUSIVE)
    return np.where(family.no_effect, of_none, states).astype("<U16")


def _of_each(ufunc: np.ufunc, values: Floats, hypothesis: Integers, number: int) -> Floats:
    """Reduce values over the contrasts of each hypothesis."""
    result = np.full(number, -np.inf if ufunc is np.maximum else np.inf)
    ufunc.at(result, hypothesis, values)
    return result
