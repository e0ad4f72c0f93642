"""The file of cached features; apart from their extraction, so that reading it imports no data loader."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from dhel_kcl.artifacts import atomic_path
from dhel_kcl.errors import InputError


def save_features(features: dict[str, Tensor], path: Path) -> None:
    """Write named tensors, atomically, with the same bytes for the same values."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize(features))


def load_features(path: Path) -> dict[str, Tensor]:
    """Read features written by `save_features`.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return load_file(path)  # type: ignore[no-any-return, unused-ignore]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no features; extract them first") from error
    except SafetensorError as error:
        raise InputError(f"{path}: damaged ({error}); delete it and extract the features again") from error
