"""Run work in several processes joined by gloo."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def launch(work: Callable[[int, int], Any], processes: int, folder: Path) -> list[Any]:
    """Run `work(rank, processes)` in that many processes, and return the result of each."""
    torch.multiprocessing.spawn(_process, (processes, work, folder), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def _process(rank: int, processes: int, work: Callable[[int, int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=processes, timeout=timedelta(minutes=5)
    )
    torch.save(work(rank, processes), folder / f"{rank}.pt")
    dist.destroy_process_group()
