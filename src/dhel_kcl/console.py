"""Print messages to standard error, which the workflow keeps as the job's log.

Brackets in messages, such as those in a path, are not markup, and unprintable characters are escaped.
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
    """Prints each text as one harmless line, since it may contain the name of any file."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(escaped(each) if isinstance(each, str) else each for each in objects), **options)


console = _Lines(stderr=True, soft_wrap=True, highlight=False, markup=False)

_terminal: TextIO | None = None


def log_to(log: Path, check: Callable[[Path], None]) -> None:
    """Print to a file from now on; `tell` still reaches the terminal.

    If several processes train one run, each has its own file.

    Args:
        log: the file, which is overwritten; its name ends in ``.log``.
        check: raises an error if the file must not be there.

    Raises:
        InputError: its name does not end in ``.log``, or it is a link, a pipe or a device.
    """
    global _terminal
    if log.suffix != ".log":
        raise InputError(f"{log}: --log overwrites a file, so it accepts only names that end in .log")
    if (rank := os.environ.get("RANK", "0")).isdecimal() and rank != "0":
        log = log.with_suffix(f".process{rank}{log.suffix}")
    check(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _open_anew(log) as file:
        _terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _open_anew(log: Path) -> BinaryIO:
    """Open a file to overwrite it; leave links and anything that is not a regular file untouched."""
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
    """Undo `log_to`, for a program that this process starts or is replaced by."""
    if _terminal is not None:
        os.dup2(_terminal.fileno(), 1)
        os.dup2(_terminal.fileno(), 2)


def tell(*lines: str) -> None:
    """Print lines to standard error, and to the terminal if standard error goes elsewhere."""
    for stream in filter(None, (sys.stderr, _terminal)):
        with suppress(OSError):  # a terminal that was closed
            for line in map(escaped, lines):
                print(line, file=stream, flush=True)


def fail(message: str) -> NoReturn:
    """Print an error line by line and exit with status 1."""
    tell(*(f"error: {line}" for line in message.splitlines()))
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1)
