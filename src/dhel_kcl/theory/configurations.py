"""Point configurations on the sphere that minimise contrastive losses."""

import torch
from scipy.linalg import helmert
from torch import Tensor


def simplex(m: int, d: int) -> Tensor:
    """Return the vertices of a regular simplex; any two have cosine similarity -1 / (m - 1).

    Args:
        m: number of points, 2 <= m <= d + 1.
        d: dimension of the space.

    Returns:
        (m, d) float64 with unit rows, zero beyond the first m - 1 coordinates.

    Raises:
        ValueError: there is no such simplex.
    """
    if not 2 <= m <= d + 1:
        raise ValueError(f"a simplex of {m} points in {d} dimensions does not exist; it needs 2 <= m <= d + 1")
    # The columns of the Helmert matrix are a regular simplex with squared norm (m - 1) / m.
    vertices = torch.from_numpy(helmert(m).T.copy()) * (m / (m - 1)) ** 0.5
    return torch.nn.functional.pad(vertices, (0, d - (m - 1)))


def cross_polytope(d: int) -> Tensor:
    """Return the vertices e_1, -e_1, ..., e_d, -e_d of the cross-polytope.

    Args:
        d: dimension of the space, at least 1.

    Returns:
        (2d, d) float64 with unit rows; rows 2k and 2k + 1 are antipodes.

    Raises:
        ValueError: d is not positive.
    """
    if d < 1:
        raise ValueError(f"a cross-polytope needs at least 1 dimension, got {d}")
    axes = torch.eye(d, dtype=torch.float64)
    return torch.stack((axes, -axes), dim=1).reshape(2 * d, d)
