"""Build losses and kernels by the names that the classes of this package declare and configs use."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from dhel_kcl import declarations
from dhel_kcl.losses.pair_loss import PairLoss


def build_loss(config: Mapping[str, Any]) -> PairLoss:
    """Build a loss from a flat mapping.

    Keys: `name` (`dcl`, `dhel`, `infonce`, `kcl`, `ntxent` or another loss of this package), the loss's own parameters,
    and for `kcl` also `kernel` (`gaussian`, `gaussian_riesz`, `imq`, `log`, `riesz` or another kernel) and that
    kernel's parameter.

    Args:
        config: for example ``{"name": "dhel", "temperature": 0.3}`` or
            ``{"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0}``.

    Returns:
        The loss, a `torch.nn.Module`.

    Raises:
        ValueError: if a name or key is unknown or missing, or a value is out of range; the message is one line that
            lists the valid choices.
    """
    loss = _choose(declarations.losses(), config, "name")
    loss_parameters = dict(signature(loss).parameters)
    if "kernel" not in loss_parameters:
        _check_keys(config, ["name"], loss_parameters)
        built: PairLoss = loss(**_pick(config, loss_parameters))
        return built
    del loss_parameters["kernel"]
    kernel = _choose(declarations.kernels(), config, "kernel")
    kernel_parameters = signature(kernel).parameters
    _check_keys(config, ["name", "kernel"], {**kernel_parameters, **loss_parameters})
    built = loss(kernel=kernel(**_pick(config, kernel_parameters)), **_pick(config, loss_parameters))
    return built


def _choose(declared: Mapping[str, declarations.Declared], config: Mapping[str, Any], key: str) -> Any:
    choice = config.get(key)
    if not isinstance(choice, str) or choice not in declared:
        raise ValueError(f"loss config: {key} must be one of {', '.join(declared)}; got {choice!r}")
    return declared[choice].load()


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
