"""No process outlives those that started it: the scheduler its jobs, or a launcher the processes of one run.

Snakemake alone would leave its jobs running when it is killed, and may wait for ever on SIGTERM: its handler takes a
lock that the interrupted code can hold.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

_VARIABLE = "DHEL_KCL_ENDS_WITH"
POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0
"""From SIGTERM, after which a training writes its checkpoint, to SIGKILL."""


def announce_scheduler() -> None:
    """Make the jobs that this process starts, through whatever shells, end with it.

    What the environment says of another scheduler is forgotten: a job of a cluster has one of its own on its machine.
    """
    os.environ[_VARIABLE] = f"{_namespace()}={os.getpid()}"


def announce_launcher() -> None:
    """Make the processes that this process starts, or that the program starts which it becomes, end with it too."""
    os.environ[_VARIABLE] = f"{os.environ.get(_VARIABLE, '')} {_namespace()}={os.getpid()}"


def end_when_orphaned() -> None:
    """Send this process SIGTERM when its scheduler or its launcher is gone; a job started by hand has neither.

    They are watched by their numbers: a job's parent may be a shell, which outlives them. A container with numbers of
    its own does not see them; there nothing is watched.
    """
    announced = [entry.rpartition("=") for entry in os.environ.get(_VARIABLE, "").split()]
    if numbers := [int(number) for namespace, _, number in announced if namespace == _namespace()]:
        threading.Thread(target=_follow, args=(numbers,), daemon=True).start()


def _namespace() -> str:
    """Within which process numbers hold."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # a system without namespaces
        return ""


def _follow(numbers: Sequence[int]) -> None:
    with suppress(psutil.NoSuchProcess):
        followed = [psutil.Process(number) for number in numbers]
        # Where nobody waits for the dead, as in many containers, they stay as zombies.
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in followed):
            time.sleep(POLL_SECONDS)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})  # who reads standard error may be gone, or asleep
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, b"what started this process is gone; it ends too\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def stop_jobs_on_signals() -> None:
    """Make SIGTERM, and SIGHUP of a closing terminal, act as Ctrl-C does, which reaches the scheduler and its jobs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a shell and the system both send it
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.terminate()
    raise KeyboardInterrupt
