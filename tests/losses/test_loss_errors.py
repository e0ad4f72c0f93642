"""Input that has no loss is refused in one clear line instead of giving inf or nan."""

import math

import pytest
import torch

from dhel_kcl.losses import DCL, DHEL, IMQ, KCL, Gaussian, GaussianRiesz, InfoNCE, Log, NTXent, PairLoss, Riesz

LOSSES = [InfoNCE(0.5), NTXent(0.5), DCL(0.5), DHEL(0.5), KCL(Gaussian(2.0), 16.0), KCL(Riesz(1.0), 16.0)]
good = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def with_row(value: float) -> torch.Tensor:
    bad = good.clone()
    bad[2] = value
    return bad


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize(
    ("z1", "z2", "message"),
    [
        (with_row(0.0), good, "row 2 of z1 is zero"),
        (good, with_row(0.0), "row 2 of z2 is zero"),
        (good, with_row(1e-40), "row 2 of z2 is zero"),
        (with_row(math.nan), good, "row 2 of z1 holds NaN or infinity"),
        (good, with_row(math.inf), "row 2 of z2 holds NaN or infinity"),
        (good, with_row(-math.inf), "row 2 of z2 holds NaN or infinity"),
        (good[:1], good[:1], "at least 2 positive pairs, got 1"),
        (good[:0], good[:0], "at least 2 positive pairs, got 0"),
        (good, good[:3], r"one shape \(M, d\), got \(4, 3\) and \(3, 3\)"),
        (good, good[:, :2], r"one shape \(M, d\), got \(4, 3\) and \(4, 2\)"),
        (good[0], good[0], r"one shape \(M, d\), got \(3,\) and \(3,\)"),
        (good[None], good[None], r"one shape \(M, d\)"),
        (good[:, :0], good[:, :0], r"one shape \(M, d\)"),
        (good.long(), good, "must be floating-point, got torch.int64"),
        (good, good.long(), "must be floating-point"),
    ],
)
def test_bad_projections(loss: PairLoss, z1: torch.Tensor, z2: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        loss(z1, z2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "z1", "z2"),
    [
        (KCL(Riesz(1.0), 16.0), good, good),
        (KCL(Riesz(1.0), 16.0), good, 3 * good),
        (KCL(Riesz(1.0), 16.0), good[[0, 0, 1]], good[[1, 2, 3]]),
        (KCL(GaussianRiesz(1.0), 16.0), good[[0, 0, 1]], good[[1, 2, 3]]),
        (KCL(Riesz(100.0), 16.0), good, good + 1e-2),
    ],
    ids=["identical views", "identical up to norm", "identical images", "identical images, mixed", "overflow"],
)
def test_riesz_with_positive_exponent_refuses_coinciding_embeddings(loss: PairLoss, z1, z2) -> None:
    with pytest.raises(ValueError, match=r"Riesz kernel with s = .* > 0 diverges"):
        loss(z1, z2)


def test_gaussian_riesz_accepts_identical_views() -> None:
    assert KCL(GaussianRiesz(1.0), 16.0)(good, good).isfinite()


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "0.5", None, True])
@pytest.mark.parametrize(
    "build",
    [InfoNCE, NTXent, DCL, DHEL, Gaussian, Log, IMQ, lambda gamma: KCL(Gaussian(2.0), gamma)],
)
def test_positive_parameters(build, value) -> None:
    with pytest.raises(ValueError, match=r"must be a (positive )?finite number"):
        build(value)


@pytest.mark.parametrize("value", [0, 0.0, math.nan, -math.inf, "1", None])
@pytest.mark.parametrize("kernel", [Riesz, GaussianRiesz])
def test_riesz_exponent_is_finite_and_not_zero(kernel, value) -> None:
    with pytest.raises(ValueError, match=r"s must be a (non-zero )?finite number"):
        kernel(value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: InfoNCE(0.5, symmetric="no"),
        lambda: DHEL(0.5, both_views=1),
        lambda: KCL(Gaussian(2.0), 16.0, reference_weighting=None),
    ],
)
def test_switches_are_booleans(build) -> None:
    with pytest.raises(ValueError, match="must be true or false"):
        build()


class Impostor(Gaussian):
    """Has the name of another kernel, by which operators know kernels."""


@pytest.mark.parametrize("kernel", ["gaussian", Gaussian, Impostor(2.0)])
def test_kernel_is_a_kernel_of_the_package(kernel) -> None:
    with pytest.raises(ValueError, match="kernel must be a Kernel such as Gaussian"):
        KCL(kernel, 16.0)
    KCL(Gaussian(2.0), 16.0)
