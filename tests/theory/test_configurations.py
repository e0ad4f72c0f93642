"""Simplex and cross-polytope."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhel_kcl.theory import cross_polytope, simplex


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 40), st.data())
def test_every_two_points_of_a_simplex_have_the_cosine_minus_one_over_m_minus_one(d: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(2, d + 1))
    points = simplex(m, d)
    assert points.shape == (m, d)
    assert points.dtype == torch.float64
    expected = torch.full((m, m), -1 / (m - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(points @ points.T, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("d", [1, 2, 5, 16])
def test_a_cross_polytope_is_d_orthogonal_pairs_of_antipodes(d: int) -> None:
    points = cross_polytope(d)
    assert points.shape == (2 * d, d)
    assert points.dtype == torch.float64
    antipodes = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert torch.equal(points @ points.T, torch.block_diag(*[antipodes] * d))


@pytest.mark.parametrize(("m", "d"), [(1, 3), (5, 3), (0, 1), (-1, 2)])
def test_a_simplex_that_does_not_fit_is_refused(m: int, d: int) -> None:
    with pytest.raises(ValueError, match=f"simplex of {m} points in {d} dimensions .* 2 <= m <= d"):
        simplex(m, d)


def test_a_cross_polytope_without_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 dimension, got 0"):
        cross_polytope(0)
