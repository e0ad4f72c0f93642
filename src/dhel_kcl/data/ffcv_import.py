"""Undo the process-wide settings that FFCV changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def importing_ffcv() -> Iterator[None]:
    """Import FFCV without its changes to thread counts and without the seconds it spends compiling two dictionary keys.

    This package uses none of the functions that FFCV would compile on import.
    """
    config: Any = numba.config
    disabled, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        with preserved_thread_counts():
            yield
    finally:
        config.DISABLE_JIT = disabled
