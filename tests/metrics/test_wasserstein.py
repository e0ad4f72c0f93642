"""Wasserstein uniformity is the exact W1 distance to the ideal law, whatever the dimension."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from dhel_kcl.metrics import wasserstein_uniformity


def ideal_law(d: int):
    return stats.beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)


def by_sorting_all_pairs(u: np.ndarray, points: int = 2_000_001) -> float:
    """The integral of |F_emp - F_ideal| on a dense grid, F_emp from all sorted similarities."""
    unit = u / np.linalg.norm(u, axis=1, keepdims=True)
    similarity = np.sort(np.clip((unit @ unit.T)[np.triu_indices(len(u), k=1)], -1, 1))
    grid = np.linspace(-1, 1, points)
    empirical = np.searchsorted(similarity, grid, side="right") / len(similarity)
    return float(integrate.trapezoid(np.abs(empirical - ideal_law(u.shape[1]).cdf(grid)), grid))


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize(
    "u",
    [
        normal(2, 5),
        normal(50, 2),
        normal(300, 3),
        normal(600, 128),
        normal(400, 16) + 0.5,
        normal(400, 16) * np.linspace(0.01, 1, 16),
        np.repeat(normal(10, 8), 30, axis=0),
        np.eye(64),
        np.eye(64) - 1 / 64,
    ],
    ids=[
        "one pair",
        "d = 2",
        "d = 3",
        "uniform d = 128",
        "shifted",
        "anisotropic",
        "clusters",
        "orthonormal",
        "simplex",
    ],
)
def test_equals_the_integral_over_all_sorted_pairs(u: np.ndarray) -> None:
    assert wasserstein_uniformity(u) == pytest.approx(by_sorting_all_pairs(u), abs=1e-5)


@pytest.mark.parametrize("d", [2, 3, 17, 512])
def test_collapse_is_at_distance_one(d: int) -> None:
    assert wasserstein_uniformity(np.ones((300, d))) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("d", [2, 3, 17, 512])
def test_orthonormal_rows_are_at_the_mean_absolute_similarity(d: int) -> None:
    expected = ideal_law(d).expect(np.abs) if d > 2 else 2 / np.pi
    assert wasserstein_uniformity(np.eye(d)) == pytest.approx(expected, rel=1e-6)


def test_approaches_zero_as_uniform_samples_grow() -> None:
    few, many = (wasserstein_uniformity(normal(n, 8)) for n in (50, 2000))
    assert many < few / 10
    assert many < 1e-3


def test_norms_rotation_and_container_change_nothing_and_the_value_repeats() -> None:
    u = normal(300, 6) + 0.3
    value = wasserstein_uniformity(u)
    assert wasserstein_uniformity(u) == value
    rotation = np.linalg.qr(normal(6, 6))[0]
    scaled = torch.from_numpy(u @ rotation * np.logspace(-3, 3, 300)[:, None])
    assert wasserstein_uniformity(scaled) == pytest.approx(value, abs=1e-6)


def test_never_holds_all_pairs() -> None:
    u = normal(6000, 8)
    tracemalloc.start()
    wasserstein_uniformity(u)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 / 2 * 8 / 2


def test_one_dimension_has_no_ideal_law() -> None:
    with pytest.raises(ValueError, match="d >= 2, got 1"):
        wasserstein_uniformity(np.ones((5, 1)))
