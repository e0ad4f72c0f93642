"""Train in several processes, one for each device, started by `torchrun`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dhel_kcl.training.encoder import Encoder


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train one run together."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def of_environment(cls) -> "Processes":
        """Return the place assigned by `torchrun`, or that of a single process."""
        rank, local_rank, world_size = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        return cls(rank, local_rank, max(1, world_size))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Join the processes with NCCL on GPUs or gloo on CPUs, and leave the group at the end."""
        if self.world_size == 1:
            yield
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield
        dist.destroy_process_group()  # not after an error: it would wait for the others, which the launcher stops

    def data_parallel(self, encoder: Encoder, device: torch.device) -> nn.Module:
        """Wrap the encoder for training by all processes together, with averaged gradients."""
        if self.world_size == 1:
            return encoder
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(encoder, device_ids=devices)


def become_torchrun(num_processes: int) -> None:
    """Replace this program by `torchrun`, which starts the same command once for each of `num_processes` devices."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher, "-m", "--", "dhel_kcl", *sys.argv[1:]]
    os.execv(sys.executable, command)  # nosec B606 # reruns the user's own command


def synchronise_batch_norm(encoder: Encoder, processes: Processes, device: torch.device) -> None:
    """Make batch normalisation use the batch of all processes; keep the parameters and the names in the state."""
    if processes.world_size == 1:
        return
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _synchronised(child, device))


def _synchronised(original: _BatchNorm, device: torch.device) -> _BatchNorm:
    kind: type[_BatchNorm] = nn.SyncBatchNorm if device.type == "cuda" else _SyncBatchNormOnCPU
    replacement = kind(original.num_features, eps=original.eps, momentum=original.momentum)
    replacement.weight, replacement.bias = original.weight, original.bias
    for name, buffer in original.named_buffers():
        setattr(replacement, name, buffer)
    return replacement


class _SumOverProcesses(torch.autograd.Function):
    """The sum of every process's tensor; its gradient is the sum of every process's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


class _SyncBatchNormOnCPU(_BatchNorm):
    """Like torch's SyncBatchNorm, which runs on GPUs only. Every process must have the same number of rows."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any number of dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        rows = x.numel() // x.shape[1] * dist.get_world_size()
        shape = [1, -1, *(1 for _ in dims[1:])]
        mean: Tensor = _SumOverProcesses.apply(x.sum(dims)) / rows
        centred = x - mean.view(shape)
        variance: Tensor = _SumOverProcesses.apply(centred.square().sum(dims)) / rows
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), self.momentum)
        normalised: Tensor = centred * (variance + self.eps).rsqrt().mul(self.weight).view(shape)
        return normalised + self.bias.view(shape)
