"""The large-batch limit against quadrature, closed forms on the sphere in three dimensions, and the losses."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from loss_configs import ALL, TEMPERATURE, LossConfig, name_of
from scipy.special import logsumexp

from dhel_kcl.losses import build_loss
from dhel_kcl.theory import asymptote, growth


def log_mean(log_function: Callable[[np.ndarray], np.ndarray], d: int) -> float:
    """Logarithm of the mean of exp(log_function(x.y)) over the sphere: midpoint rule over the angle, in logarithms."""
    n = 200_000
    angle = (np.arange(n) + 0.5) * math.pi / n
    log_density = (d - 2) * np.log(np.sin(angle))
    return float(logsumexp(log_function(np.cos(angle)) + log_density) - logsumexp(log_density))


@pytest.mark.parametrize("d", [2, 3, 4, 16, 128, 2048])
@pytest.mark.parametrize("temperature", [0.001, 0.05, 0.5, 5.0])
@pytest.mark.parametrize(
    ("options", "energies"),
    [
        ({"name": "infonce"}, 1),
        ({"name": "ntxent"}, 1),
        ({"name": "dcl"}, 1),
        ({"name": "dhel"}, 2),
        ({"name": "dhel", "both_views": False}, 1),
    ],
    ids=name_of,
)
def test_softmax_losses_match_quadrature(options: LossConfig, energies: int, temperature: float, d: int) -> None:
    expected = -1 / temperature + energies * log_mean(lambda x: x / temperature, d)
    assert asymptote({**options, "temperature": temperature}, d) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.3, 2.0])
def test_in_three_dimensions_the_mean_exponential_is_a_hyperbolic_sine(temperature: float) -> None:
    a = 1 / temperature
    log_mean_exp = a + math.log1p(-math.exp(-2 * a)) - math.log(2 * a)
    assert asymptote({"name": "infonce", "temperature": temperature}, 3) == pytest.approx(-a + log_mean_exp, rel=1e-12)
    assert asymptote({"name": "dhel", "temperature": temperature}, 3) == pytest.approx(-a + 2 * log_mean_exp, rel=1e-12)


@pytest.mark.parametrize("d", [2, 3, 16, 128, 2048])
@pytest.mark.parametrize(
    ("kernel", "at_zero", "radial"),
    [
        ({"kernel": "gaussian", "t": 0.5}, 1, lambda r2: np.exp(-0.5 * r2)),
        ({"kernel": "gaussian", "t": 30.0}, 1, lambda r2: np.exp(-30 * r2)),
        ({"kernel": "log", "t": 8.0}, 0, lambda r2: -np.log(1 + 8 * r2)),
        ({"kernel": "imq", "c": 0.1}, 1, lambda r2: 0.1 / np.sqrt(0.01 + r2)),
        ({"kernel": "riesz", "s": -1.0}, 0, lambda r2: -np.sqrt(r2)),
        ({"kernel": "gaussian_riesz", "s": 0.5}, 1, lambda r2: r2**-0.25),
    ],
    ids=name_of,
)
def test_kernel_losses_match_quadrature(
    kernel: LossConfig, at_zero: float, radial: Callable[[np.ndarray], np.ndarray], d: int
) -> None:
    mean = math.copysign(1, radial(np.array(1.0))) * math.exp(log_mean(lambda x: np.log(np.abs(radial(2 - 2 * x))), d))
    config = {"name": "kcl", **kernel, "gamma": 3.0}
    singular = kernel["kernel"] == "gaussian_riesz" and d == 2
    assert asymptote(config, d) == pytest.approx(-2 * at_zero + 6 * mean, rel=1e-2 if singular else 1e-6)


@pytest.mark.parametrize(
    ("kernel", "at_zero", "mean"),
    [
        ({"kernel": "gaussian", "t": 2.0}, 1, -math.expm1(-8) / 8),
        ({"kernel": "log", "t": 2.0}, 0, -(9 * math.log(9) - 8) / 8),
        ({"kernel": "imq", "c": 1.5}, 1, 1.5 * (math.hypot(1.5, 2) - 1.5) / 2),
        ({"kernel": "riesz", "s": -1.0}, 0, -4 / 3),
        ({"kernel": "gaussian_riesz", "s": 1.0}, 1, 1.0),
    ],
    ids=name_of,
)
def test_in_three_dimensions_the_squared_distance_is_uniform(kernel: LossConfig, at_zero: float, mean: float) -> None:
    config = {"name": "kcl", **kernel, "gamma": 0.7}
    assert asymptote(config, 3) == pytest.approx(-2 * at_zero + 1.4 * mean, rel=1e-12)


def test_the_reference_weighting_halves_the_energy_of_the_log_kernel() -> None:
    config = {"name": "kcl", "kernel": "log", "t": 2.0, "gamma": 3.0}
    assert asymptote({**config, "reference_weighting": True}, 8) == asymptote({**config, "gamma": 1.5}, 8)


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_the_loss_of_a_large_batch_is_near_it(config: LossConfig) -> None:
    m, d = 2000, 8
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(4):
        z = torch.randn(m, d, generator=generator, dtype=torch.float64)
        losses.append(build_loss(config)(z, z).item() - growth(config, m))
    assert np.mean(losses) == pytest.approx(asymptote(config, d), rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("m", [2, 5, 1000])
@pytest.mark.parametrize("config", TEMPERATURE, ids=name_of)
def test_less_growth_a_batch_of_one_repeated_pair_has_the_same_loss_at_every_size(config: LossConfig, m: int) -> None:
    z = torch.ones(m, 3, dtype=torch.float64)
    energies = 2 if config["name"] == "dhel" and config.get("both_views", True) else 1
    expected = (energies - 1) / config["temperature"]
    assert build_loss(config)(z, z).item() - growth(config, m) == pytest.approx(expected, abs=1e-12)


def test_kernel_losses_do_not_grow() -> None:
    assert growth({"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 1.0}, 64) == 0


@pytest.mark.parametrize(
    ("config", "d", "said"),
    [
        ({"name": "dhel", "temperature": 0.3}, 1, "needs d >= 2 dimensions, got 1"),
        ({"name": "dhel", "temperature": 0}, 3, "temperature must be a positive finite number"),
        ({"name": "kcl", "kernel": "riesz", "s": 0.5, "gamma": 1.0}, 8, "s = 0.5 > 0 has no minimum"),
        ({"name": "kcl", "kernel": "gaussian_riesz", "s": 2.0, "gamma": 1.0}, 3, "is infinite; use s < d - 1"),
    ],
)
def test_what_has_no_limit_is_refused(config: LossConfig, d: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asymptote(config, d)


def test_the_growth_of_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 positive pairs, got 1"):
        growth({"name": "dhel", "temperature": 0.3}, 1)
