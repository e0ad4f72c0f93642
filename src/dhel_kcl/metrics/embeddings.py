"""Read and check embeddings given as tensors or arrays, and iterate over their pairs in bounded memory."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

Embeddings = torch.Tensor | NDArray[np.floating]
BLOCK_ROWS = 256


def matrix(x: Embeddings) -> NDArray[np.float64]:
    """Return embeddings as a float64 array.

    Args:
        x: (n, d) real tensor on any device, or array; n >= 2, d >= 1.

    Returns:
        (n, d) float64 array.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2 and d >= 1, or a value is NaN or infinite.
    """
    if isinstance(x, torch.Tensor):
        x = x.detach().to(device="cpu", dtype=torch.float64).numpy()
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise ValueError(f"embeddings must have shape (n, d) with n >= 2 and d >= 1, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("embeddings hold NaN or infinity")
    return values


def unit_rows(x: Embeddings) -> NDArray[np.float64]:
    """Return embeddings as a float64 array with rows on the unit sphere.

    Args:
        x: (n, d) real tensor on any device, or array; n >= 2, d >= 1, no zero row.

    Returns:
        (n, d) float64 array with unit rows.

    Raises:
        ValueError: as for `matrix`, or if a row is zero.
    """
    values = matrix(x)
    largest = np.abs(values).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(f"row {int(largest.argmin())} of the embeddings is zero: it has no direction on the sphere")
    values = values / largest
    unit: NDArray[np.float64] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit


def pair_similarities(u: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield u_i.u_j for all i < j in pieces, each pair once.

    Args:
        u: (n, d) array with unit rows.

    Yields:
        1-D arrays with values in [-1, 1], at most `BLOCK_ROWS` * n long.
    """
    for start in range(0, len(u), BLOCK_ROWS):
        rows, later = u[start : start + BLOCK_ROWS], u[start + BLOCK_ROWS :]
        within = (rows @ rows.T)[np.triu_indices(len(rows), k=1)]
        for piece in (within, (rows @ later.T).ravel()):
            if piece.size:
                yield np.clip(piece, -1, 1, out=piece)
