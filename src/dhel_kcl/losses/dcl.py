"""Decoupled contrastive learning: NT-Xent without the positive among the negatives."""

from typing import ClassVar

import torch
from torch import Tensor

from dhel_kcl.losses.pair_loss import TemperatureLoss, Terms
from dhel_kcl.losses.streaming.softmax_energy import mean_logsumexp


class DCL(TemperatureLoss):
    """DCL: NT-Xent whose logsumexp leaves out the positive, which leaves 2M - 2 negatives per anchor.

    With z = (u; v), 2M anchors a and p(a) the other view of a:
    mean_a [ -z_a.z_p(a)/t + logsumexp_{b != a, p(a)} (z_a.z_b/t) ].

    Source: Yeh et al. 2022, arXiv 2110.06848, without its optional weights.

    Args:
        temperature: t > 0; accurate from 0.001 up in float32.

    Raises:
        ValueError: if `temperature` is not a positive finite number.
    """

    name: ClassVar[str] = "dcl"
    title: ClassVar[str] = "DCL"

    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for (M, d) views with unit rows."""
        itself, positive = 0, len(u)
        z = torch.cat((u, v))
        return Terms(self.alignment(u, v), mean_logsumexp(z, self.temperature, without=(itself, positive)))
