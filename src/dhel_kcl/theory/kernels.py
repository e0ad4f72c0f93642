"""The kernels of KCL as scalar functions, written independently of the losses so that each can check the other."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Radial = Callable[[float], float]


def energy_kernel(config: Mapping[str, Any]) -> Radial:
    """Return the kernel of the energy as a function of r^2 in (0, 4], for a valid KCL configuration."""
    match config:
        case {"kernel": "gaussian", "t": t}:
            return lambda r2: math.exp(-t * r2)
        case {"kernel": "log", "t": t}:
            return lambda r2: -math.log1p(t * r2)
        case {"kernel": "imq", "c": c}:
            return lambda r2: c / math.sqrt(c * c + r2)
        case {"kernel": "riesz" | "gaussian_riesz", "s": s}:
            return lambda r2: math.copysign(r2 ** (-s / 2), s)
    raise ValueError(f"kernel {config.get('kernel')!r} has no formula here")


def kernel_at_zero(config: Mapping[str, Any]) -> float:
    """Return the value of the alignment's kernel at r = 0, where the views of an image coincide.

    Raises:
        ValueError: the kernel diverges there, so the loss has no lower bound.
    """
    match config:
        case {"kernel": "riesz", "s": s} if s > 0:
            raise ValueError(
                f"KCL with the Riesz kernel s = {s:g} > 0 has no minimum: its alignment diverges when the views of an "
                "image coincide; use s < 0 or the kernel gaussian_riesz"
            )
        case {"kernel": "log" | "riesz"}:
            return 0.0
        case {"kernel": "gaussian" | "imq" | "gaussian_riesz"}:
            return 1.0
    raise ValueError(f"kernel {config.get('kernel')!r} has no formula here")


def energy_weight(config: Mapping[str, Any]) -> float:
    """Return the weight of each view's energy: gamma, halved for the log kernel under `reference_weighting`."""
    halved = config["kernel"] == "log" and config.get("reference_weighting", False)
    return float(config["gamma"]) * (0.5 if halved else 1.0)
