"""Choosing a device and making its arithmetic repeatable."""

import os

import torch

from dhel_kcl.config import ComputeConfig
from dhel_kcl.errors import InputError


def prepare_device(compute: ComputeConfig) -> torch.device:
    """Pick the device, fix the thread count and switch deterministic algorithms on.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device: cuda is asked for but torch sees no GPU; use auto or cpu")
    # cuBLAS is deterministic only with a fixed workspace, and reads this before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(compute.threads)
    if compute.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(compute.device)
