"""Finite values and gradients at the extremes, and float32 or better inside whatever the input."""

import pytest
import torch
from torch import Tensor

from dhel_kcl.losses import DCL, DHEL, IMQ, KCL, Gaussian, GaussianRiesz, InfoNCE, Log, NTXent, PairLoss, Riesz

TEMPERATURE_LOSSES = [InfoNCE, NTXent, DCL, DHEL]
BOUNDED_KERNELS = [Gaussian(2.0), Log(2.0), IMQ(1.0), Riesz(-0.5), Riesz(-1.0), GaussianRiesz(-0.5)]
EVERYWHERE_FINITE = [loss(0.001) for loss in TEMPERATURE_LOSSES] + [KCL(kernel, 16.0) for kernel in BOUNDED_KERNELS]
MILD = [loss(0.5) for loss in TEMPERATURE_LOSSES] + [KCL(kernel, 16.0) for kernel in [*BOUNDED_KERNELS, Riesz(1.0)]]


def random(m: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed))


BATCHES = {
    "random": (random(16, 8), random(16, 8, seed=1)),
    "two pairs": (random(2, 8), random(2, 8, seed=1)),
    "aligned": (random(16, 8), random(16, 8)),
    "collapsed": (torch.ones(16, 8), torch.ones(16, 8)),
    "collapsed up to rounding": (torch.full((16, 8), 0.1), torch.full((16, 8), 0.3)),
    "opposite views": (torch.ones(16, 8), -torch.ones(16, 8)),
    "opposite images": (torch.ones(2, 8) * torch.tensor([[1.0], [-1.0]]),) * 2,
    "huge and tiny norms": (random(16, 8) * 1e30, random(16, 8, seed=1) * 1e-30),
    "one dimension": (torch.ones(4, 1), -torch.ones(4, 1)),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", EVERYWHERE_FINITE, ids=str)
@pytest.mark.parametrize("tile_rows", [640, 5], indirect=True)
def test_finite_values_and_gradients(loss: PairLoss, batch: str, tile_rows: int) -> None:
    z1, z2 = (z.clone().requires_grad_() for z in BATCHES[batch])
    value = loss(z1, z2)
    value.backward()
    assert value.isfinite()
    assert z1.grad.isfinite().all()
    assert z2.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("loss", TEMPERATURE_LOSSES)
def test_float32_agrees_with_float64_at_any_temperature(loss: type, temperature: float) -> None:
    z1, z2 = (z.requires_grad_() for z in (random(16, 8), random(16, 8, seed=1)))
    single = loss(temperature)(z1, z2)
    double = loss(temperature)(z1.double(), z2.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(single, (z1, z2)), torch.autograd.grad(double, (z1, z2))
    scale = max(float(g.abs().max()) for g in gradients[1])
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-3 * scale)


@pytest.mark.parametrize("loss", MILD, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(loss: PairLoss, dtype: torch.dtype) -> None:
    z1, z2 = (random(16, 8, seed).to(dtype).requires_grad_() for seed in (0, 1))
    value = loss(z1, z2)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(z1.float(), z2.float()), rtol=0, atol=0)
    value.backward()
    assert z1.grad.dtype == dtype
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize("loss", MILD, ids=str)
def test_autocast_does_not_reach_inside(loss: PairLoss) -> None:
    z1, z2 = random(16, 8), random(16, 8, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = loss(z1, z2)
    torch.testing.assert_close(under_autocast, loss(z1, z2), rtol=0, atol=0)


def test_the_wider_of_two_dtypes_is_kept() -> None:
    assert NTXent(0.5)(random(4, 3).half(), random(4, 3).double()).dtype == torch.float64


def test_riesz_keeps_its_digits_for_close_images() -> None:
    angle = 1e-5
    z = torch.tensor([[1.0, 0.0], [1.0, angle]])
    energy = KCL(GaussianRiesz(1.0), 1.0).terms(z, z).energy
    assert float(energy) == pytest.approx(2 / angle, rel=1e-4)


@pytest.mark.parametrize("s", [-0.5, 0.5, 2.0])
def test_riesz_keeps_the_gradient_of_close_images(s: float) -> None:
    z = random(6, 8)
    z[1] = z[0] + 1e-4 * random(8, 1)[:, 0]
    single, double = z.clone().requires_grad_(), z.double().requires_grad_()
    for batch in (single, double):
        KCL(GaussianRiesz(s), 1.0).terms(batch, batch).energy.backward()
    scale = float(double.grad.abs().max())
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=0, atol=1e-2 * scale)


def test_riesz_with_negative_exponent_is_zero_at_distance_zero() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    alignment, energy = KCL(Riesz(-0.5), 16.0).terms(z, z)
    (alignment + energy).backward()
    assert alignment == energy == 0
    assert (z.grad == 0).all()
