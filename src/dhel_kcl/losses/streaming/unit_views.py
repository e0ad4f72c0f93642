"""Project embeddings onto the unit sphere, and check the input of every loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from dhel_kcl.losses.streaming.distributed import agree
from dhel_kcl.losses.streaming.operators import Operator

_deferred: ContextVar[bool] = ContextVar("deferred", default=False)


@contextmanager
def deferred_checks() -> Iterator[None]:
    """Stop the losses in this block from waiting for the device; a row without a direction makes the loss NaN.

    Outside the block such a row raises ValueError, for which the host must read values from the device at each call. A
    training loop that looks at its losses every few steps anyway does not need that. Inside the block, the processes of
    a distributed run do not compare shapes either: each must pass the same number of rows. The Riesz kernels still
    check for coinciding rows.

    Example:
        >>> with deferred_checks():
        ...     loss = DHEL(temperature=0.3)(z1, z2)
        >>> bool(loss.isfinite())  # whenever convenient
        True
    """
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def unit_views(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Check two batches of projections and put their rows on the unit sphere.

    Args:
        z1: (M, d) floating-point projections of the first view, M >= 2, rows of any non-zero norm.
        z2: (M, d) projections of the second view; row i belongs to the same image as row i of `z1`.

    Returns:
        u and v, both (M, d) with unit rows, in float64 if either input is float64 and in float32 otherwise.

    Raises:
        ValueError: if the inputs are not floating-point of one shape (M, d) on one device with M >= 2 and d >= 1, if a
            row is zero or holds NaN or infinity, or if the processes of a distributed run differ in M or d.
    """
    fault = _fault_of_shapes(z1, z2)
    if fault and _deferred.get():
        raise ValueError(fault)
    if fault:
        agree(0, 0, fault, z1.device)
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    u, v, _ = _normalise(z1.to(dtype), z2.to(dtype))
    return u, v


def _fault_of_shapes(z1: Tensor, z2: Tensor) -> str:
    if z1.ndim != 2 or z1.shape != z2.shape or z1.shape[1] == 0:
        return f"z1 and z2 must have one shape (M, d), got {tuple(z1.shape)} and {tuple(z2.shape)}"
    if len(z1) < 2:
        return f"a contrastive loss needs at least 2 positive pairs, got {len(z1)}"
    if not (z1.is_floating_point() and z2.is_floating_point()):
        return f"z1 and z2 must be floating-point, got {z1.dtype} and {z2.dtype}"
    if z1.device != z2.device:
        return f"z1 and z2 must be on one device, got {z1.device} and {z2.device}"
    return ""


def _unit_rows(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _deferred.get():
        entries = _largest_entries(z1, z2)
        z1, z2 = z1 / entries[0], z2 / entries[1]
        lengths = _lengths(z1, z2)
        return z1 / lengths[0], z2 / lengths[1], entries * lengths
    fault = ""
    lengths = norms = _lengths(z1, z2)
    smallest, largest = torch.aminmax(norms)
    # Outside this range squares overflow or underflow, so rows are first divided by their largest entry.
    if not (float(smallest) > torch.finfo(z1.dtype).tiny ** 0.25 and float(largest) < torch.inf):
        entries = _largest_entries(z1, z2)
        fault = _fault_of_rows(entries)
        z1, z2 = z1 / entries[0], z2 / entries[1]
        lengths = _lengths(z1, z2)
        norms = entries * lengths
    agree(len(z1), z1.shape[1], fault, z1.device)
    return z1 / lengths[0], z2 / lengths[1], norms


def _largest_entries(z1: Tensor, z2: Tensor) -> Tensor:
    return torch.stack([z.abs().amax(dim=1, keepdim=True) for z in (z1, z2)])


def _lengths(z1: Tensor, z2: Tensor) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(z, dim=1, keepdim=True) for z in (z1, z2)])


def _fault_of_rows(largest_entries: Tensor) -> str:
    # A subnormal row counts as zero: the gradient of its direction overflows.
    usable = (largest_entries >= torch.finfo(largest_entries.dtype).tiny) & (largest_entries < torch.inf)
    if bool(usable.all()):
        return ""
    view, row, _ = (~usable).nonzero()[0].tolist()
    fault = "is zero" if float(largest_entries[view, row]) < 1 else "holds NaN or infinity"
    return f"row {row} of z{view + 1} {fault}: it has no direction on the sphere"


def _shapes(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z1), torch.empty_like(z2), z1.new_empty(2, len(z1), 1)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output)


def _tangents(ctx: Any, grad_u: Tensor, grad_v: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient for rows of any norm: the part tangent to the sphere, divided by the norm."""
    u, v, norms = ctx.saved_tensors
    return _tangent(u, grad_u).div_(norms[0]), _tangent(v, grad_v).div_(norms[1])


def _tangent(u: Tensor, gradient: Tensor) -> Tensor:
    return torch.addcmul(gradient, u, torch.linalg.vecdot(u, gradient)[:, None], value=-1)


_normalise = Operator(_unit_rows, shapes=_shapes, save=_save, backward=_tangents)
