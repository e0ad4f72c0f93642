"""Kernels of KCL, each a radial function of the squared distance r^2 = |x - y|^2 on the unit sphere.

Source of the definitions: Koromilas et al. 2024, arXiv 2405.18045.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dhel_kcl.losses.parameters import nonzero, positive
from dhel_kcl.losses.streaming.operators import Operator


@dataclass(frozen=True)
class Kernel(ABC):
    """A kernel k(x, y) on the unit sphere that depends only on the distance.

    Attributes:
        name: the name that configs use.
        reference_energy_weight: factor that the public code applies to this kernel's energy but not to its alignment.
        steep: whether k has an infinite slope at r = 0, so that every digit of r matters there.
    """

    name: ClassVar[str]
    reference_energy_weight: ClassVar[float] = 1.0
    steep: ClassVar[bool] = False

    @abstractmethod
    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return k as a function of r^2 in [0, 4], element by element."""

    @abstractmethod
    def slope(self, squared_distance: Tensor, value: Tensor) -> Tensor:
        """Return dk / d(r^2), element by element; `value` is k there and may be overwritten."""

    def positive_mean(self, u: Tensor, v: Tensor) -> Tensor:
        """Return mean_i k(u_i, v_i), a scalar, for (M, d) views with unit rows."""
        return self.radial((u - v).square().sum(dim=1)).mean()


@dataclass(frozen=True)
class Gaussian(Kernel):
    """Gaussian kernel exp(-t r^2); KCL with this kernel is GKCL.

    Args:
        t: inverse width, > 0. The public default is 2.

    Raises:
        ValueError: if `t` is not a positive finite number.
    """

    name: ClassVar[str] = "gaussian"

    t: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", positive("t", self.t))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return exp(-t r^2)."""
        return (-self.t * squared_distance).exp_()

    def slope(self, squared_distance: Tensor, value: Tensor) -> Tensor:
        """Return -t k."""
        return value.mul_(-self.t)


@dataclass(frozen=True)
class Log(Kernel):
    """Logarithmic kernel -log(1 + t r^2); KCL with this kernel is LKCL.

    The public code halves this kernel in the energy but not in the alignment; see `KCL`'s `reference_weighting`.

    Args:
        t: scale, > 0.

    Raises:
        ValueError: if `t` is not a positive finite number.
    """

    name: ClassVar[str] = "log"
    reference_energy_weight: ClassVar[float] = 0.5

    t: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", positive("t", self.t))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return -log(1 + t r^2)."""
        return (self.t * squared_distance).log1p().neg_()

    def slope(self, squared_distance: Tensor, value: Tensor) -> Tensor:
        """Return -t / (1 + t r^2)."""
        return (1 + self.t * squared_distance).reciprocal_().mul_(-self.t)


@dataclass(frozen=True)
class IMQ(Kernel):
    """Inverse multiquadric kernel c / sqrt(c^2 + r^2).

    Args:
        c: length scale, > 0.

    Raises:
        ValueError: if `c` is not a positive finite number.
    """

    name: ClassVar[str] = "imq"
    title: ClassVar[str] = "IMQ"

    c: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", positive("c", self.c))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return c / sqrt(c^2 + r^2)."""
        return self.c * (self.c**2 + squared_distance).rsqrt()

    def slope(self, squared_distance: Tensor, value: Tensor) -> Tensor:
        """Return -k / (2 (c^2 + r^2))."""
        return value.mul_(-0.5).div_(self.c**2 + squared_distance)


@dataclass(frozen=True)
class Riesz(Kernel):
    """Riesz kernel sign(s) r^(-s).

    For s < 0, its value and gradient are 0 at r = 0. For s > 0 it diverges at r = 0, so computing the loss of identical
    embeddings raises ValueError.

    Args:
        s: exponent, non-zero.

    Raises:
        ValueError: if `s` is not a non-zero finite number.
    """

    name: ClassVar[str] = "riesz"
    steep: ClassVar[bool] = True

    s: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", nonzero("s", self.s))

    def radial(self, squared_distance: Tensor) -> Tensor:
        """Return sign(s) r^(-s)."""
        value: Tensor = _riesz(squared_distance, self.s)
        return value

    def slope(self, squared_distance: Tensor, value: Tensor) -> Tensor:
        """Return -s k / (2 r^2), and 0 at r = 0."""
        return value.mul_(-self.s / 2).div_(squared_distance).masked_fill_(squared_distance == 0, 0)


@dataclass(frozen=True)
class GaussianRiesz(Riesz):
    """Gaussian alignment (t = 2) with Riesz energy: identical positives are fine, identical images are not.

    Args:
        s: exponent of the Riesz energy, non-zero.

    Raises:
        ValueError: if `s` is not a non-zero finite number.
    """

    name: ClassVar[str] = "gaussian_riesz"

    def positive_mean(self, u: Tensor, v: Tensor) -> Tensor:
        """Return mean_i exp(-2 |u_i - v_i|^2)."""
        return Gaussian(2.0).positive_mean(u, v)


def _riesz_values(squared_distance: Tensor, s: float) -> Tensor:
    if s < 0:
        return -(squared_distance ** (-s / 2))
    values = squared_distance ** (-s / 2)
    # Below this distance two unit vectors differ only by rounding; the quotient is the size of the gradient.
    distinct = squared_distance > (4 * torch.finfo(squared_distance.dtype).eps) ** 2
    if not bool((distinct & (values / squared_distance).isfinite()).all()):
        raise ValueError(f"the Riesz kernel with s = {s} > 0 diverges: two embeddings coincide or nearly do")
    return values


def _shapes(squared_distance: Tensor, s: float) -> Tensor:
    return torch.empty_like(squared_distance)


def _save(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    squared_distance, ctx.s = inputs
    ctx.save_for_backward(squared_distance, output)


def _chain(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    squared_distance, value = ctx.saved_tensors
    return gradient * Riesz(ctx.s).slope(squared_distance, value.clone()), None


_riesz = Operator(_riesz_values, shapes=_shapes, save=_save, backward=_chain)
