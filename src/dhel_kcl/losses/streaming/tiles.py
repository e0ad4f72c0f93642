"""Divide the matrix of pairs into tiles, so that it is never held as a whole: memory is O(tile x batch)."""

from collections.abc import Sequence

from torch import Tensor

from dhel_kcl.losses.streaming import distributed

CPU_TILE_ROWS = 640
"""1.6 MiB of float32, about the size of a core's cache; twice or half as many rows are hardly slower."""
ACCELERATOR_TILE_ROWS = 4096
"""64 MiB of float32, large enough to keep the device busy."""

Tile = tuple[slice, slice]


def upper_triangle(x: Tensor) -> Sequence[Tile]:
    """Return this process's share of the tiles on and above the diagonal of the pairs (x_a, x_b)."""
    spans = _spans(x, 0, len(x))
    return distributed.share([(rows, columns) for i, rows in enumerate(spans) for columns in spans[i:]])


def rectangle(x: Tensor, split: int) -> Sequence[Tile]:
    """Return this process's share of the tiles that pair rows before `split` with rows from `split` on."""
    return distributed.share([(rows, columns) for rows in _spans(x, 0, split) for columns in _spans(x, split, len(x))])


def _spans(x: Tensor, start: int, stop: int) -> list[slice]:
    largest = CPU_TILE_ROWS if x.device.type == "cpu" else ACCELERATOR_TILE_ROWS
    size = min(largest, -(-(stop - start) // distributed.num_processes()))
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
