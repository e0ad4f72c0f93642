"""Measure time, in interleaved rounds within one process, and peak memory, of one call in its own process."""

import ctypes
import multiprocessing
import platform
import random
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pandas as pd
import psutil
import torch

from dhel_kcl.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

MEMORY_LIMIT_GIB = 12


@dataclass(frozen=True)
class Effort:
    """How often to repeat: until `seconds` have passed, within [`least`, `most`] rounds."""

    least: int
    most: int
    seconds: float


FULL = Effort(least=5, most=200, seconds=4.0)
QUICK = Effort(least=3, most=20, seconds=0.2)
PACKAGES = ["torch", "numpy", "scipy", "lightly", "pytorch-metric-learning"]


def machine() -> dict[str, str]:
    """Return the hardware and versions on which times depend, by display name."""
    model = next(
        (
            line
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    facts = {
        "processor": model.partition(":")[2].strip() or platform.machine(),
        "instruction set used by PyTorch": torch.backends.cpu.get_cpu_capability(),
        "cores": str(psutil.cpu_count()),
        "threads used by PyTorch": str(torch.get_num_threads()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def isolated(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call a module-level function in a fresh process, and return its result or raise its exception.

    The process is forked from a server that has imported PyTorch and has computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dhel_kcl.losses", "dhel_kcl.metrics", "pandas", "scipy.stats"])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments, **options).result()


def attempt(function: Callable[..., T], *arguments: Any) -> tuple[T | None, str]:
    """Call `function` in a fresh process; return its result and the status "ok", or None and why it failed."""
    try:
        return isolated(function, *arguments), "ok"
    except ModuleNotFoundError as error:
        return None, f"not installed ({error.name})"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return None, f"needs more than {MEMORY_LIMIT_GIB} GiB"
        if isinstance(error, BrokenProcessPool):
            return None, "process killed"
        return None, f"failed: {str(error).splitlines()[0]}"


def peak_mib(call: Callable[[], object]) -> float:
    """Measure the peak resident memory during a call above that before it, in MiB.

    A first call warms up, so that code pages, thread pools and compilation are not counted. Then the freed heap is
    returned, the high-water mark of this process is reset, and everything that the second call allocates counts,
    including its results.

    Raises:
        InputError: the system is not Linux with glibc.
        MemoryError: or RuntimeError from PyTorch, if the call needs more than `MEMORY_LIMIT_GIB`.
    """
    high_water_mark = Path("/proc/self/clear_refs")
    if not high_water_mark.exists() or platform.libc_ver()[0] != "glibc":
        raise InputError(f"peak memory is measured on Linux with glibc only, this is {platform.system()}")
    limit = int(_status_mib("VmSize") * 2**20) + MEMORY_LIMIT_GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    call()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    high_water_mark.write_text("5", encoding="utf-8")
    before = _status_mib("VmRSS")
    call()
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def interleaved(names: Iterable[str], count: int, run: Callable[[str], T], seed: int) -> dict[str, list[T]]:
    """Run every name once per round, in random order, so that drift of the machine affects all equally.

    Args:
        names: what to run.
        count: number of rounds.
        run: runs one name and returns its measurement.
        seed: seed of the orders.
    """
    shuffle = random.Random(seed).shuffle  # nosec B311 # an order, no secret
    measured: dict[str, list[T]] = {name: [] for name in names}
    for _ in range(count):
        order = sorted(measured)
        shuffle(order)
        for name in order:
            measured[name].append(run(name))
    return measured


def rate_ratios(rates: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Divide the rate of the reference by that of each column within the same round.

    Args:
        rates: work per second, a row for each round.
        reference: a column.

    Returns:
        For each column, `rounds` and the median and quartiles of the ratio: `ratio`, `ratio_low`, `ratio_high`.
    """
    ratios = (1 / rates).mul(rates[reference], axis=0)
    return pd.DataFrame(
        {
            "rounds": rates.count(),
            "ratio": ratios.median(),
            "ratio_low": ratios.quantile(0.25),
            "ratio_high": ratios.quantile(0.75),
        }
    )


def rounds(calls: Mapping[str, Callable[[], object]], reference: str, effort: Effort, seed: int) -> pd.DataFrame:
    """Time calls once per round, in random order, so that drift of the machine affects all equally.

    A call drops out once its time is spent; the reference stays until the end.

    Args:
        calls: what to time, by name; already warmed up.
        reference: the name of the call that the others are compared with.
        effort: how often to repeat each call.
        seed: seed of the orders.

    Returns:
        Milliseconds, a row for each round and a column for each call; NaN where a call had dropped out.
    """
    shuffle = random.Random(seed).shuffle  # nosec B311 # an order, no secret
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.most):
        running = {name for name in calls if len(spent[name]) < effort.least or sum(spent[name]) < effort.seconds}
        if not running:
            break
        order = sorted(running | {reference})
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            spent[name].append(time.perf_counter() - start)
    return 1000 * pd.DataFrame({name: pd.Series(seconds, dtype=float) for name, seconds in spent.items()})


def summary(milliseconds: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return medians of `rounds`, and the time of each call relative to the reference.

    Returns:
        For each call, `rounds`, `milliseconds` (median), and `ratio`, `ratio_low`, `ratio_high`: median and quartiles
        of the ratios to the reference within the same round.
    """
    ratios = milliseconds.div(milliseconds[reference], axis=0)
    return pd.DataFrame(
        {
            "rounds": milliseconds.count(),
            "milliseconds": milliseconds.median(),
            "ratio": ratios.median(),
            "ratio_low": ratios.quantile(0.25),
            "ratio_high": ratios.quantile(0.75),
        }
    )
