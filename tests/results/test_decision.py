"""The rule on contrasts given by hand: states, the family, and intervals that cannot disagree with them."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dhel_kcl.results.decision import CONTRADICTED, EQUIVALENT, INCONCLUSIVE, SUPPORTED, Contrasts, Decisions, decide


@pytest.fixture(autouse=True, scope="module")
def no_garbage_collection() -> Iterator[None]:
    """Statsmodels collects garbage at each correction, which takes 0.1 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)
        yield


def family(*hypotheses: list[float], error: float = 1.0, smallest: float = 1.0, no_effect: bool = False) -> Contrasts:
    """Contrasts with many degrees of freedom, by hypothesis."""
    values = np.array([value for each in hypotheses for value in each], dtype=float)
    return Contrasts(
        estimate=values,
        standard_error=np.where(np.isnan(values), np.nan, error),
        degrees=np.full(len(values), 1e6),
        hypothesis=np.repeat(np.arange(len(hypotheses)), [len(each) for each in hypotheses]),
        smallest=np.full(len(values), smallest),
        no_effect=np.full(len(values), no_effect),
    )


def state(*hypotheses: list[float], **how: float | bool) -> list[str]:
    return [*decide(family(*hypotheses, **how), 0.05).state]  # type: ignore[arg-type]


def test_support_needs_every_baseline_and_contradiction_one() -> None:
    assert state([3, 3, 3]) == [SUPPORTED]
    assert state([30, 30, 1]) == [INCONCLUSIVE]
    assert state([30, 30, -3]) == [CONTRADICTED]
    assert state([2.0]) == [SUPPORTED]
    assert state([-2.0]) == [CONTRADICTED]
    assert state([-2.0, 0, 0]) == [INCONCLUSIVE], "one of three is lower by chance"


def test_equivalence_needs_every_interval_within_the_smallest_effect() -> None:
    assert state([0.1, -0.1], smallest=3) == [EQUIVALENT]
    assert state([0.1, 2.0], smallest=3) == [INCONCLUSIVE]
    assert state([0.1, 2.5], smallest=6) == [EQUIVALENT], "better than one of two, by less than matters"
    assert state([0.1, -0.1], smallest=math.nan) == [INCONCLUSIVE]
    assert state([3.0], smallest=9) == [SUPPORTED], "small, but there"


def test_a_claim_of_no_effect_is_supported_within_and_contradicted_outside_the_smallest_effect() -> None:
    assert state([0.5], smallest=4, no_effect=True) == [SUPPORTED]
    assert state([9.0], smallest=4, no_effect=True) == [CONTRADICTED]
    assert state([-9.0], smallest=4, no_effect=True) == [CONTRADICTED]
    assert state([4.0], smallest=4, no_effect=True) == [INCONCLUSIVE]


def test_an_unknown_contrast_prevents_support_but_not_contradiction() -> None:
    assert state([9, math.nan]) == [INCONCLUSIVE]
    assert state([-9, math.nan]) == [CONTRADICTED]
    nothing = decide(family([math.nan]), 0.05)
    assert (nothing.state.tolist(), np.isnan(nothing.p_holm).all()) == ([INCONCLUSIVE], True)


def test_the_family_is_corrected_by_holms_method_and_untestable_hypotheses_do_not_count() -> None:
    made = decide(family([3.0], [2.5], [2.1], [math.nan]), 0.05)
    p = 2 * stats.norm.sf([3.0, 2.5, 2.1])
    assert made.p[:3] == pytest.approx(p, rel=1e-3)
    assert made.p_holm[:3] == pytest.approx(p * [3, 2, 1], rel=1e-3)
    assert decide(family([2.1]), 0.05).state.tolist() == [SUPPORTED]
    assert decide(family([2.1], [0.0]), 0.05).state.tolist() == [INCONCLUSIVE, INCONCLUSIVE]
    assert decide(family([2.1], [0.0]), 0.05, corrected=False).state.tolist() == [SUPPORTED, INCONCLUSIVE]


def test_the_ends_of_an_interval_have_the_level_at_which_they_decide() -> None:
    made = decide(family([0.0, 0.0, 0.0], [0.0]), 0.05)
    assert made.error_low == pytest.approx([0.05 / 2 / 2] * 4), "two hypotheses"
    assert made.error_high == pytest.approx([0.05 / 2 / 2 / 3] * 3 + [0.05 / 2 / 2]), "and three baselines"
    assert made.high[0] == pytest.approx(stats.norm.isf(0.05 / 12), rel=1e-3)


def by_interval(made: Decisions, contrasts: Contrasts, number: int) -> str:
    own = contrasts.hypothesis == number
    low, high, smallest = made.low[own], made.high[own], contrasts.smallest[own]
    if (low > 0).all():
        return SUPPORTED
    if (high < 0).any():
        return CONTRADICTED
    return EQUIVALENT if ((low > -smallest) & (high < smallest)).all() else INCONCLUSIVE


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.floats(-6, 6), min_size=1, max_size=3), min_size=1, max_size=6), st.floats(0.1, 6))
def test_interval_verdict_and_corrected_p_never_disagree(hypotheses: list[list[float]], smallest: float) -> None:
    contrasts = family(*hypotheses, smallest=smallest)
    made = decide(contrasts, 0.05)
    for number, said in enumerate(made.state):
        assert said == by_interval(made, contrasts, number)
        assert (said in (SUPPORTED, CONTRADICTED)) == (made.p_holm[number] <= 0.05)
