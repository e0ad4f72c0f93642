"""Every loss with every option and kernel, as `build_loss` takes it."""

from typing import Any

LossConfig = dict[str, Any]

TEMPERATURE: list[LossConfig] = [
    {"name": "infonce", "temperature": 0.2},
    {"name": "infonce", "temperature": 0.5, "symmetric": False},
    {"name": "ntxent", "temperature": 0.3},
    {"name": "dcl", "temperature": 0.3},
    {"name": "dhel", "temperature": 0.3},
    {"name": "dhel", "temperature": 0.7, "both_views": False},
]
COMPLETELY_MONOTONE: list[LossConfig] = [
    {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0},
    {"name": "kcl", "kernel": "log", "t": 2.0, "gamma": 3.0},
    {"name": "kcl", "kernel": "log", "t": 2.0, "gamma": 3.0, "reference_weighting": True},
    {"name": "kcl", "kernel": "imq", "c": 0.5, "gamma": 1.0},
    {"name": "kcl", "kernel": "riesz", "s": -1.0, "gamma": 2.0},
    {"name": "kcl", "kernel": "riesz", "s": -2.0, "gamma": 2.0},
    {"name": "kcl", "kernel": "gaussian_riesz", "s": 1.0, "gamma": 2.0},
    {"name": "kcl", "kernel": "gaussian_riesz", "s": -1.5, "gamma": 2.0, "reference_weighting": True},
]
ALL = [*TEMPERATURE, *COMPLETELY_MONOTONE]


def name_of(config: Any) -> str | None:
    """Identifier of a test; None leaves what is not a configuration to pytest."""
    return "-".join(map(str, config.values())) if isinstance(config, dict) else None
