"""DHEL: decoupled hyperspherical energy loss."""

from typing import ClassVar

from torch import Tensor

from dhel_kcl.losses.pair_loss import TemperatureLoss, Terms
from dhel_kcl.losses.parameters import switch
from dhel_kcl.losses.streaming.softmax_energy import mean_logsumexp


class DHEL(TemperatureLoss):
    """DHEL: alignment between views, repulsion only within a view.

    mean_i [ -u_i.v_i/t + logsumexp_{j != i} (u_i.u_j/t) + logsumexp_{j != i} (v_i.v_j/t) ].

    The energy contains no similarities across views, hence "decoupled". The public code exponentiates, sums and
    multiplies before it takes the logarithm, which gives the same value unless it overflows or underflows.

    Source: Koromilas et al. 2024, arXiv 2405.18045.

    Args:
        temperature: t > 0; accurate from 0.001 up in float32. The public default is 0.3.
        both_views: whether there is repulsion within both views; False drops the one within `z2`.

    Raises:
        ValueError: if `temperature` is not a positive finite number or `both_views` is not a bool.
    """

    name: ClassVar[str] = "dhel"
    title: ClassVar[str] = "DHEL"

    def __init__(self, temperature: float, both_views: bool = True) -> None:
        super().__init__(temperature)
        self.both_views = switch("both_views", both_views)

    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for (M, d) views with unit rows."""
        energy = mean_logsumexp(u, self.temperature)
        if self.both_views:
            energy = energy + mean_logsumexp(v, self.temperature)
        return Terms(self.alignment(u, v), energy)

    def extra_repr(self) -> str:
        """Show the parameters in `repr`."""
        return f"{super().extra_repr()}, both_views={self.both_views}"
