"""In a block of deferred checks a loss never raises for its rows, and is otherwise the same."""

import pytest
import torch
from loss_cases import CASES

from dhel_kcl.losses import DHEL, deferred_checks

PLAIN = [name for name in CASES if "riesz" not in name.lower()]  # which looks for coinciding rows all the same


def views() -> tuple[torch.Tensor, torch.Tensor]:
    z1, z2 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z1, z2


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_same(name: str) -> None:
    loss, _ = CASES[name]
    results = []
    for deferred in (False, True):
        z1, z2 = (z.requires_grad_() for z in views())
        if deferred:
            with deferred_checks():
                value = loss(z1, z2)
        else:
            value = loss(z1, z2)
        results.append((value.detach(), *torch.autograd.grad(value, (z1, z2))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_a_row_without_direction_makes_the_loss_nan(name: str, bad: float) -> None:
    loss, _ = CASES[name]
    z1, z2 = views()
    z1[2] = bad
    with deferred_checks():
        assert loss(z1, z2).isnan()
    with pytest.raises(ValueError, match="row 2 of z1"):
        loss(z1, z2)


def test_shapes_are_still_checked() -> None:
    with deferred_checks(), pytest.raises(ValueError, match="one shape"):
        DHEL(0.3)(torch.ones(4, 3), torch.ones(5, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PLAIN)
def test_the_host_does_not_wait_for_a_gpu(name: str) -> None:
    loss, _ = CASES[name]
    z1, z2 = (z.cuda().requires_grad_() for z in views())
    with deferred_checks():
        loss(z1, z2)
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss(z1, z2).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
