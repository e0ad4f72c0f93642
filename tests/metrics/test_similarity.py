"""The measured and the ideal law of pairwise similarities."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from dhel_kcl.metrics import ideal_similarity_density, similarity_histogram


@pytest.mark.parametrize("n", [2, 256, 300])
def test_histogram_equals_numpy_on_all_pairs(n: int) -> None:
    u = np.random.default_rng(0).standard_normal((n, 3))
    unit = u / np.linalg.norm(u, axis=1, keepdims=True)
    similarity = (unit @ unit.T)[np.triu_indices(n, k=1)]
    density, edges = np.histogram(similarity, bins=40, range=(-1, 1), density=True)
    ours = similarity_histogram(torch.from_numpy(u), bins=40)
    np.testing.assert_allclose(ours[0], edges, atol=1e-15)
    np.testing.assert_allclose(ours[1], density, atol=1e-12)


def test_histogram_counts_the_ends() -> None:
    edges, density = similarity_histogram(np.array([[1.0, 1, 1], [1, 1, 1], [-1, -1, -1]]), bins=4)
    np.testing.assert_allclose(edges, [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(density, [4 / 3, 0, 0, 2 / 3])


def test_histogram_of_uniform_embeddings_follows_the_ideal_density() -> None:
    u = np.random.default_rng(0).standard_normal((3000, 8))
    edges, density = similarity_histogram(u, bins=20)
    middle = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(density, ideal_similarity_density(middle, 8), atol=0.02)


def test_histogram_needs_a_bin() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1"):
        similarity_histogram(np.eye(3), bins=0)


@pytest.mark.parametrize("d", [2, 3, 4, 128, 4096])
def test_ideal_density_is_the_beta_law_on_minus_one_to_one(d: int) -> None:
    x = np.linspace(-0.99, 0.99, 101)
    shape = (d - 1) / 2
    expected = stats.beta(shape, shape, loc=-1, scale=2).pdf(x)
    np.testing.assert_allclose(ideal_similarity_density(x, d), expected, rtol=1e-8, atol=1e-300)
    assert integrate.quad(ideal_similarity_density, -1, 1, args=(d,), points=[0])[0] == pytest.approx(1, abs=1e-6)


def test_ideal_density_outside_and_at_the_ends() -> None:
    np.testing.assert_array_equal(ideal_similarity_density([-1.5, 1.5], 5), [0, 0])
    np.testing.assert_allclose(ideal_similarity_density([-1, 0, 1], 3), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(ideal_similarity_density([-1, 1], 2), [np.inf, np.inf])


def test_ideal_density_needs_two_dimensions() -> None:
    with pytest.raises(ValueError, match="d >= 2, got 1"):
        ideal_similarity_density(0.0, 1)
