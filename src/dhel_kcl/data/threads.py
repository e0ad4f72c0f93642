"""FFCV sets the thread counts of torch and numba for the whole process; this puts them back."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch


@contextmanager
def preserved_thread_counts() -> Iterator[None]:
    """Restore the thread counts of torch and numba on leaving the block."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)
