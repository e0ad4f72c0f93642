"""Read and write named tensors (safetensors): equal values give equal bytes, and unexpected tensors are refused.

Files are read into memory, not mapped: truncating a mapped file while it is in use crashes the process.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dhel_kcl.errors import InputError, few
from dhel_kcl.files import atomic_path, parse_json, read_regular

Kind = tuple[torch.dtype, tuple[int, ...]]
"""The expected dtype and shape of a tensor."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write contiguous CPU tensors, together with named texts, atomically.

    Raises:
        InputError: the disk is full or the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(tensors), dict(notes) if notes else None))


def read_tensors(path: Path, missing: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and texts of a file written by `write_tensors`.

    Args:
        path: the file.
        missing: message, after the path, if the file is missing.
        remedy: what to do after deleting the file, if it is damaged.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: {missing}") from error
    try:
        tensors: dict[str, Tensor] = load(content)
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, AssertionError, AttributeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged ({reason}); delete it and {remedy}") from error
    return tensors, header.get("__metadata__", {})


def difference(tensors: Mapping[str, Tensor], expected: Mapping[str, Kind]) -> str | None:
    """Return how tensors differ from the expected ones, or that they are not finite; None if all is well."""
    if absent := sorted(expected.keys() - tensors.keys()):
        return f"lacks {few(absent, 3)}"
    if others := sorted(tensors.keys() - expected.keys()):
        return f"holds {few(others, 3)} too"
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            return f"{name} has shape {tuple(tensor.shape)} instead of {shape}"
        if tensor.dtype != dtype:
            return f"{name} is {_name(tensor.dtype)} instead of {_name(dtype)}"
        if not is_finite(tensor):
            return f"{name} holds NaN or infinity"
    return None


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """Return the dtype and shape of each tensor."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
