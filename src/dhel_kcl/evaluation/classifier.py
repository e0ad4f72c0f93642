"""The linear classifier of a run and its file; fitting is elsewhere, so that applying it imports no metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dhel_kcl.errors import InputError
from dhel_kcl.training.tensor_files import Kind, difference, read_tensors, write_tensors

Array = NDArray[Any]


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier for unstandardised features: the standardisation is folded into the weights.

    Attributes:
        weight: ``(C, dim)``.
        bias: ``(C,)``.
        classes: the label of each of the C scores.
    """

    weight: Array
    bias: Array
    classes: Array

    def predict(self, features: Array) -> Array:
        """Predict the labels ``(N,)`` of features ``(N, dim)``.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        scores = features @ self.weight.T + self.bias
        if not np.isfinite(scores).all():
            raise ValueError("the scores of the linear classifier hold NaN or infinity")
        predicted: Array = self.classes[scores.argmax(axis=1)]
        return predicted


def save_classifier(classifier: LinearClassifier | None, path: Path, not_measured: str | None = None) -> None:
    """Write a classifier, or the reason why there is none, atomically as safetensors."""
    # safetensors writes an array's raw memory and ignores the order of its axes.
    arrays = {name: np.ascontiguousarray(array) for name, array in vars(classifier).items()} if classifier else {}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(path, tensors, {"not_measured": not_measured} if not_measured else None)


def load_classifier(path: Path) -> LinearClassifier | str:
    """Read a classifier written by `save_classifier`, or the reason why there is none.

    Raises:
        InputError: the file is missing or damaged, or holds neither.
    """
    tensors, notes = read_tensors(path, "no classifier; evaluate the run first", "evaluate the run again")
    if not tensors and notes.keys() == {"not_measured"}:
        return notes["not_measured"]
    classes, dim = (
        tensors[name].shape[-1] if name in tensors and tensors[name].ndim else 0 for name in ("bias", "weight")
    )
    expected: dict[str, Kind] = {
        "weight": (torch.float64, (classes, dim)),
        "bias": (torch.float64, (classes,)),
        "classes": (torch.int64, (classes,)),
    }
    problem = difference(tensors, expected)
    if problem is None and (classes < 2 or not (tensors["classes"].diff() > 0).all() or tensors["classes"][0] < 0):
        problem = "does not name two or more classes in their order"
    if problem:
        raise InputError(f"{path}: holds no classifier: it {problem}; delete it and evaluate the run again")
    return LinearClassifier(**{name: tensor.numpy() for name, tensor in tensors.items()})


def why_not_classified(train_counts: Sequence[int], test_counts: Sequence[int]) -> str | None:
    """Return why a data set allows no measurement that needs labels, or None if it does.

    Args:
        train_counts: number of labelled training images of each class.
        test_counts: number of labelled test images of each class.
    """
    classes = sum(count > 0 for count in train_counts)
    if classes < 2:
        return "no training image has a label" if classes == 0 else "all labelled training images are of one class"
    return None if any(test_counts) else "no test image has a label"
