"""Spectrum, rank and effective rank: definitions and closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dhel_kcl.metrics import centred_effective_rank, effective_rank, participation_ratio, rank, singular_values

Metric = Callable[..., float]


def of_rank(r: int, n: int = 60, d: int = 12) -> np.ndarray:
    generator = np.random.default_rng(r)
    return generator.standard_normal((n, r)) @ generator.standard_normal((r, d))


@pytest.mark.parametrize(("n", "d"), [(2, 5), (60, 12), (5, 12)])
def test_singular_values_are_those_of_the_covariance(n: int, d: int) -> None:
    x = np.random.default_rng(0).standard_normal((n, d)) + 3
    values = singular_values(x)
    assert values.shape == (d,)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values, np.linalg.svd(np.cov(x.T), compute_uv=False), atol=1e-12)
    np.testing.assert_allclose(singular_values(torch.from_numpy(x)), values)


@pytest.mark.parametrize("r", [1, 4, 12])
def test_rank_of_a_rank_r_matrix(r: int) -> None:
    assert rank(of_rank(r)) == r
    assert type(rank(of_rank(r))) is int


def both_signs(*spreads: float) -> np.ndarray:
    """Points of mean zero whose standard deviations along the axes are proportional to `spreads`."""
    return np.concatenate((np.diag(spreads), -np.diag(spreads)))


def test_rank_counts_variances_above_a_share_of_the_largest() -> None:
    x = both_signs(1.0, 1e-2, 1e-6)
    assert [rank(x, rtol) for rtol in (0.5, 1e-5, 1e-11, 1e-13)] == [1, 2, 2, 3]
    assert rank(both_signs(1.0, 4e-3, 3e-3)) == 2, "1e-5 is the square of 3.16e-3"


@pytest.mark.parametrize("r", [1, 3, 7])
def test_rank_without_a_tolerance_is_that_of_the_centred_matrix(r: int) -> None:
    x = of_rank(r) + 3
    assert rank(x, rtol=0) == np.linalg.matrix_rank(x - x.mean(axis=0)) == r


@pytest.mark.parametrize("rtol", [-1, 1, math.nan])
def test_rank_threshold_is_a_share(rtol: float) -> None:
    with pytest.raises(ValueError, match="rtol must be at least 0 and below 1"):
        rank(of_rank(2), rtol)


OF_THE_SPREAD = [rank, participation_ratio, centred_effective_rank]
ids = [metric.__name__ for metric in OF_THE_SPREAD]


@pytest.mark.parametrize("metric", OF_THE_SPREAD, ids=ids)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_equal_variances_count_as_k_dimensions(metric: Metric, k: int) -> None:
    x = both_signs(*[1.0] * k, *[0.0] * (6 - k))
    assert metric(x) == pytest.approx(k, rel=1e-12)
    assert metric(torch.from_numpy(x).float()) == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("metric", OF_THE_SPREAD, ids=ids)
@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e9, 1e200])
def test_neither_scale_nor_mean_nor_rotation_changes_the_spread(metric: Metric, scale: float) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 6)) * np.geomspace(1, 1e-2, 6)
    turn, _ = np.linalg.qr(random.standard_normal((6, 6)))
    assert metric(scale * (x + 7)) == pytest.approx(metric(x), rel=1e-9)
    assert metric(x @ turn) == pytest.approx(metric(x), rel=1e-9)
    assert metric(x[::-1]) == pytest.approx(metric(x), rel=1e-9)


@pytest.mark.parametrize("metric", OF_THE_SPREAD, ids=ids)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-300, 1e300])
def test_equal_rows_use_no_dimension(metric: Metric, value: float) -> None:
    assert metric(np.full((17, 3), value)) == 0
    assert metric(np.tile([value, 0.3, -0.7], (1000, 1))) == 0


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6], ids="smallest column {:g}".format)
@pytest.mark.parametrize("shape", [(50, 7), (7, 50)], ids=str)
def test_the_spread_is_as_its_definitions_say(shape: tuple[int, int], smallest: float) -> None:
    x = np.random.default_rng(0).standard_normal(shape) * np.geomspace(1, smallest, shape[1]) + 2
    variances = np.linalg.eigvalsh(np.cov(x.T))
    assert participation_ratio(x) == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-9)
    assert centred_effective_rank(x) == pytest.approx(effective_rank(x - x.mean(axis=0)), rel=1e-9)


def test_the_participation_ratio_of_a_known_spectrum() -> None:
    assert participation_ratio(both_signs(2.0, 1.0, 1.0)) == pytest.approx(36 / 18, rel=1e-12)  # variances 4 : 1 : 1


def test_a_large_mean_hides_the_other_dimensions_from_the_effective_rank_only() -> None:
    x = both_signs(1.0, 1.0, 1.0, 1.0) + 1000
    assert effective_rank(x) < 1.05
    assert centred_effective_rank(x) == pytest.approx(4, rel=1e-9)


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-5, 1e-12], ids="smallest column {:g}".format)
@pytest.mark.parametrize("shape", [(50, 7), (7, 50)], ids=str)
def test_effective_rank_is_the_exponential_of_the_entropy(shape: tuple[int, int], smallest: float) -> None:
    x = np.random.default_rng(0).standard_normal(shape) * np.geomspace(1, smallest, shape[1])
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()
    assert effective_rank(x) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_effective_rank_of_orthonormal_and_collapsed_rows(scale: float) -> None:
    assert effective_rank(scale * np.eye(9)) == pytest.approx(9, rel=1e-12)
    assert effective_rank(scale * np.eye(9, 20)) == pytest.approx(9, rel=1e-12)
    assert effective_rank(scale * np.ones((30, 9))) == pytest.approx(1, abs=1e-9)


def test_effective_rank_is_at_most_the_rank() -> None:
    assert 1 < effective_rank(of_rank(4)) <= 4 + 1e-9


def test_effective_rank_of_zeros_is_undefined() -> None:
    with pytest.raises(ValueError, match="all-zero"):
        effective_rank(torch.zeros(5, 3))
