"""Marks of workflows that run on an experiment, and processes that end with the process that started them.

Jobs do not outlive their scheduler, and the processes of a run do not outlive their launcher.

Snakemake by itself would leave its jobs running when it is killed, and on SIGTERM it may wait forever, because its
handler takes a lock that the interrupted code can hold.
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
"""Time from SIGTERM, on which training writes a checkpoint, to SIGKILL."""


def announce_scheduler() -> None:
    """Make the jobs that this process starts, even through shells, end with it.

    This replaces any other scheduler named in the environment, because a cluster job has its own on its machine.
    """
    os.environ[_VARIABLE] = f"{_namespace()}={os.getpid()}"


def announce_launcher() -> None:
    """Make the processes that this process starts, even after it executes another program, end with it too."""
    os.environ[_VARIABLE] = f"{os.environ.get(_VARIABLE, '')} {_namespace()}={os.getpid()}"


def end_when_orphaned() -> None:
    """Send this process SIGTERM when its scheduler or launcher is gone; a job started by hand has neither.

    They are watched by process number, because a job's parent may be a shell that outlives them. A container with its
    own process numbers does not see them, so nothing is watched there.
    """
    announced = [entry.rpartition("=") for entry in os.environ.get(_VARIABLE, "").split()]
    if numbers := [int(number) for namespace, _, number in announced if namespace == _namespace()]:
        threading.Thread(target=_follow, args=(numbers,), daemon=True).start()


def _namespace() -> str:
    """Return the namespace in which process numbers are valid."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # a system without namespaces
        return ""


def _follow(numbers: Sequence[int]) -> None:
    with suppress(psutil.NoSuchProcess):
        followed = [psutil.Process(number) for number in numbers]
        # Where nobody reaps dead processes, as in many containers, they remain as zombies.
        while all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in followed):
            time.sleep(POLL_SECONDS)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})  # the reader of standard error may be gone, or asleep
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, b"the process that started this one is gone; stopping\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def stop_jobs_on_signals() -> None:
    """Make SIGTERM, and SIGHUP from a closing terminal, act like Ctrl-C, which reaches the scheduler and its jobs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell and the system both send it
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.terminate()
    raise KeyboardInterrupt


class RunningMark:
    """A file that exists while a workflow runs on an experiment; a workflow that crashes leaves it behind.

    Each workflow has its own mark, ``HOST-PID``, and locks it. The system releases the lock when the process ends,
    however it ends.

    Args:
        folder: the experiment's folder of marks, `Layout.running`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{platform.node()}-{os.getpid()}"
        self._lock = -1

    def set(self) -> None:
        """Create and lock the file when a workflow begins."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.fsync(self._lock)

    def clear(self) -> None:
        """Remove the file when a workflow ends."""
        os.close(self._lock)
        self.path.unlink(missing_ok=True)


def marks(layout: Layout) -> list[Path]:
    """Return the marks of an experiment's workflows; they are empty files, and anything else in their folder is not."""
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
    """Return whether the workflow of a mark is running; None if this is unknown.

    It is unknown for a mark of another machine that is not locked here, for a mark that this user may not read, and on
    file systems without locks.
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
