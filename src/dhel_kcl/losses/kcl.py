"""KCL: kernel contrastive loss."""

from typing import ClassVar

from torch import Tensor

from dhel_kcl import declarations
from dhel_kcl.losses.kernels import Kernel
from dhel_kcl.losses.pair_loss import PairLoss, Terms
from dhel_kcl.losses.parameters import positive, switch
from dhel_kcl.losses.streaming.kernel_energy import mean_kernel


class KCL(PairLoss):
    """KCL: kernel alignment between views, kernel energy within each view.

    -2 mean_i k(u_i, v_i) + gamma ( mean_{i<j} k(u_i, u_j) + mean_{i<j} k(v_i, v_j) ).

    The energy is an unbiased U-statistic, so the expected loss does not depend on the batch size.

    Source: Koromilas et al. 2024, arXiv 2405.18045.

    Args:
        kernel: `Gaussian(t)`, `Log(t)`, `IMQ(c)`, `Riesz(s)` or `GaussianRiesz(s)`.
        gamma: weight of the energy, > 0. The public default is 16.
        reference_weighting: weight the energy as the public code does. This matters for `Log` only, whose energy the
            public code halves: the loss at gamma then equals the definition at gamma / 2.

    Raises:
        ValueError: if `kernel` is not a kernel, `gamma` is not a positive finite number or `reference_weighting` is
            not a bool. With a Riesz kernel and s > 0, calling the loss also raises it if two embeddings coincide.
    """

    name: ClassVar[str] = "kcl"
    title: ClassVar[str] = "KCL"

    def __init__(self, kernel: Kernel, gamma: float, reference_weighting: bool = False) -> None:
        super().__init__()
        declared = declarations.kernels().get(getattr(kernel, "name", ""))
        if declared is None or type(kernel) is not declared.load():
            raise ValueError(f"kernel must be a Kernel such as Gaussian(t=2.0), got {kernel!r}")
        self.kernel = kernel
        self.gamma = positive("gamma", gamma)
        self.reference_weighting = switch("reference_weighting", reference_weighting)

    def unit_terms(self, u: Tensor, v: Tensor) -> Terms:
        """Return the terms for (M, d) views with unit rows."""
        k = self.kernel
        weight = self.gamma * (k.reference_energy_weight if self.reference_weighting else 1)
        return Terms(-2 * k.positive_mean(u, v), weight * (mean_kernel(u, k) + mean_kernel(v, k)))

    def extra_repr(self) -> str:
        """Show the parameters in `repr`."""
        return f"kernel={self.kernel}, gamma={self.gamma}, reference_weighting={self.reference_weighting}"
