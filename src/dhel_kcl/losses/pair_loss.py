"""What every loss on positive pairs shares: input checks, normalisation, precision, and the two terms."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dhel_kcl.losses.parameters import positive


class Terms(NamedTuple):
    """The two parts of a contrastive loss; the loss is their sum.

    Attributes:
        alignment: scalar that falls as the two views of an image approach each other.
        energy: scalar that falls as different images spread over the sphere.
    """

    alignment: Tensor
    energy: Tensor


def unit_views(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Check two batches of projections and put their rows on the unit sphere.

    Args:
        z1: (M, d) floating-point projections of the first view, M >= 2, rows of any non-zero norm.
        z2: (M, d) projections of the second view; row i belongs to the same image as row i of `z1`.

    Returns:
        u and v, both (M, d) with unit rows, in float64 if either input is float64 and in float32 otherwise.

    Raises:
        ValueError: if the inputs are not two equal (M, d) floating-point shapes with M >= 2 and d >= 1, or if a row
            is zero or holds NaN or infinity.
    """
    _check_shapes(z1, z2)
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    z = torch.cat((z1.to(dtype), z2.to(dtype)))
    # Dividing by the largest entry first keeps the squares in the norm from overflowing or underflowing.
    # A subnormal row counts as zero: the gradient of its direction overflows.
    largest = z.detach().abs().amax(dim=1, keepdim=True)
    usable = (largest >= torch.finfo(dtype).tiny) & (largest < torch.inf)
    if not bool(usable.all()):
        index = int((~usable).flatten().nonzero()[0])
        fault = "is zero" if float(largest[index]) < 1 else "holds NaN or infinity"
        view, row = ("z1", index) if index < len(z1) else ("z2", index - len(z1))
        raise ValueError(f"row {row} of {view} {fault}: it has no direction on the sphere")
    z = z / largest
    u, v = (z / torch.linalg.vector_norm(z, dim=1, keepdim=True)).chunk(2)
    return u, v


def _check_shapes(z1: Tensor, z2: Tensor) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape or z1.shape[1] == 0:
        raise ValueError(f"z1 and z2 must have one shape (M, d), got {tuple(z1.shape)} and {tuple(z2.shape)}")
    if len(z1) < 2:
        raise ValueError(f"a contrastive loss needs at least 2 positive pairs, got {len(z1)}")
    if not (z1.is_floating_point() and z2.is_floating_point()):
        raise ValueError(f"z1 and z2 must be floating-point, got {z1.dtype} and {z2.dtype}")


def without_self(logits: Tensor) -> Tensor:
    """Leave each anchor out of its own logsumexp: the diagonal of an (n, n) matrix becomes -inf."""
    return logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)


class PairLoss(nn.Module, ABC):
    """A contrastive loss on positive pairs, split into an alignment and an energy term.

    Inputs of any floating-point dtype are promoted to float32 (float64 stays float64) and the loss is computed
    outside autocast, so that half precision never reaches an exponential.
    """

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss.

        Args:
            z1: (M, d) floating-point projections of the first view, M >= 2, rows of any non-zero norm.
            z2: (M, d) projections of the second view; row i belongs to the same image as row i of `z1`.

        Returns:
            Scalar, float64 if either input is float64 and float32 otherwise.

        Raises:
            ValueError: if shapes differ or are not (M, d) with M >= 2, the dtype is not floating-point, or a row is
                zero or holds NaN or infinity.
        """
        alignment, energy = self.terms(z1, z2)
        return alignment + energy

    def terms(self, z1: Tensor, z2: Tensor) -> Terms:
        """Return the two terms whose sum is the loss; same arguments and errors as calling the loss."""
        with torch.autocast(device_type=z1.device.type, enabled=False):
            return self.unit_terms(*unit_views(z1, z2))

    @abstractmethod
    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for (M, d) views whose rows already lie on the unit sphere."""


class TemperatureLoss(PairLoss):
    """A loss whose similarities are cosines over a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def alignment(self, u: Tensor, v: Tensor) -> Tensor:
        """Return -mean_i u_i.v_i / temperature."""
        return -(u * v).sum(dim=1).mean() / self.temperature

    def extra_repr(self) -> str:
        """Show the temperature in `repr`."""
        return f"temperature={self.temperature}"
