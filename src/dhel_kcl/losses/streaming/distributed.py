"""Compute losses of the joint batch of all processes when `torch.distributed` is initialised.

Each process calls the loss on its own rows and gets the value for the whole batch, and the gradient of that value with
respect to its own rows. `DistributedDataParallel` averages gradients over processes, so multiply the loss by the number
of processes before `backward`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dhel_kcl.losses.streaming.operators import Operator

Item = TypeVar("Item")


def num_processes() -> int:
    """Return the size of the default process group, or 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(work: Sequence[Item]) -> Sequence[Item]:
    """Return this process's part of a list of equal pieces of work."""
    processes = num_processes()
    return work if processes == 1 else work[dist.get_rank() :: processes]


def sum_over_processes(x: Tensor) -> Tensor:
    """Replace `x` with its sum over all processes, and return it."""
    if num_processes() > 1:
        dist.all_reduce(x)
    return x


def logsumexp_over_processes(x: Tensor) -> Tensor:
    """Return the elementwise logsumexp of `x` over all processes; -inf means that a process adds nothing."""
    if num_processes() == 1:
        return x
    largest = x.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return sum_over_processes((x - largest).exp_()).log_().add_(largest)


def agree(batch_size: int, embedding_dim: int, fault: str, device: torch.device) -> None:
    """Raise an error on every process if one has a fault or a different shape, so that none waits for a failed one.

    Args:
        batch_size: this process's number of positive pairs.
        embedding_dim: this process's embedding dimension.
        fault: what is wrong with this process's input, empty if nothing.
        device: where the process group communicates.

    Raises:
        ValueError: if any process has a fault or the shapes differ.
    """
    if num_processes() > 1:
        mine = torch.tensor([batch_size, embedding_dim, bool(fault)], device=device)
        everyone = [torch.empty_like(mine) for _ in range(num_processes())]
        dist.all_gather(everyone, mine)
        for rank, (other_size, other_dim, faulty) in enumerate(torch.stack(everyone).tolist()):
            if faulty and not fault:
                fault = f"process {rank} was given projections that have no loss; its own error says which"
            elif (other_size, other_dim) != (batch_size, embedding_dim) and not fault:
                fault = (
                    f"process {dist.get_rank()} has {batch_size} pairs of dimension {embedding_dim} and process {rank} "
                    f"has {other_size} of {other_dim}; every process needs the same (drop the last, smaller batch)"
                )
    if fault:
        raise ValueError(fault)


def gather_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all processes in rank order; return `x` itself if there is no process group.

    The gradient of the result must be the same on every process, as it is when each computes the loss of the whole
    batch. The gradient of `x` is then the part that belongs to its rows.
    """
    gathered: Tensor = x if num_processes() == 1 else _gather(x, num_processes())
    return gathered


def _gather_rows(x: Tensor, processes: int) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(processes)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def _shapes(x: Tensor, processes: int) -> Tensor:
    return x.new_empty(len(x) * processes, x.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.batch_size = len(inputs[0])


def _own_rows(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    start = dist.get_rank() * ctx.batch_size
    return gradient[start : start + ctx.batch_size].clone(), None


_gather = Operator(_gather_rows, shapes=_shapes, save=_save, backward=_own_rows)
