"""Kernel energies: the mean of a kernel over the pairs of a batch. Each tile is visited once."""

from dataclasses import fields

import torch
from torch import Tensor

from dhel_kcl import declarations
from dhel_kcl.losses.kernels import Kernel
from dhel_kcl.losses.streaming.distributed import agree, sum_over_processes
from dhel_kcl.losses.streaming.operators import Energy
from dhel_kcl.losses.streaming.tiles import upper_triangle


def mean_kernel(x: Tensor, kernel: Kernel) -> Tensor:
    """Return the mean over i < j of k(x_i, x_j).

    Args:
        x: (n, d) unit rows, float32 or float64.
        kernel: a kernel of this package; `declarations.kernels` lists them.

    Returns:
        Scalar.

    Raises:
        ValueError: if rows coincide under a kernel that diverges there.
    """
    return _energy(x, kernel.name, [getattr(kernel, field.name) for field in fields(kernel)])


def _kernel_energy(x: Tensor, kernel: str, parameters: list[float], with_gradient: bool) -> tuple[Tensor, Tensor]:
    k: Kernel = declarations.kernels()[kernel].load()(*parameters)  # operators cannot take objects
    num_pairs = len(x) * (len(x) - 1) / 2
    # Near r = 0 a steep kernel multiplies x_i - x_j by so much that rounding in float32 would swamp the difference.
    points = x.double() if k.steep else x
    fault = ""
    total, gradient = points.new_zeros(()), torch.zeros_like(points if with_gradient else points[:0])
    for rows, columns in upper_triangle(x):
        on_diagonal = rows == columns
        squared = _squared_distances(x[rows], x[columns], k.steep)
        if on_diagonal:
            squared.fill_diagonal_(1)
        try:
            values = k.radial(squared)
        except ValueError as error:  # the other processes, whose tiles are sound, must not wait for this one
            fault = str(error)
            break
        if on_diagonal:
            values.fill_diagonal_(0)
        total += values.sum() / (2 if on_diagonal else 1)
        if not with_gradient:
            continue
        # d r^2 / d x_i = 2 (x_i - x_j), or -2 x_j without its part along x_i, which normalisation removes.
        weights = k.slope(squared, values).to(points.dtype)
        if on_diagonal:
            weights.fill_diagonal_(0)
        gradient[rows].addmm_(weights, points[columns])
        if not on_diagonal:
            gradient[columns].addmm_(weights.T, points[rows])
        if k.steep:
            gradient[rows] -= weights.sum(dim=1, keepdim=True) * points[rows]
            if not on_diagonal:
                gradient[columns] -= weights.sum(dim=0)[:, None] * points[columns]
    if k.steep:
        agree(len(x), x.shape[1], fault, x.device)
    value = sum_over_processes(total) / num_pairs
    return value.to(x.dtype), sum_over_processes(gradient.mul_(-2 / num_pairs)).to(x.dtype)


def _squared_distances(x: Tensor, y: Tensor, steep: bool) -> Tensor:
    """Return |x_i - y_j|^2 of unit rows: from the coordinates if every digit counts, else as 2 - 2 x_i.y_j."""
    if steep:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return (x * -2 @ y.T).add_(2).clamp_(min=0)


_energy = Energy(_kernel_energy)
