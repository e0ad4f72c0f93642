"""Base classes of the losses on positive pairs: the two terms, precision, and batches spread over processes."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dhel_kcl.losses.parameters import positive
from dhel_kcl.losses.streaming.distributed import gather_rows
from dhel_kcl.losses.streaming.unit_views import unit_views


class Terms(NamedTuple):
    """The two parts of a contrastive loss; the loss is their sum.

    Attributes:
        alignment: scalar that falls as the two views of an image approach each other.
        energy: scalar that falls as different images spread over the sphere.
    """

    alignment: Tensor
    energy: Tensor


class PairLoss(nn.Module, ABC):
    """A contrastive loss on positive pairs, split into an alignment and an energy term.

    Inputs of any floating-point dtype are promoted to float32 (float64 stays float64) and the loss is computed
    outside autocast, so that half precision never reaches an exponential.

    If `torch.distributed` is initialised, every process passes its own rows and gets the loss of the rows of all
    processes, and the gradient of that loss with respect to its own rows. `DistributedDataParallel` averages gradients
    over processes: multiply the loss by their number before `backward` to train as one process would.

    Beyond the inputs, memory is O(M d) plus a few tiles of the M x M similarities. Only first derivatives are
    available: `create_graph=True` raises RuntimeError.
    """

    if TYPE_CHECKING:  # torch leaves the result of calling a module untyped

        def __call__(self, z1: Tensor, z2: Tensor) -> Tensor:
            """Return the loss."""

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss.

        Args:
            z1: (M, d) floating-point projections of the first view, M >= 2, rows of any non-zero norm.
            z2: (M, d) projections of the second view; row i belongs to the same image as row i of `z1`.

        Returns:
            Scalar, float64 if either input is float64 and float32 otherwise.

        Raises:
            ValueError: if shapes differ or are not (M, d) with M >= 2, the dtype is not floating-point, the devices
                differ, a row is zero or holds NaN or infinity, or the processes of a distributed run differ in M
                or d.
        """
        alignment, energy = self.terms(z1, z2)
        return alignment + energy

    def terms(self, z1: Tensor, z2: Tensor) -> Terms:
        """Return the two terms whose sum is the loss; arguments and errors are those of calling the loss."""
        with torch.autocast(device_type=z1.device.type, enabled=False):
            u, v = unit_views(z1, z2)
            return self.unit_terms(gather_rows(u), gather_rows(v))

    @abstractmethod
    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for the (M, d) views of the whole batch, whose rows lie on the unit sphere."""


class TemperatureLoss(PairLoss):
    """A loss whose similarities are cosines divided by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def alignment(self, u: Tensor, v: Tensor) -> Tensor:
        """Return -mean_i u_i.v_i / temperature."""
        return -(u * v).sum(dim=1).mean() / self.temperature

    def extra_repr(self) -> str:
        """Show the temperature in `repr`."""
        return f"temperature={self.temperature}"
