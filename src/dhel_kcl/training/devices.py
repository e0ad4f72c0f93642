"""Choose the device of a job, claim it so that no other job uses it, and make its arithmetic repeatable."""

import fcntl
import itertools
import math
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import torch

from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.files import private_folder

POLL_SECONDS = 1.0
SECONDS_BETWEEN_LINES = 60


def prepare_device(compute: ComputeConfig, local_rank: int = 0) -> torch.device:
    """Choose the device, set threads and TF32 as configured, and enable deterministic algorithms.

    Args:
        compute: the `compute` section of the configuration.
        local_rank: which of the visible GPUs belongs to this process.

    Raises:
        InputError: CUDA is requested, but there is no GPU or too few.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device: cuda is requested but torch sees no GPU; use auto or cpu")
    # cuBLAS is deterministic only with a fixed workspace, and reads this before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling costs time, and nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # it might choose different algorithms in different processes
    torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cuda.matmul.allow_tf32 = compute.tf32
    torch.set_num_threads(compute.threads)
    if compute.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"compute.gpus_per_run: process {local_rank + 1} of this machine has no GPU; "
            f"torch sees {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def training_dtype(compute: ComputeConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the encoder's arithmetic in training: bfloat16 under autocast, or float32."""
    if compute.precision != "auto":
        return torch.bfloat16 if compute.precision == "bfloat16" else torch.float32
    # On common CPUs, and on GPUs that only emulate it, bfloat16 is slower than float32.
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else torch.float32


def claim_gpus(compute: ComputeConfig, count: int = 1, folder: Path | None = None) -> None:
    """Claim `count` GPUs for this job, and hide all others from this process and from programs it starts or becomes.

    No other job gets the claimed GPUs, unless `compute.runs_per_gpu` is above 1: then that many jobs share each GPU.
    Waits until enough GPUs are free, and prints a line now and then. The claim is a lock that the system releases when
    the process ends, however it ends. Does nothing on a CPU or in a process that a launcher started. Call this before
    anything initialises CUDA; importing FFCV does.

    Args:
        compute: the device and how many runs share a GPU.
        count: how many GPUs, at least 1.
        folder: where the locks are. The default is one folder for each user of the machine, and under Slurm for each
            job step, because Slurm may number the devices of every job from 0.

    Raises:
        InputError: the machine has fewer GPUs than requested, or the locks cannot be created.
    """
    if compute.device == "cpu" or "LOCAL_RANK" in os.environ:
        return
    devices = _visible_devices()
    if compute.device == "auto" and not devices:
        return
    if not devices:
        raise InputError("compute.device: cuda is requested but torch sees no GPU; use auto or cpu")
    if count > len(devices):
        raise InputError(f"compute.gpus_per_run: {count} requested, but this machine shows {len(devices)}")
    if folder is None:
        slurm = [os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if name in os.environ]
        folder = private_folder(quote(os.fsencode("-".join(["gpus", *slurm])), safe=""))
    waiting, said = "waiting", -math.inf
    try:
        while not (claimed := _claim(devices, count, compute.runs_per_gpu, folder)):
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                console.print(
                    f"{waiting} for {count} of the GPUs {', '.join(devices)}, which other jobs hold ({folder})"
                )
                waiting, said = "still waiting", time.monotonic()
            time.sleep(POLL_SECONDS)
    except OSError as error:
        where, why = error.filename or folder, error.strerror
        raise InputError(f"{where}: cannot be locked ({why}); remove it, or set TMPDIR to another folder") from error
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)


def _visible_devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    # As in CUDA: entries after one that is not a device are hidden.
    names = (name.strip() for name in visible.split(","))
    named = itertools.takewhile(lambda name: name and not name.startswith("-"), names)
    return list(dict.fromkeys(named))  # a device may be listed twice


def _claim(devices: Sequence[str], count: int, sharers: int, folder: Path) -> list[str]:
    """Lock `count` devices or none; if devices are shared, lock one place on each."""
    locks: dict[str, list[int]] = {}
    # Places are the outer loop, so that jobs spread over all devices before two of them share one.
    for place, device in itertools.product(range(sharers), devices):
        name = quote(os.fsencode(device), safe="")  # the name of a MIG device may contain slashes
        whole = folder / f"{name}.lock"
        lock = _locked_place(whole, place) if sharers > 1 else _locked(whole, shared=False)
        if lock:
            locks[device] = lock
        if len(locks) == count:
            for kept in itertools.chain.from_iterable(locks.values()):
                os.set_inheritable(kept, True)
            return list(locks)
    for unused in itertools.chain.from_iterable(locks.values()):
        os.close(unused)
    return []


def _locked_place(device: Path, place: int) -> list[int]:
    """Lock one place on a device, and the device itself against jobs that need all of it."""
    whole = _locked(device, shared=True)
    part = whole and _locked(device.with_suffix(f".{place}.lock"), shared=False)
    if not part:
        for lock in whole:
            os.close(lock)
        return []
    return [*whole, *part]


def _locked(path: Path, shared: bool) -> list[int]:
    """Lock a file of this user; return its descriptor, or nothing if another job holds the lock."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise InputError(f"{path}: must be a file that belongs to you; remove it, or set TMPDIR to another folder")
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return []
    except BaseException:
        os.close(lock)
        raise
    return [lock]
