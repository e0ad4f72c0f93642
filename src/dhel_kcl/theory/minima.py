"""Minima of contrastive losses in closed form, where they are known."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dhel_kcl.losses.build import build_loss
from dhel_kcl.theory.kernels import energy_kernel, energy_weight, kernel_at_zero


def minimum(loss_config: Mapping[str, Any], m: int, d: int) -> float:
    """Return the least value of a loss over all batches of m pairs on the unit sphere of R^d.

    It is attained where the two views of each image coincide and the images form

    - a regular simplex, for m <= d + 1 and every loss (Koromilas et al. 2024; Jensen's inequality);
    - a cross-polytope, for m = 2d and KCL with a kernel that is completely monotone in r^2, up to a constant
      (Cohn & Kumar 2007, arXiv math/0607446).

    Args:
        loss_config: a configuration for `dhel_kcl.losses.build_loss`.
        m: number of pairs, at least 2.
        d: dimension of the embeddings, at least 1.

    Returns:
        The minimum.

    Raises:
        ValueError: the configuration is invalid, the loss is unbounded below, or the minimum is not known.
    """
    build_loss(loss_config)
    if m < 2 or d < 1:
        raise ValueError(f"a minimum needs m >= 2 pairs in d >= 1 dimensions, got m = {m}, d = {d}")
    if loss_config["name"] == "kcl":
        return _kcl(loss_config, m, d)
    if m > d + 1:
        raise ValueError(
            f"the minimum of {loss_config['name']} for m = {m} pairs in d = {d} dimensions is not known; "
            "it is known for m <= d + 1 (simplex)"
        )
    temperature = float(loss_config["temperature"])
    gap = -m / (m - 1) / temperature  # negative minus positive cosine, -1 / (m - 1) - 1, over the temperature
    match loss_config["name"]:
        case "infonce":
            return float(np.logaddexp(0, math.log(m - 1) + gap))
        case "ntxent":
            return float(np.logaddexp(0, math.log(2 * (m - 1)) + gap))
        case "dcl":
            return math.log(2 * (m - 1)) + gap
        case "dhel":
            views = 2 if loss_config.get("both_views", True) else 1
            return -1 / temperature + views * (math.log(m - 1) - 1 / ((m - 1) * temperature))
    raise ValueError(f"the minimum of {loss_config['name']} is not known")


def _kcl(config: Mapping[str, Any], m: int, d: int) -> float:
    s = config.get("s")
    concave = s is not None and s < -2
    k = energy_kernel(config)
    if m == 2 or (m <= d + 1 and not concave):
        energy = k(2 * m / (m - 1))
    elif m == 2 * d and not concave:
        energy = (k(4) + (2 * d - 2) * k(2)) / (2 * d - 1)
    else:
        kernel = config["kernel"] + (f" with s = {s:g}" if concave else "")
        known = "m = 2" if concave else "m <= d + 1 (simplex) and m = 2d (cross-polytope)"
        raise ValueError(
            f"the minimum of KCL with the kernel {kernel} for m = {m} pairs in d = {d} dimensions is not known; "
            f"it is known for {known}"
        )
    return -2 * kernel_at_zero(config) + 2 * energy_weight(config) * energy
