"""The part of a mini-batch loss that depends on the batch size alone."""

import math
from collections.abc import Mapping
from typing import Any

from dhel_kcl.losses.build import build_loss


def growth(loss_config: Mapping[str, Any], m: int) -> float:
    """Return the part of a mini-batch loss that grows with the number of pairs m; `asymptote` is the limit of the rest.

    It is the logarithm of the number of terms that a logarithm of the loss sums, which turns each sum into a mean: log
    m for InfoNCE, log(2m - 1) for NT-Xent, log(2m - 2) for DCL, log(m - 1) for each view's energy in DHEL, and 0 for
    KCL. What is left does not change with m when all similarities are equal.

    Args:
        loss_config: a configuration for `dhel_kcl.losses.build_loss`.
        m: number of pairs, at least 2.

    Raises:
        ValueError: the configuration is invalid or m < 2.
    """
    build_loss(loss_config)
    if m < 2:
        raise ValueError(f"a contrastive loss needs at least 2 positive pairs, got {m}")
    terms = {"infonce": m, "ntxent": 2 * m - 1, "dcl": 2 * m - 2, "dhel": m - 1}
    return 0.0 if loss_config["name"] == "kcl" else energies(loss_config) * math.log(terms[loss_config["name"]])


def energies(config: Mapping[str, Any]) -> int:
    """Return the number of logarithms that the energy sums."""
    match config["name"]:
        case "dhel" if config.get("both_views", True):
            return 2
        case "infonce" | "ntxent" | "dcl" | "dhel":
            return 1
    raise ValueError(f"the limit of {config['name']} is not known")
