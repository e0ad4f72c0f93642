"""The limit functional of a loss away from the uniform law, whose value there is `asymptote`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import roots_jacobi

from dhel_kcl.losses.build import build_loss
from dhel_kcl.theory.asymptotics import log_mean_exp_cosine
from dhel_kcl.theory.batch_size import energies
from dhel_kcl.theory.kernels import energy_kernel, energy_weight, kernel_at_zero

NODES = 200
NODES_IN_THREE_DIMENSIONS = 48


def limit_functional(loss_config: Mapping[str, Any], d: int, concentration: float) -> float:
    """Return the limit of the expected loss minus `growth` for u = v of the von Mises-Fisher law on the sphere of R^d.

    With x and y independent and of that law, whose density is proportional to exp(concentration * e.x):

    - InfoNCE, NT-Xent, DCL: -1/temperature + E_x log E_y exp(x.y / temperature).
    - DHEL: the same, with the logarithm once for each view.
    - KCL: -2 k(0) + 2 gamma E k(x, y).

    E_y exp(a x.y) = m(|a x + concentration e|) / m(concentration), where m(r) is the mean of exp(r e.y) under the
    uniform law. The remaining means are Gauss-Jacobi sums, relatively accurate to 1e-9 for concentrations up to 32.

    Source: Wang & Isola 2020, arXiv 2005.10242, theorem 1; Koromilas et al. 2024, arXiv 2405.18045; K. V. Mardia and
    P. E. Jupp, Directional Statistics, 2000, section 9.3.2, for the law.

    Args:
        loss_config: a configuration for `dhel_kcl.losses.build_loss`.
        d: dimension of the embeddings, at least 3.
        concentration: >= 0; 0 is the uniform law.

    Returns:
        The functional.

    Raises:
        ValueError: the configuration is invalid, d < 3 or the concentration is negative or not finite.
    """
    build_loss(loss_config)
    if d < 3:
        raise ValueError(f"the limit functional needs d >= 3 dimensions, got {d}")
    if not 0 <= concentration < math.inf:
        raise ValueError(f"concentration must be a finite number >= 0, got {concentration!r}")
    if loss_config["name"] == "kcl":
        mean = _mean_kernel(loss_config, d, concentration)
        return -2 * kernel_at_zero(loss_config) + 2 * energy_weight(loss_config) * mean
    sharpness = 1 / float(loss_config["temperature"])
    cosines, density = _heights(d, concentration, NODES)
    reach = np.sqrt(sharpness**2 + concentration**2 + 2 * sharpness * concentration * cosines)
    inner = np.array([log_mean_exp_cosine(r, d) for r in reach]) - log_mean_exp_cosine(concentration, d)
    return float(-sharpness + energies(loss_config) * (density @ inner))


def _heights(d: int, concentration: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values of e.x with their probabilities under the von Mises-Fisher law around e."""
    cosines, weights = roots_jacobi(nodes, (d - 3) / 2, (d - 3) / 2)
    density = weights * np.exp(concentration * (cosines - 1))
    return cosines, density / density.sum()


def _mean_kernel(config: Mapping[str, Any], d: int, concentration: float) -> float:
    """Return E k(x, y); x.y is known from both heights and the angle between the parts orthogonal to e."""
    heights, density = _heights(d, concentration, NODES_IN_THREE_DIMENSIONS)
    angles, angle_density = _heights(d - 1, 0, NODES_IN_THREE_DIMENSIONS)
    radii = np.sqrt(1 - heights**2)
    cosines = np.multiply.outer(heights, heights)[..., None] + np.multiply.outer(np.outer(radii, radii), angles)
    kernel = np.vectorize(energy_kernel(config), otypes=[float])(2 - 2 * cosines)
    return float(np.einsum("ijk,i,j,k", kernel, density, density, angle_density))
