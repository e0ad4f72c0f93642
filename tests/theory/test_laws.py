"""Exact deviations against quadrature over the law of the cosine, against samples, and at the two ends of the range."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from dhel_kcl.metrics import uniformity, wasserstein_uniformity
from dhel_kcl.theory import deviation
from dhel_kcl.theory.laws import LAWS, Law, sample


def ideal_cdf(d: int, x: float) -> float:
    return float(beta((d - 1) / 2, (d - 1) / 2).cdf((x + 1) / 2))


def cosine_cdf(law: Law, d: int, parameter: float, x: float) -> float:
    if law == "sub_sphere":
        return ideal_cdf(int(parameter), x)
    share = parameter**2
    collapsed = 0.0 if law == "point" else 0.5
    return share * collapsed + (1 - share) * ideal_cdf(d, x)


@pytest.mark.parametrize(
    ("law", "d", "parameter"),
    [("sub_sphere", 8, 3), ("sub_sphere", 16, 8), ("point", 8, 0.4), ("antipodes", 8, 0.7), ("antipodes", 5, 1.0)],
)
def test_w1_is_the_integral_of_the_difference_of_the_distribution_functions(law: Law, d: int, parameter: float) -> None:
    def difference(x: float) -> float:
        return abs(cosine_cdf(law, d, parameter, x) - ideal_cdf(d, x))

    expected = sum(quad(difference, *ends, limit=200)[0] for ends in ((-1, 0), (0, 1)))
    assert deviation(law, d, parameter).wasserstein == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("d", [4, 16])
def test_the_uniformity_of_a_sub_sphere_is_the_mean_gaussian_over_the_angle(d: int) -> None:
    def weighted(angle: float) -> float:
        return math.exp(4 * (math.cos(angle) - 1)) * math.sin(angle) ** (d - 2)

    mean = quad(weighted, 0, math.pi)[0] / quad(lambda angle: math.sin(angle) ** (d - 2), 0, math.pi)[0]
    assert deviation("sub_sphere", 32, d).uniformity == pytest.approx(math.log(mean), rel=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_metrics_of_a_sample_are_near_the_exact_values(law: Law, place: int) -> None:
    parameter = (4, 6, 8)[place] if law == "sub_sphere" else (0.2, 0.5, 0.9)[place]
    x, exact = sample(law, 8, parameter, 1024, seed=3), deviation(law, 8, parameter)
    assert x.shape == (1024, 8)
    assert np.linalg.norm(x, axis=1) == pytest.approx(1)
    assert wasserstein_uniformity(x) == pytest.approx(exact.wasserstein, abs=0.01)
    assert uniformity(x) == pytest.approx(exact.uniformity, abs=0.05)


def test_the_uniform_law_has_no_deviation_and_collapse_the_largest() -> None:
    uniform = deviation("sub_sphere", 16, 16)
    assert uniform.wasserstein == 0
    assert deviation("point", 16, 0.0) == pytest.approx(uniform)
    assert deviation("antipodes", 16, 0.0) == pytest.approx(uniform)
    assert deviation("point", 16, 1.0) == pytest.approx((1, 0))


def test_which_measure_rates_a_deviation_lower_depends_on_the_law() -> None:
    """As shares of their ranges, uniformity is below W1 on a wide sub-sphere and above it on a collapsed share."""
    lowest = deviation("sub_sphere", 128, 128).uniformity
    wide, collapsed = deviation("sub_sphere", 128, 64), deviation("point", 128, 0.2)
    assert 1 - wide.uniformity / lowest < 0.8 * wide.wasserstein
    assert 1 - collapsed.uniformity / lowest > 2 * collapsed.wasserstein


@pytest.mark.parametrize(
    ("law", "d", "parameter", "said"),
    [
        ("line", 3, 0.5, "unknown law 'line'; there are sub_sphere, point, antipodes"),
        ("point", 1, 0.5, "needs d >= 2 dimensions, got 1"),
        ("sub_sphere", 3, 4, "from 2 to 3 dimensions, got 4"),
        ("sub_sphere", 3, 2.5, "from 2 to 3 dimensions, got 2.5"),
        ("antipodes", 3, 1.5, "a share lies in"),
    ],
)
def test_what_is_no_law_is_refused(law: Law, d: int, parameter: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        deviation(law, d, parameter)
    with pytest.raises(ValueError, match=said):
        sample(law, d, parameter, 10, 0)
