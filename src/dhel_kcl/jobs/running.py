"""What runs: marks of workflows on an experiment, and processes that end with those that started them.

No process outlives those that started it: the scheduler its jobs, or a launcher the processes of one run.

Snakemake alone would leave its jobs running when it is killed, and may wait for ever on SIGTERM: its handler takes a
lock that the interrupted code can hold.
"""

import fcntl
import os
import platform
import re
import select
import signal
import stat
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from dhel_kcl.jobs.layout import Layout

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


class RunningMark:
    """A file that is there while a workflow runs on an experiment, and that one which crashed leaves behind.

    Each workflow has one of its own, ``HOST-PID``, and locks it; the system gives the lock up when a process ends,
    however it ends.

    Args:
        folder: the experiment's folder of marks, `Layout.running`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{platform.node()}-{os.getpid()}"
        self._lock = -1

    def set(self) -> None:
        """Write and lock the file, as a workflow that begins."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.fsync(self._lock)

    def clear(self) -> None:
        """Remove the file, as a workflow that ends."""
        os.close(self._lock)
        self.path.unlink(missing_ok=True)


def marks(layout: Layout) -> list[Path]:
    """The marks of an experiment's workflows, empty files; whatever else lies in their folder is none."""
    if layout.running.is_symlink():
        return []
    return sorted(path for path in layout.running.glob("*") if re.fullmatch(r".+-\d+", path.name) and _is_empty(path))


def _is_empty(path: Path) -> bool:
    try:
        facts = path.lstat()
    except OSError:  # its workflow has ended
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_size == 0


def is_running(mark: Path) -> bool | None:
    """Whether the workflow of a mark runs; None where this cannot be told.

    That is for a mark of another machine that is not locked here, one that this user may not read, and on file systems
    without locks.
    """
    try:
        descriptor = os.open(mark, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False if mark.name.rpartition("-")[0] == platform.node() else None
