"""Spectrum, rank and effective rank: definitions and closed forms."""

import math

import numpy as np
import pytest
import torch

from dhel_kcl.metrics import effective_rank, rank, singular_values


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


def test_rank_counts_above_the_threshold_and_ignores_the_mean() -> None:
    x = np.concatenate((np.diag([1.0, 1e-2, 1e-6]), -np.diag([1.0, 1e-2, 1e-6]))) + 5
    assert [rank(x, tol) for tol in (1.0, 1e-3, 1e-5, 1e-20)] == [0, 1, 2, 3]
    assert rank(np.ones((5, 3))) == 0


@pytest.mark.parametrize("tol", [-1, math.nan])
def test_rank_threshold_is_not_negative(tol: float) -> None:
    with pytest.raises(ValueError, match="tol must be at least 0"):
        rank(of_rank(2), tol)


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
