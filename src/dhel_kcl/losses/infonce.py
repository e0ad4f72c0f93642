"""InfoNCE: pick out the positive among the images of the other view."""

from typing import ClassVar

from torch import Tensor

from dhel_kcl.losses.pair_loss import TemperatureLoss, Terms
from dhel_kcl.losses.parameters import switch
from dhel_kcl.losses.streaming.softmax_energy import mean_logsumexp_across


class InfoNCE(TemperatureLoss):
    """InfoNCE with cross-view negatives.

    In one direction: mean_i [ -u_i.v_i/t + logsumexp_j (u_i.v_j/t) ]; the sum includes the positive.

    Source: van den Oord et al. 2018, arXiv 1807.03748, eq. 4.

    Args:
        temperature: t > 0; accurate from 0.001 up in float32.
        symmetric: average over both directions, with anchors from either view; if False, only `z1` provides anchors.

    Raises:
        ValueError: if `temperature` is not a positive finite number or `symmetric` is not a bool.
    """

    name: ClassVar[str] = "infonce"
    title: ClassVar[str] = "InfoNCE"

    def __init__(self, temperature: float, symmetric: bool = True) -> None:
        super().__init__(temperature)
        self.symmetric = switch("symmetric", symmetric)

    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for (M, d) views with unit rows."""
        energy = mean_logsumexp_across(u, v, self.temperature, self.symmetric)
        return Terms(self.alignment(u, v), energy)

    def extra_repr(self) -> str:
        """Show the parameters in `repr`."""
        return f"{super().extra_repr()}, symmetric={self.symmetric}"
