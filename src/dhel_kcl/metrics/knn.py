"""Weighted k-nearest-neighbour accuracy on frozen embeddings."""

import numpy as np
import torch
from numpy.typing import NDArray

from dhel_kcl.metrics.embeddings import Embeddings, unit_rows

Labels = torch.Tensor | NDArray[np.integer]
TEMPERATURE = 0.07
BLOCK_ROWS = 512


def knn_accuracy(train: Embeddings, train_labels: Labels, test: Embeddings, test_labels: Labels, k: int = 20) -> float:
    """Return the share of test embeddings whose class wins the vote of the k nearest training embeddings.

    Neighbours are the largest cosines; each votes for its class with weight exp(cosine / 0.07).

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4 (there k = 200), also the kNN monitor of SimSiam (Chen & He
    2021, arXiv 2011.10566).

    Args:
        train: (n, d) real tensor or array, n >= 2.
        train_labels: (n,) integer tensor or array, any values.
        test: (m, d) real tensor or array, m >= 2.
        test_labels: (m,) integer tensor or array; a class absent from `train_labels` counts as wrong.
        k: number of neighbours, 1 <= k <= n.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: if shapes do not agree, labels are not integers, a row is zero, a value is NaN or infinite, or `k`
            is outside [1, n].
    """
    train_rows, test_rows = torch.from_numpy(unit_rows(train)).float(), torch.from_numpy(unit_rows(test)).float()
    if train_rows.shape[1] != test_rows.shape[1]:
        raise ValueError(f"train and test must share d, got {train_rows.shape[1]} and {test_rows.shape[1]}")
    if not 1 <= k <= len(train_rows):
        raise ValueError(f"k must be between 1 and the {len(train_rows)} training embeddings, got {k}")
    classes, train_classes = np.unique(_labels(train_labels, len(train_rows)), return_inverse=True)
    targets = _labels(test_labels, len(test_rows))
    correct = 0
    for start in range(0, len(test_rows), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        cosine, neighbour = (test_rows[block] @ train_rows.T).topk(k, dim=1)
        votes = torch.zeros(len(cosine), len(classes))
        votes.scatter_add_(1, torch.from_numpy(train_classes)[neighbour], (cosine / TEMPERATURE).exp())
        correct += int((classes[votes.argmax(dim=1).numpy()] == targets[block]).sum())
    return correct / len(test_rows)


def _labels(labels: Labels, count: int) -> NDArray[np.integer]:
    values = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels must be {count} integers, got shape {values.shape} of {values.dtype}")
    return values
