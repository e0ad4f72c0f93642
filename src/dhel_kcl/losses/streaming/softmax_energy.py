"""Softmax energies: the mean over anchors of the logsumexp of similarities divided by a temperature.

Each tile is visited twice: once for the normaliser of each anchor and once for the gradient.
"""

import math

import torch
from torch import Tensor

from dhel_kcl.losses.streaming.distributed import logsumexp_over_processes, sum_over_processes
from dhel_kcl.losses.streaming.operators import Energy
from dhel_kcl.losses.streaming.tiles import rectangle, upper_triangle


def mean_logsumexp(x: Tensor, temperature: float, without: tuple[int, ...] = (0,)) -> Tensor:
    """Return the mean over rows a of logsumexp_b (x_a.x_b / temperature).

    Args:
        x: (n, d) unit rows, float32 or float64.
        temperature: > 0.
        without: the distances |b - a| that the sum leaves out; 0 is the anchor itself.

    Returns:
        Scalar.
    """
    return _energy(x, 1 / temperature, 0, list(without), True)


def mean_logsumexp_across(u: Tensor, v: Tensor, temperature: float, symmetric: bool) -> Tensor:
    """Return the mean over rows u_i of logsumexp_j (u_i.v_j / temperature).

    Args:
        u: (M, d) unit rows, float32 or float64.
        v: (M, d) unit rows of the same dtype.
        temperature: > 0.
        symmetric: take the mean over rows v_i too.

    Returns:
        Scalar.
    """
    return _energy(torch.cat((u, v)), 1 / temperature, len(u), [], symmetric)


def _softmax_energy(
    x: Tensor, scale: float, split: int, without: list[int], symmetric: bool, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    tiles = rectangle(x, split) if split else upper_triangle(x)
    scaled = x * scale
    offsets = {sign * distance for distance in without for sign in (1, -1)}
    # Unit rows keep logits within [-scale, scale]. Unless exp(-2 scale) underflows, their maximum is not needed.
    bounded = 2 * scale < -math.log(torch.finfo(x.dtype).tiny) - 1

    def tile_of(rows: slice, columns: slice) -> Tensor:
        """Return logits, or the exponentials of logits - scale if `bounded`."""
        tile = scaled[rows] @ x[columns].T
        for offset in offsets:
            diagonal = rows.start - columns.start + offset
            if -len(tile) < diagonal < tile.shape[1]:
                tile.diagonal(diagonal).fill_(-torch.inf)
        return tile.sub_(scale).exp_() if bounded else tile

    total = x.new_zeros(len(x)) if bounded else x.new_full((len(x),), -torch.inf)
    add, reduce = (torch.add, Tensor.sum) if bounded else (torch.logaddexp, Tensor.logsumexp)
    for rows, columns in tiles:
        tile = tile_of(rows, columns)
        total[rows] = add(total[rows], reduce(tile, dim=1))
        if symmetric and rows != columns:
            total[columns] = add(total[columns], reduce(tile, dim=0))
    total = sum_over_processes(total) if bounded else logsumexp_over_processes(total)
    anchors = len(x) if symmetric else split
    value = (total[:anchors].log() + scale if bounded else total[:anchors]).mean()
    if not with_gradient:
        return value, torch.empty_like(x[:0])

    gradient = torch.zeros_like(x)
    for rows, columns in tiles:
        if len(tiles) > 1:  # a small batch is one tile, which is still at hand
            tile = tile_of(rows, columns)
        if bounded:
            share = total[rows, None].reciprocal()
            weights = tile.mul_(share + total[columns].reciprocal() if symmetric else share)
        else:
            weights = (tile - total[rows, None]).exp_()
            if symmetric:
                weights += tile.sub_(total[columns]).exp_()
        gradient[rows].addmm_(weights, x[columns])
        if rows != columns:
            gradient[columns].addmm_(weights.T, x[rows])
    return value, sum_over_processes(gradient.mul_(scale / anchors))


_energy = Energy(_softmax_energy)
