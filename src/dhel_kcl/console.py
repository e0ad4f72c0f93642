"""What a command prints, and where: standard error, which the workflow keeps as the job's log.

Brackets in what is printed, such as those of a path, are no markup, and what cannot be printed becomes an escape.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from rich.console import Console

from dhel_kcl.errors import InputError, escaped


class _Lines(Console):
    """Prints each text as one harmless line: it may hold the name of any file."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(escaped(each) if isinstance(each, str) else each for each in objects), **options)


console = _Lines(stderr=True, soft_wrap=True, highlight=False, markup=False)

_terminal: TextIO | None = None


def log_to(log: Path, check: Callable[[Path], None]) -> None:
    """Print into a file from now on; `tell` still reaches the terminal.

    Each process of several that train one run has a file of its own.

    Args:
        log: the file, which is written anew; its name ends in ``.log``.
        check: refuses a place where it must not be.

    Raises:
        InputError: it has another name, or is a link, a pipe or a device.
    """
    global _terminal
    if log.suffix != ".log":
        raise InputError(f"{log}: --log writes a file anew, so it takes names that end in .log only")
    if (rank := os.environ.get("RANK", "0")).isdecimal() and rank != "0":
        log = log.with_suffix(f".process{rank}{log.suffix}")
    check(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _open_anew(log) as file:
        _terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _open_anew(log: Path) -> BinaryIO:
    """Open a file to write it anew; what is no file, or a link to one, is left as it is."""
    another = f"{log}: --log writes a file, and this is a link, a pipe or a device; choose another name"
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads, or a socket
            raise InputError(another) from error
        raise
    file = os.fdopen(descriptor, "wb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise InputError(another)
    file.truncate()
    return file


def print_to_terminal() -> None:
    """Undo `log_to`, for a program that this process becomes, or starts."""
    if _terminal is not None:
        os.dup2(_terminal.fileno(), 1)
        os.dup2(_terminal.fileno(), 2)


def tell(*lines: str) -> None:
    """Print lines on standard error, and on the terminal if that is elsewhere."""
    for stream in filter(None, (sys.stderr, _terminal)):
        with suppress(OSError):  # a terminal that was closed
            for line in map(escaped, lines):
                print(line, file=stream, flush=True)


def fail(message: str) -> NoReturn:
    """Print an error, line by line, and end with status 1."""
    tell(*(f"error: {line}" for line in message.splitlines()))
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1)
