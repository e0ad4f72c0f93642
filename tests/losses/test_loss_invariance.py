"""What a loss must not depend on: the order of images, a rotation, the norms, and (mostly) which view comes first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dhel_kcl.losses import DCL, DHEL, IMQ, KCL, Gaussian, GaussianRiesz, InfoNCE, Log, NTXent, PairLoss, Riesz

SYMMETRIC = [
    InfoNCE(0.2),
    NTXent(0.2),
    DCL(0.2),
    DHEL(0.2),
    *(KCL(kernel, 16.0) for kernel in (Gaussian(2.0), Log(1.0), IMQ(1.0), Riesz(1.0), Riesz(-1.0), GaussianRiesz(1.0))),
]
ONE_WAY = [InfoNCE(0.2, symmetric=False), DHEL(0.2, both_views=False)]
sizes = {"m": st.integers(2, 8), "d": st.integers(2, 6), "seed": st.integers(0, 2**31)}


def draw(m: int, d: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, m, d, generator=generator, dtype=torch.float64)
    return z1, z2, generator


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", SYMMETRIC, ids=str)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(**sizes)
def test_swapping_the_views_changes_nothing(loss: PairLoss, m: int, d: int, seed: int) -> None:
    z1, z2, _ = draw(m, d, seed)
    assert_same(loss(z2, z1), loss(z1, z2))


@pytest.mark.parametrize("loss", ONE_WAY, ids=str)
def test_one_way_losses_do_depend_on_which_view_is_the_anchor(loss: PairLoss) -> None:
    z1, z2, _ = draw(6, 4, 0)
    assert abs(loss(z2, z1) - loss(z1, z2)) > 1e-3


@pytest.mark.parametrize("loss", SYMMETRIC + ONE_WAY, ids=str)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(**sizes)
def test_order_rotation_and_norms_change_nothing(loss: PairLoss, m: int, d: int, seed: int) -> None:
    z1, z2, generator = draw(m, d, seed)
    expected = loss(z1, z2)
    order = torch.randperm(m, generator=generator)
    assert_same(loss(z1[order], z2[order]), expected)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    assert_same(loss(z1 @ rotation, z2 @ rotation), expected)
    norms = torch.logspace(-8, 8, m, dtype=torch.float64)[:, None]
    assert_same(loss(z1 * norms, z2 / norms), expected)


@pytest.mark.parametrize("loss", [DHEL(0.2), KCL(Gaussian(2.0), 16.0)], ids=str)
def test_energy_is_decoupled_from_the_pairing(loss: PairLoss) -> None:
    z1, z2, _ = draw(6, 4, 0)
    assert_same(loss.terms(z1, z2.roll(1, dims=0)).energy, loss.terms(z1, z2).energy)
