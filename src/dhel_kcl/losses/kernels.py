"""Kernels of KCL: each is one radial function of the squared distance r^2 = |x - y|^2 on the unit sphere.

Source of the definitions: Koromilas et al. 2024, arXiv 2405.18045.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dhel_kcl.losses.parameters import nonzero, positive


class Kernel(ABC):
    """A kernel k(x, y) on the unit sphere that depends on the distance only.

    Attributes:
        reference_energy_weight: factor that the public code puts on this kernel's energy and not on its alignment.
    """

    reference_energy_weight: ClassVar[float] = 1.0

    @abstractmethod
    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return k as a function of r^2 in [0, 4], element by element."""

    def positive_mean(self, u: Tensor, v: Tensor) -> Tensor:
        """Return mean_i k(u_i, v_i), a scalar, for (M, d) views with unit rows."""
        return self.radial((u - v).square().sum(dim=1)).mean()

    def pairwise_mean(self, u: Tensor) -> Tensor:
        """Return mean_{i<j} k(u_i, u_j), a scalar, for an (M, d) view with unit rows."""
        batch_size = len(u)
        values = self.radial((2 - 2 * u @ u.T).clamp(min=0))
        itself = torch.eye(batch_size, dtype=torch.bool, device=u.device)
        return values.masked_fill(itself, 0).sum() / (batch_size * (batch_size - 1))


@dataclass(frozen=True)
class Gaussian(Kernel):
    """Gaussian kernel exp(-t r^2); KCL with it is GKCL.

    Args:
        t: inverse width, > 0. The public default is 2.

    Raises:
        ValueError: if `t` is not a positive finite number.
    """

    t: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", positive("t", self.t))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return exp(-t r^2)."""
        return (-self.t * squared_distance).exp()


@dataclass(frozen=True)
class Log(Kernel):
    """Logarithmic kernel -log(1 + t r^2); KCL with it is LKCL.

    The public code halves this kernel in the energy and not in the alignment, see `KCL`'s `reference_weighting`.

    Args:
        t: scale, > 0.

    Raises:
        ValueError: if `t` is not a positive finite number.
    """

    reference_energy_weight: ClassVar[float] = 0.5

    t: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", positive("t", self.t))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return -log(1 + t r^2)."""
        return -(self.t * squared_distance).log1p()


@dataclass(frozen=True)
class IMQ(Kernel):
    """Inverse multiquadric kernel c / sqrt(c^2 + r^2).

    Args:
        c: length scale, > 0.

    Raises:
        ValueError: if `c` is not a positive finite number.
    """

    c: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", positive("c", self.c))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return c / sqrt(c^2 + r^2)."""
        return self.c * (self.c**2 + squared_distance).rsqrt()


@dataclass(frozen=True)
class Riesz(Kernel):
    """Riesz kernel sign(s) r^(-s).

    For s < 0 it is 0 at r = 0, with gradient 0 there. For s > 0 it diverges at r = 0: identical embeddings raise
    ValueError when the loss is computed.

    Args:
        s: exponent, non-zero.

    Raises:
        ValueError: if `s` is not a non-zero finite number.
    """

    s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", nonzero("s", self.s))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return sign(s) r^(-s)."""
        if self.s > 0:
            values = squared_distance ** (-self.s / 2)
            # Below this distance two unit vectors differ by rounding alone; the quotient is the size of the gradient.
            distinct = squared_distance > (4 * torch.finfo(squared_distance.dtype).eps) ** 2
            if not bool((distinct & (values / squared_distance).isfinite()).all()):
                raise ValueError(
                    f"the Riesz kernel with s = {self.s} > 0 diverges: two embeddings coincide or nearly do"
                )
            return values
        # The inner substitution keeps the infinite slope of r^(-s) at r = 0 out of the backward pass.
        apart = squared_distance > 0
        return torch.where(apart, -(torch.where(apart, squared_distance, 1.0) ** (-self.s / 2)), 0.0)

    def pairwise_mean(self, u: Tensor) -> Tensor:
        """Return mean_{i<j} k(u_i, u_j) from coordinate differences.

        The Gram form 2 - 2 x.y has lost every digit of r by 1e-4 in float32, where this kernel is steepest.
        """
        return self.radial(torch.nn.functional.pdist(u).square()).mean()


@dataclass(frozen=True)
class GaussianRiesz(Kernel):
    """Gaussian alignment (t = 2) with Riesz energy: identical positives are fine, identical images are not.

    Args:
        s: exponent of the Riesz energy, non-zero.

    Raises:
        ValueError: if `s` is not a non-zero finite number.
    """

    s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", nonzero("s", self.s))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return the kernel of the energy, sign(s) r^(-s)."""
        return Riesz(self.s).radial(squared_distance)

    def positive_mean(self, u: Tensor, v: Tensor) -> Tensor:
        """Return mean_i exp(-2 |u_i - v_i|^2)."""
        return Gaussian(2.0).positive_mean(u, v)

    def pairwise_mean(self, u: Tensor) -> Tensor:
        """Return the Riesz mean over i < j."""
        return Riesz(self.s).pairwise_mean(u)
