"""Alignment and uniformity: closed forms, plain loops, and what they do not depend on."""

import math

import numpy as np
import pytest
import torch

from dhel_kcl.metrics import alignment, uniformity


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def normalised(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_alignment_of_identical_opposite_and_orthogonal_views() -> None:
    u = random(5, 4)
    assert alignment(u, 3 * u) == pytest.approx(0, abs=1e-30)
    assert alignment(u, -u) == pytest.approx(4)
    assert alignment(u, -u, alpha=3) == pytest.approx(8)
    assert alignment(np.eye(4), np.eye(4)[::-1]) == pytest.approx(2)


@pytest.mark.parametrize("alpha", [0.5, 1, 2])
def test_alignment_is_the_mean_distance_to_the_power_alpha(alpha: float) -> None:
    u, v = random(7, 3), random(7, 3, seed=1)
    distances = [math.dist(a, b) for a, b in zip(normalised(u), normalised(v), strict=True)]
    assert alignment(u, v, alpha) == pytest.approx(sum(r**alpha for r in distances) / 7, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (7, 2), (255, 5), (256, 5), (257, 5), (600, 3)])
@pytest.mark.parametrize("t", [0.5, 2])
def test_uniformity_is_the_log_mean_over_pairs(n: int, d: int, t: float) -> None:
    u = random(n, d)
    distances = torch.pdist(torch.from_numpy(normalised(u)))
    assert uniformity(u, t) == pytest.approx(float((-t * distances.square()).exp().mean().log()), rel=1e-10)


def test_uniformity_of_collapsed_opposite_and_orthonormal_embeddings() -> None:
    assert uniformity(np.ones((300, 4))) == pytest.approx(0, abs=1e-12)
    assert uniformity(np.array([[1.0, 0], [-2, 0]])) == pytest.approx(-8)
    assert uniformity(np.eye(300)) == pytest.approx(-4)
    assert uniformity(np.eye(300), t=3) == pytest.approx(-6)


def test_uniformity_does_not_underflow() -> None:
    assert uniformity(np.eye(300), t=1e5) == pytest.approx(-2e5)


def test_norms_order_and_container_change_nothing() -> None:
    u, v = random(300, 4).astype(np.float32), random(300, 4, seed=1).astype(np.float32)
    scaled = torch.from_numpy(u * np.logspace(-3, 3, 300, dtype=np.float32)[:, None]).requires_grad_()
    order = np.random.default_rng(0).permutation(300)
    for x in (scaled, u[order]):
        assert uniformity(x) == pytest.approx(uniformity(u), rel=1e-6)
    assert alignment(scaled, torch.from_numpy(v)) == pytest.approx(alignment(u, v), rel=1e-6)
    assert uniformity(torch.from_numpy(u).bfloat16()) == pytest.approx(uniformity(u), rel=1e-2)
    assert type(alignment(u, v)) is type(uniformity(u)) is float


def test_bad_parameters_and_shapes() -> None:
    u = random(5, 4)
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be a positive finite number"):
            alignment(u, u, alpha=value)
        with pytest.raises(ValueError, match="t must be a positive finite number"):
            uniformity(u, t=value)
    with pytest.raises(ValueError, match="one shape"):
        alignment(u, u[:4])
