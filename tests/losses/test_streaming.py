"""The pairs of a batch are visited in tiles: never all held, first derivatives only, opaque to the compiler."""

import pytest
import torch
from loss_cases import CASES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dhel_kcl.losses import DHEL, IMQ, KCL, Gaussian, Log, NTXent, PairLoss, Riesz

LOSSES = {name: loss for name, (loss, _) in CASES.items()}


def views(m: int, d: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    z1, z2 = torch.randn(2, m, d, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return z1.requires_grad_(), z2.requires_grad_()


def value_and_gradients(loss, z1: Tensor, z2: Tensor) -> tuple[Tensor, ...]:
    value = loss(z1, z2)
    return value, *torch.autograd.grad(value, (z1, z2))


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation inside makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tile_rows", [64], indirect=True)
def test_no_tensor_grows_with_the_square_of_the_batch(name: str, tile_rows: int) -> None:
    m, d = 500, 8
    with LargestTensor() as largest:
        value_and_gradients(LOSSES[name], *views(m, d))
    assert m * d <= largest.elements <= max(2 * m * d, tile_rows**2)


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients_the_value_is_the_same(name: str) -> None:
    z1, z2 = views(20)
    with torch.no_grad():
        assert LOSSES[name](z1, z2) == LOSSES[name](z1, z2.detach())
    assert not LOSSES[name](z1.detach(), z2.detach()).requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_one_view_that_wants_it(name: str) -> None:
    z1, z2 = views(20)
    expected = value_and_gradients(LOSSES[name], z1, z2)
    (gradient,) = torch.autograd.grad(LOSSES[name](z1, z2.detach()), z1)
    torch.testing.assert_close(gradient, expected[1])
    (gradient,) = torch.autograd.grad(LOSSES[name](z1.detach(), z2), z2)
    torch.testing.assert_close(gradient, expected[2])


@pytest.mark.parametrize("name", LOSSES)
def test_differentiating_twice_is_refused(name: str) -> None:
    z1, z2 = views(4)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(LOSSES[name](z1, z2), z1, create_graph=True)


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_into_one_graph_for_any_batch_size(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    for m in (6, 9, 12):
        torch.testing.assert_close(
            value_and_gradients(compiled, *views(m)), value_and_gradients(LOSSES[name], *views(m)), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("loss", [DHEL(0.3), KCL(Gaussian(2.0), 16.0)], ids=str)
def test_compiles_with_inductor_around_the_loss(loss: PairLoss) -> None:
    def step(z1: Tensor, z2: Tensor) -> Tensor:
        return 2 * loss(z1.sin(), z2.cos())

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(value_and_gradients(compiled, *views(16)), value_and_gradients(step, *views(16)))


def test_bad_rows_are_named_under_compilation_too() -> None:
    torch.compiler.reset()
    z = torch.ones(4, 3)
    z[2] = 0
    with pytest.raises(ValueError, match="row 2 of z1 is zero"):
        torch.compile(NTXent(0.5), fullgraph=True, backend="aot_eager")(z, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"Riesz kernel with s = 1\.0 > 0 diverges"):
        torch.compile(KCL(Riesz(1.0), 1.0), fullgraph=True, backend="aot_eager")(*torch.ones(2, 4, 3))


def test_compiled_under_autocast_stays_in_float32() -> None:
    torch.compiler.reset()
    compiled = torch.compile(NTXent(0.1), fullgraph=True, backend="aot_eager")
    z1, z2 = views(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(z1, z2), NTXent(0.1)(z1, z2), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LOSSES)
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    on_cpu = value_and_gradients(LOSSES[name], *views(700, dtype=torch.float64))
    on_device = value_and_gradients(
        LOSSES[name], *(z.detach().cuda().requires_grad_() for z in views(700, dtype=torch.float64))
    )
    torch.testing.assert_close(tuple(x.cpu() for x in on_device), on_cpu, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [Gaussian(1.5), Log(0.7), IMQ(0.3), Riesz(1.2), Riesz(-0.8)], ids=str)
def test_slope_is_the_derivative_of_the_radial_function(kernel) -> None:
    squared = torch.linspace(0.01, 4, 50, dtype=torch.float64, requires_grad=True)
    value = kernel.radial(squared)
    (expected,) = torch.autograd.grad(value.sum(), squared)
    step = 1e-6
    difference = (kernel.radial(squared.detach() + step) - kernel.radial(squared.detach() - step)) / (2 * step)
    slope = kernel.slope(squared.detach(), value.detach())
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)
