"""Weighted kNN accuracy: agreement with scikit-learn and constructed votes."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from dhel_kcl.metrics import knn_accuracy


@pytest.mark.parametrize("k", [1, 20, 200])
def test_agrees_with_scikit_learn_on_digits(k: int) -> None:
    x, y = load_digits(return_X_y=True)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    reference = KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute"
    )
    expected = reference.fit(x[:900], y[:900]).score(x[900:], y[900:])
    assert knn_accuracy(x[:900], y[:900], x[900:], y[900:], k=k) == pytest.approx(expected, abs=2 / 897)


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack((np.cos(radians), np.sin(radians)), axis=1)


def test_one_close_neighbour_outweighs_two_far_ones() -> None:
    train, labels = at_angles(1, 60, 61), np.array([7, 3, 3])
    test = at_angles(0, 60.5)
    assert knn_accuracy(train, labels, test, np.array([7, 3]), k=3) == 1.0


def test_two_equal_votes_outweigh_one() -> None:
    train, labels = at_angles(10, 11, 12), np.array([7, 3, 3])
    assert knn_accuracy(train, labels, at_angles(0, 0), np.array([3, 7]), k=3) == 0.5
    assert knn_accuracy(train, labels, at_angles(0, 0), np.array([7, 7]), k=1) == 1.0


def test_a_class_never_seen_is_wrong_and_norms_do_not_matter() -> None:
    train, labels = at_angles(0, 90) * [[1e3], [1e-3]], torch.tensor([-5, 1000])
    test = torch.from_numpy(at_angles(5, 85, 5, 85))
    assert knn_accuracy(train, labels, test, torch.tensor([-5, 1000, 4, 4]), k=2) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be between 1 and the 3"),
        ({"k": 4}, "k must be between 1 and the 3"),
        ({"test": np.ones((3, 5))}, "share d, got 2 and 5"),
        ({"train_labels": np.zeros(2, dtype=int)}, "labels must be 3 integers"),
        ({"test_labels": np.zeros((3, 1), dtype=int)}, "labels must be 3 integers"),
        ({"test_labels": torch.zeros(3)}, "labels must be 3 integers"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    labels = np.zeros(3, dtype=int)
    good = {"train": np.ones((3, 2)), "train_labels": labels, "test": np.ones((3, 2)), "test_labels": labels, "k": 1}
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**(good | change))
