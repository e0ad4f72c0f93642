"""What Snakemake and its jobs do when one of them is told to stop or dies.

Snakemake alone would leave its jobs running when it is killed, and may wait for ever on SIGTERM: its handler takes a
lock that the interrupted code can hold.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType

import psutil

_VARIABLE = "DHEL_KCL_SCHEDULER"
POLL_SECONDS = 0.5


def announce_scheduler() -> None:
    """Have the jobs that this process starts, by whatever shells and launchers, end with it."""
    os.environ[_VARIABLE] = str(os.getpid())


def end_with_scheduler() -> None:
    """Send this process SIGTERM when the scheduler that started it is gone; a job started by hand has none.

    The scheduler is watched by its number: a job's parent may be a shell or `torchrun`, which outlive it.
    """
    if (number := os.environ.get(_VARIABLE)) is not None:
        threading.Thread(target=_follow, args=(int(number),), daemon=True).start()


def _follow(number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        scheduler = psutil.Process(number)
        # Where nobody waits for the dead, as in many containers, they stay as zombies.
        while scheduler.is_running() and scheduler.status() != psutil.STATUS_ZOMBIE:
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
