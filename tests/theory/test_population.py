"""The mean loss over all mini-batches against a loop over the losses, and minimisers where they are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from loss_configs import ALL, LossConfig, name_of

from dhel_kcl.losses import build_loss
from dhel_kcl.theory import mean_over_batches, simplex
from dhel_kcl.theory.population import descend

SOFTMAX = [{"name": name, "temperature": 0.5} for name in ("infonce", "ntxent", "dcl", "dhel")]
GAUSSIAN = {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 1.0}


def views(n: int, d: int, seed: int = 0) -> torch.Tensor:
    z = torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_it_is_the_mean_over_every_combination_and_so_is_its_gradient(config: LossConfig, m: int) -> None:
    z, loss = views(6, 3).requires_grad_(), build_loss(config)
    batches = list(itertools.combinations(range(6), m))
    expected = torch.stack([loss(*z[:, list(batch)]) for batch in batches]).mean()
    (slope,) = torch.autograd.grad(expected, z)
    unit = z.detach().numpy()
    value, gradient = mean_over_batches(config, 6, m)(unit)
    assert value == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    tangent = gradient - (gradient * unit).sum(axis=-1, keepdims=True) * unit  # the losses normalise their inputs
    assert tangent == pytest.approx(slope.numpy(), abs=1e-11)


@pytest.mark.parametrize("m", [1, 7])
def test_a_batch_that_the_population_lacks_is_refused(m: int) -> None:
    with pytest.raises(ValueError, match=f"population of 6 pairs have 2 to 6 pairs, got {m}"):
        mean_over_batches(GAUSSIAN, 6, m)


@pytest.mark.parametrize(("m", "n"), [(2, 7), (4, 7), (7, 7)])
def test_a_batch_of_kcl_has_the_full_loss_on_average(m: int, n: int) -> None:
    z = views(n, 4).numpy()
    assert mean_over_batches(GAUSSIAN, n, m)(z)[0] == pytest.approx(mean_over_batches(GAUSSIAN, n, n)(z)[0], abs=1e-14)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dhel", lambda n: -(1 + 2 / (n - 1)) / 0.5), ("dcl", lambda n: math.log(2) - n / (n - 1) / 0.5)],
)
def test_two_aligned_pairs_depend_on_the_mean_only(name: str, expected: object) -> None:
    """A square, a rhombus and a bundle of antipodes have one loss, which no descent falls below."""
    assert callable(expected)
    loss = mean_over_batches({"name": name, "temperature": 0.5}, 6, 2)
    for angles in ([0, 1, 2, 3, 4, 5], [0, 0, 0, 3, 3, 3], [0, 0.3, 1, 3, 3.3, 4]):
        u = np.stack([(math.cos(a * math.pi / 3), math.sin(a * math.pi / 3)) for a in angles])
        assert np.abs(u.sum(axis=0)).max() < 1e-12
        assert loss(np.stack((u, u)))[0] == pytest.approx(expected(6), abs=1e-12)
    assert descend(loss, views(6, 2, seed=1).numpy(), 200).value == pytest.approx(expected(6), abs=1e-9)


@pytest.mark.parametrize("m", [3, 4])
@pytest.mark.parametrize("config", [*SOFTMAX, GAUSSIAN], ids=name_of)
def test_of_at_most_d_plus_1_pairs_every_batch_finds_the_simplex(config: LossConfig, m: int) -> None:
    ends = [descend(mean_over_batches(config, 4, m), views(4, 3, seed).numpy(), 300) for seed in range(4)]
    u, v = min(ends, key=lambda end: end.value).views
    ideal = simplex(4, 3).numpy()
    assert u @ u.T == pytest.approx(ideal @ ideal.T, abs=1e-4)
    assert u == pytest.approx(v, abs=1e-4)


def test_the_full_minimiser_of_ten_pairs_is_beaten_on_batches_of_three_but_not_of_five() -> None:
    """DHEL, N = 10, d = 4: regular pentagons in two orthogonal planes."""
    angles = np.arange(5) * 2 * math.pi / 5
    u = np.kron(np.eye(2), np.stack((np.cos(angles), np.sin(angles)), axis=1))
    config = {"name": "dhel", "temperature": 0.5}
    starts = [views(10, 4, seed).numpy() for seed in range(4)]
    lowest = {m: min(descend(mean_over_batches(config, 10, m), z, 300).value for z in starts) for m in (3, 5, 10)}
    here = {m: mean_over_batches(config, 10, m)(np.stack((u, u)))[0] for m in (3, 5, 10)}
    assert here[10] == pytest.approx(lowest[10], abs=1e-9)
    assert here[5] == pytest.approx(lowest[5], abs=1e-9)
    assert lowest[3] < here[3] - 1e-2
