"""The limit functional against its closed form at the uniform law and against random points of the law elsewhere."""

import math

import numpy as np
import pytest
from loss_configs import LossConfig, name_of
from scipy.special import logsumexp
from scipy.stats import vonmises_fisher

from dhel_kcl.theory import asymptote, limit_functional

TEMPERATURE: list[LossConfig] = [{"name": name, "temperature": 0.5} for name in ("infonce", "ntxent", "dcl", "dhel")]
KERNELS: list[LossConfig] = [
    {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 3.0},
    {"name": "kcl", "kernel": "log", "t": 2.0, "gamma": 1.0},
    {"name": "kcl", "kernel": "imq", "c": 1.0, "gamma": 1.0},
]
ALL = [*TEMPERATURE, *KERNELS]


@pytest.mark.parametrize("d", [3, 4, 16])
@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_without_concentration_it_is_the_asymptote(config: LossConfig, d: int) -> None:
    assert limit_functional(config, d, 0) == pytest.approx(asymptote(config, d), rel=1e-9)


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_the_uniform_law_has_the_least_and_it_rises_with_the_concentration(config: LossConfig) -> None:
    values = [limit_functional(config, 8, kappa) for kappa in (0, 0.5, 2, 8, 32)]
    assert np.diff(values).min() > 1e-4


@pytest.mark.parametrize("kappa", [1.0, 6.0])
@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_it_is_the_mean_over_random_points_of_the_law(config: LossConfig, kappa: float) -> None:
    x, y = vonmises_fisher(np.eye(4)[0], kappa, seed=1).rvs(6000).reshape(2, 3000, 4)
    cosines = x @ y.T
    if config["name"] == "kcl":
        r2 = 2 - 2 * cosines
        kernel = {"gaussian": np.exp(-2 * r2), "log": -np.log1p(2 * r2), "imq": 1 / np.sqrt(1 + r2)}[config["kernel"]]
        expected = -2 * (config["kernel"] != "log") + 2 * config["gamma"] * kernel.mean()
    else:
        inner = (logsumexp(2 * cosines, axis=1) - math.log(3000)).mean()
        expected = -2 + (2 if config["name"] == "dhel" else 1) * inner
    assert limit_functional(config, 4, kappa) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("kappa", [2.0, 32.0])
def test_the_gaussian_kernel_is_the_mean_of_an_exponential(kappa: float) -> None:
    """In three dimensions m(r) = sinh(r) / r, so one integral over the height is left."""
    t = 2.0

    def m(r: np.ndarray) -> np.ndarray:
        return np.sinh(r) / r

    heights, weights = np.polynomial.legendre.leggauss(200)
    density = weights * np.exp(kappa * (heights - 1))
    reach = np.sqrt(4 * t * t + kappa**2 + 4 * t * kappa * heights)
    mean = math.exp(-2 * t) * (density / density.sum()) @ (m(reach) / m(np.array(kappa)))
    assert limit_functional(KERNELS[0], 3, kappa) == pytest.approx(-2 + 6 * mean, rel=1e-8)


@pytest.mark.parametrize(
    ("d", "kappa", "said"), [(2, 1.0, "needs d >= 3 dimensions, got 2"), (3, -1.0, "concentration must be")]
)
def test_a_law_that_it_does_not_cover_is_refused(d: int, kappa: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        limit_functional(TEMPERATURE[0], d, kappa)
