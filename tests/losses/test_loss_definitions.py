"""Every loss equals its definition: plain loops, closed forms, and the public formulas where those hold."""

import math

import loss_definitions as reference
import pytest
import torch
from loss_cases import CASES, GAMMA
from torch import Tensor

from dhel_kcl.losses import DCL, DHEL, IMQ, KCL, Gaussian, GaussianRiesz, InfoNCE, Log, NTXent, PairLoss, Riesz


def views(m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, m, d, generator=generator, dtype=torch.float64) * 3
    return z1.requires_grad_(), z2.requires_grad_()


def simplex(m: int, scale: float = 1.0) -> Tensor:
    return scale * (torch.eye(m, dtype=torch.float64) - 1 / m)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("m", "d"), [(2, 3), (5, 4), (9, 2)])
@pytest.mark.parametrize("tile_rows", [640, 4, 1], indirect=True)
def test_terms_and_gradients_equal_plain_loops(name: str, m: int, d: int, tile_rows: int) -> None:
    loss, definition = CASES[name]
    z1, z2 = views(m, d)
    terms = loss.terms(z1, z2)
    expected = definition(reference.unit(z1), reference.unit(z2))
    torch.testing.assert_close(tuple(terms), tuple(expected), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss(z1, z2), sum(expected), rtol=1e-10, atol=1e-10)
    for term, wanted in zip(terms, expected, strict=True):
        gradients = torch.autograd.grad(term, (z1, z2), retain_graph=True, materialize_grads=True)
        wanted_gradients = torch.autograd.grad(wanted, (z1, z2), retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("loss", "definition"),
    [(InfoNCE, reference.infonce), (NTXent, reference.ntxent), (DCL, reference.dcl), (DHEL, reference.dhel)],
)
@pytest.mark.parametrize("temperature", [0.001, 0.0028, 0.003, 0.03])
@pytest.mark.parametrize("tile_rows", [640, 4], indirect=True)
def test_low_temperatures_equal_plain_loops(loss: type, definition, temperature: float, tile_rows: int) -> None:
    z1, z2 = views(9, 4)
    expected = sum(definition(reference.unit(z1), reference.unit(z2), temperature))
    value = loss(temperature)(z1, z2)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(value, (z1, z2))
    wanted = torch.autograd.grad(expected, (z1, z2))
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-10 / temperature)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(CASES[name][0], views(4, 3))


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_sum_of_its_named_terms(name: str) -> None:
    loss = CASES[name][0]
    z1, z2 = views(6, 5)
    terms = loss.terms(z1, z2)
    assert loss(z1, z2) == terms.alignment + terms.energy
    assert terms.alignment.ndim == terms.energy.ndim == 0


@pytest.mark.parametrize("m", [2, 3, 8])
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_closed_forms_of_aligned_views_at_the_simplex(m: int, t: float) -> None:
    z1, z2 = simplex(m), simplex(m, scale=7.0)
    negative = math.exp(-1 / ((m - 1) * t))
    assert float(NTXent(t)(z1, z2)) == pytest.approx(
        -1 / t + math.log(math.exp(1 / t) + 2 * (m - 1) * negative), abs=1e-10
    )
    assert float(InfoNCE(t)(z1, z2)) == pytest.approx(
        -1 / t + math.log(math.exp(1 / t) + (m - 1) * negative), abs=1e-10
    )
    assert float(DCL(t)(z1, z2)) == pytest.approx(-1 / t + math.log(2 * (m - 1) * negative), rel=1e-10)
    assert float(DHEL(t)(z1, z2)) == pytest.approx(-1 / t + 2 * math.log((m - 1) * negative), rel=1e-10)
    assert float(KCL(Gaussian(t), GAMMA)(z1, z2)) == pytest.approx(
        -2 + 2 * GAMMA * math.exp(-t * (2 + 2 / (m - 1))), rel=1e-10
    )


@pytest.mark.parametrize("d", [2, 5])
def test_gaussian_energy_of_the_cross_polytope(d: int) -> None:
    z = torch.cat((torch.eye(d), -torch.eye(d))).double()
    energy = KCL(Gaussian(2.0), 1.0).terms(z, z).energy
    expected = 2 * (math.exp(-8) + (2 * d - 2) * math.exp(-4)) / (2 * d - 1)
    assert float(energy) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("both_views", [True, False])
def test_dhel_equals_the_public_exponentials_where_they_do_not_overflow(t: float, both_views: bool) -> None:
    z1, z2 = views(16, 8)
    u, v = (torch.nn.functional.normalize(z) for z in (z1, z2))
    off_diagonal = 1 - torch.eye(16)
    negatives = ((u @ u.T / t).exp() * off_diagonal).sum(1)
    if both_views:
        negatives = negatives * ((v @ v.T / t).exp() * off_diagonal).sum(1)
    public = -(((u * v).sum(1) / t).exp() / negatives).log().mean()
    torch.testing.assert_close(DHEL(t, both_views)(z1, z2), public, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel", "public_kernel"),
    [
        (Gaussian(2.0), lambda distance: (-2.0 * distance.square()).exp()),
        (IMQ(0.7), lambda distance: 0.7 / (0.7**2 + distance.square()).sqrt()),
    ],
    ids=["gaussian", "imq"],
)
def test_kcl_equals_the_public_formula_on_pairwise_distances(kernel, public_kernel) -> None:
    z1, z2 = views(16, 8)
    u, v = (torch.nn.functional.normalize(z) for z in (z1, z2))
    energy = sum(public_kernel(torch.pdist(w)).mean() for w in (u, v))
    public = -2 * public_kernel((u - v).norm(dim=1)).mean() + 16.0 * energy
    torch.testing.assert_close(KCL(kernel, 16.0)(z1, z2), public, rtol=1e-10, atol=1e-10)


def test_reference_weighting_gives_the_public_log_kernel_which_is_the_definition_at_half_gamma() -> None:
    z1, z2 = views(16, 8)
    u, v = (torch.nn.functional.normalize(z) for z in (z1, z2))
    halved_energy = sum(-0.5 * (2.0 * torch.pdist(w).square() + 1).log().mean() for w in (u, v))
    whole_alignment = -(2.0 * (u - v).norm(dim=1).square() + 1).log().mean()
    public = -2 * whole_alignment + 16.0 * halved_energy
    ours = KCL(Log(2.0), 16.0, reference_weighting=True)(z1, z2)
    torch.testing.assert_close(ours, public, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, KCL(Log(2.0), 8.0)(z1, z2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kernel", [Gaussian(2.0), IMQ(2.0), Riesz(1.0), GaussianRiesz(1.0)], ids=str)
def test_reference_weighting_leaves_every_other_kernel_alone(kernel) -> None:
    z1, z2 = views(6, 4)
    weighted: PairLoss = KCL(kernel, 16.0, reference_weighting=True)
    assert weighted(z1, z2) == KCL(kernel, 16.0)(z1, z2)
