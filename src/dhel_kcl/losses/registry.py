"""Losses and kernels by the names that configs use."""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeVar

from dhel_kcl.losses.dcl import DCL
from dhel_kcl.losses.dhel import DHEL
from dhel_kcl.losses.infonce import InfoNCE
from dhel_kcl.losses.kcl import KCL
from dhel_kcl.losses.kernels import KERNELS
from dhel_kcl.losses.ntxent import NTXent
from dhel_kcl.losses.pair_loss import PairLoss

Builder = TypeVar("Builder")

LOSSES: dict[str, Callable[..., PairLoss]] = {
    "infonce": InfoNCE,
    "ntxent": NTXent,
    "dcl": DCL,
    "dhel": DHEL,
    "kcl": KCL,
}


def build_loss(config: Mapping[str, Any]) -> PairLoss:
    """Build a loss from a flat mapping.

    Keys: `name` (`infonce`, `ntxent`, `dcl`, `dhel` or `kcl`), the loss's own parameters, and for `kcl` also `kernel`
    (`gaussian`, `log`, `imq`, `riesz` or `gaussian_riesz`) and that kernel's parameter.

    Args:
        config: such as ``{"name": "dhel", "temperature": 0.3}`` or
            ``{"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0}``.

    Returns:
        The loss, a `torch.nn.Module`.

    Raises:
        ValueError: in one line that lists the valid choices, if a name or key is unknown or missing, or a value is out
            of range.
    """
    loss = _choose(LOSSES, config, "name")
    loss_parameters = dict(signature(loss).parameters)
    if "kernel" not in loss_parameters:
        _check_keys(config, ["name"], loss_parameters)
        return loss(**_pick(config, loss_parameters))
    del loss_parameters["kernel"]
    kernel = _choose(KERNELS, config, "kernel")
    kernel_parameters = signature(kernel).parameters
    _check_keys(config, ["name", "kernel"], {**kernel_parameters, **loss_parameters})
    return loss(kernel=kernel(**_pick(config, kernel_parameters)), **_pick(config, loss_parameters))


def _choose(registry: Mapping[str, Builder], config: Mapping[str, Any], key: str) -> Builder:
    choice = config.get(key)
    if not isinstance(choice, str) or choice not in registry:
        raise ValueError(f"loss config: {key} must be one of {', '.join(registry)}; got {choice!r}")
    return registry[choice]


def _check_keys(config: Mapping[str, Any], names: list[str], parameters: Mapping[str, Parameter]) -> None:
    unknown = [key for key in config if key not in {*names, *parameters}]
    missing = [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in config
    ]
    for fault, keys in (("unknown", unknown), ("missing", missing)):
        if keys:
            described = "/".join(config[name] for name in names)
            valid = ", ".join([*names, *parameters])
            raise ValueError(
                f"loss config: {fault} {', '.join(map(str, keys))} for {described}; valid keys are {valid}"
            )


def _pick(config: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    return {key: config[key] for key in parameters if key in config}
