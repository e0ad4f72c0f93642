"""NT-Xent: the loss of SimCLR."""

from typing import ClassVar

import torch
from torch import Tensor

from dhel_kcl.losses.pair_loss import TemperatureLoss, Terms
from dhel_kcl.losses.streaming.softmax_energy import mean_logsumexp


class NTXent(TemperatureLoss):
    """NT-Xent: every other embedding of either view is a negative.

    With z = (u; v), 2M anchors a and p(a) the other view of a:
    mean_a [ -z_a.z_p(a)/t + logsumexp_{b != a} (z_a.z_b/t) ].

    Source: Chen et al. 2020, arXiv 2002.05709, eq. 1.

    Args:
        temperature: t > 0; accurate from 0.001 up in float32.

    Raises:
        ValueError: if `temperature` is not a positive finite number.
    """

    name: ClassVar[str] = "ntxent"
    title: ClassVar[str] = "NT-Xent"

    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for (M, d) views with unit rows."""
        return Terms(self.alignment(u, v), mean_logsumexp(torch.cat((u, v)), self.temperature))
