"""The file of cached features; extraction is elsewhere, so that reading it imports no data loader."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dhel_kcl.errors import InputError
from dhel_kcl.training.tensor_files import Kind, difference, read_tensors, write_tensors

REPRESENTATIONS = ("h", "z")
PLACES = ("train", "test", "test_view1", "test_view2")
"""The sets of images for which each representation is computed."""

MOST_CLASSES = 2**16
"""Labels must be below this, because code that counts classes allocates memory up to the highest label."""

_NOTE = "not_measured_"


@dataclass(frozen=True)
class Features:
    """Outputs of a frozen encoder.

    Attributes:
        tensors: ``{train,test,test_view1,test_view2}_{h,z}`` ``(N, dim)``, float32, and ``{train,test}_label``
            ``(N,)``, int64, -1 for an image without a label; empty for a run that diverged.
        not_measured: for each representation without tensors, the reason.
    """

    tensors: dict[str, Tensor]
    not_measured: dict[str, str] = field(default_factory=dict)


def save_features(features: Mapping[str, Tensor], path: Path, not_measured: Mapping[str, str] | None = None) -> None:
    """Write the tensors and reasons of `Features` atomically; equal values give equal bytes."""
    write_tensors(path, features, {_NOTE + name: reason for name, reason in (not_measured or {}).items()})


def load_features(path: Path, projected_dim: int | None = None) -> Features:
    """Read features written by `save_features`.

    Args:
        path: the file.
        projected_dim: the expected dimension of z; None accepts any.

    Raises:
        InputError: the file is missing or damaged, or holds something else.
    """
    tensors, notes = read_tensors(path, "no features; extract them first", "extract the features again")
    not_measured = {name: reason for name in REPRESENTATIONS if (reason := notes.pop(_NOTE + name, None)) is not None}
    problem = f"holds the note {min(notes)}" if notes else None
    if tensors or not_measured:
        problem = problem or difference(tensors, _expected(tensors, not_measured)) or _label_problem(tensors)
    if problem is None and projected_dim is not None and "train_z" in tensors:
        dim = tensors["train_z"].shape[1]
        problem = None if dim == projected_dim else f"has z of dimension {dim} instead of {projected_dim}"
    if problem:
        raise InputError(f"{path}: not the features of a run: it {problem}; delete it and extract the features again")
    return Features(tensors, not_measured)


def _expected(tensors: Mapping[str, Tensor], not_measured: Mapping[str, str]) -> dict[str, Kind]:
    images = {split: tensors[f"{split}_label"].numel() if f"{split}_label" in tensors else 0 for split in PLACES[:2]}
    expected: dict[str, Kind] = {f"{split}_label": (torch.int64, (count,)) for split, count in images.items()}
    for name in [name for name in REPRESENTATIONS if name not in not_measured]:
        dim = tensors[f"train_{name}"].shape[-1] if f"train_{name}" in tensors and tensors[f"train_{name}"].ndim else 0
        expected |= {f"{place}_{name}": (torch.float32, (images[place.split("_")[0]], dim)) for place in PLACES}
    return expected


def _label_problem(tensors: Mapping[str, Tensor]) -> str | None:
    for split in PLACES[:2]:
        labels = tensors[f"{split}_label"]
        if wrong := labels[(labels < -1) | (labels >= MOST_CLASSES)].tolist():
            return f"has the label {wrong[0]}"
    return None
