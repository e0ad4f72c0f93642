"""The expected mini-batch loss of perfectly aligned, uniformly distributed embeddings, and its limit."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.special import betaln, gammaln, hyp0f1, ive

from dhel_kcl.losses.build import build_loss
from dhel_kcl.theory.batch_size import energies
from dhel_kcl.theory.kernels import energy_kernel, energy_weight, kernel_at_zero


def asymptote(loss_config: Mapping[str, Any], d: int) -> float:
    """Return the limit of the expected loss minus `growth` for large batches, for u = v uniform on the sphere of R^d.

    - InfoNCE, NT-Xent, DCL: -1/temperature + log E exp(x.y / temperature).
    - DHEL: the same, with the logarithm once for each view.
    - KCL: -2 k(0) + 2 gamma E k(x, y), which equals the expected loss at every batch size.

    x and y are independent and uniform on the sphere, where E exp(a x.y) = Gamma(d/2) (2/a)^(d/2-1) I_{d/2-1}(a).

    Source: Wang & Isola 2020, arXiv 2005.10242, theorem 1, for the limit; Koromilas et al. 2024, arXiv 2405.18045.

    Args:
        loss_config: a configuration for `dhel_kcl.losses.build_loss`; temperatures from 0.001 up.
        d: dimension of the embeddings, at least 2.

    Returns:
        The limit.

    Raises:
        ValueError: the configuration is invalid, d < 2, or the expectation is infinite.
    """
    build_loss(loss_config)
    if d < 2:
        raise ValueError(f"the uniform law on the sphere needs d >= 2 dimensions, got {d}")
    if loss_config["name"] == "kcl":
        return -2 * kernel_at_zero(loss_config) + 2 * energy_weight(loss_config) * _mean_kernel(loss_config, d)
    sharpness = 1 / float(loss_config["temperature"])
    return -sharpness + energies(loss_config) * log_mean_exp_cosine(sharpness, d)


def log_mean_exp_cosine(a: float, d: int) -> float:
    """Return the logarithm of E exp(a x.y), a >= 0, for x and y uniform on the sphere of R^d."""
    if a == 0:
        return 0.0
    order = d / 2 - 1
    scaled = ive(order, a)
    if scaled > np.finfo(float).tiny:
        return float(gammaln(d / 2) + order * math.log(2 / a) + math.log(scaled) + a)
    return math.log(hyp0f1(d / 2, a * a / 4))  # the same function, from its expansion for large orders


def _mean_kernel(config: Mapping[str, Any], d: int) -> float:
    """Return E k(x, y) for x and y uniform on the sphere of R^d."""
    match config:
        case {"kernel": "gaussian", "t": t}:
            return math.exp(-2 * t + log_mean_exp_cosine(2 * t, d))
        case {"kernel": "riesz" | "gaussian_riesz", "s": s}:
            if s >= d - 1:
                raise ValueError(
                    f"the mean Riesz kernel with s = {s:g} in d = {d} dimensions is infinite; use s < d - 1"
                )
            half = (d - 1) / 2  # r^2 / 4 follows Beta(half, half)
            return math.copysign(2**-s * math.exp(betaln(half - s / 2, half) - betaln(half, half)), s)
    k = energy_kernel(config)
    log_norm = betaln(0.5, (d - 1) / 2)

    def integrand(tilt: float) -> float:
        """Return the kernel times the density at the angle pi/2 + tilt between x and y."""
        return k(2 + 2 * math.sin(tilt)) * math.exp((d - 2) * math.log(math.cos(tilt)) - log_norm)

    reach = min(math.pi / 2, 12 / math.sqrt(d))  # beyond it the density is below e^-70
    value, _ = quad(integrand, -reach, reach, epsabs=0, epsrel=1e-12, limit=200)
    return float(value)
