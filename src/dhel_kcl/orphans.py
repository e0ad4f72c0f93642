"""No process outlives those that started it: the scheduler its jobs, or a launcher the processes of one run.

Snakemake alone would leave its jobs running when it is killed, and may wait for ever on SIGTERM: its handler takes a
lock that the interrupted code can hold.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil

_VARIABLE = "DHEL_KCL_ENDS_WITH"
POLL_SECONDS = 0.5


def announce_scheduler() -> None:
    """Have the jobs that this process starts, through whatever shells, end with it.

    What the environment says of another scheduler is forgotten: a job of a cluster has one of its own on its machine.
    """
    os.environ[_VARIABLE] = str(os.getpid())


def announce_launcher() -> None:
    """Have the processes that this process starts, or that the program starts which it becomes, end with it too."""
    os.environ[_VARIABLE] = f"{os.environ.get(_VARIABLE, '')} {os.getpid()}"


def end_when_orphaned() -> None:
    """Send this process SIGTERM when its scheduler or its launcher is gone; a job started by hand has neither.

    They are watched by their numbers: a job's parent may be a shell, which outlives them.
    """
    if numbers := os.environ.get(_VARIABLE, "").split():
        threading.Thread(target=_follow, args=([int(number) for number in numbers],), daemon=True).start()


def _follow(numbers: Sequence[int]) -> None:
    with suppress(psutil.NoSuchProcess):
        followed = [psutil.Process(number) for number in numbers]
        # Where nobody waits for the dead, as in many containers, they stay as zombies.
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in followed):
            time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def stop_jobs_on_sigterm() -> None:
    """Have SIGTERM act as Ctrl-C in a terminal does, which reaches the scheduler and its jobs."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    raise KeyboardInterrupt
