"""What a command prints, and where: standard error, which the workflow keeps as the job's log.

Brackets in what is printed, such as those of a path, are no markup.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from rich.console import Console

from dhel_kcl.errors import InputError, escaped

console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

_terminal: TextIO | None = None


def log_to(log: Path) -> None:
    """Print into a file from now on; `tell` still reaches the terminal.

    Each process of several that train one run has a file of its own.

    Args:
        log: the file, which is written anew; its name ends in ``.log``.

    Raises:
        InputError: it has another name, or is a pipe or a device.
    """
    global _terminal
    if log.suffix != ".log":
        raise InputError(f"{log}: --log writes a file anew, so it takes names that end in .log only")
    if log.exists() and not (log.is_file() or log.is_dir()):
        raise InputError(f"{log}: --log writes a file, and this is a pipe or a device; choose another name")
    if (rank := os.environ.get("RANK", "0")).isdecimal() and rank != "0":
        log = log.with_suffix(f".process{rank}{log.suffix}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        _terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def print_to_terminal() -> None:
    """Undo `log_to`, for a program that this process becomes, or starts."""
    if _terminal is not None:
        os.dup2(_terminal.fileno(), 1)
        os.dup2(_terminal.fileno(), 2)


def tell(*lines: str) -> None:
    """Print lines on standard error, and on the terminal if that is elsewhere."""
    for stream in filter(None, (sys.stderr, _terminal)):
        with suppress(OSError):  # a terminal that was closed
            for line in lines:
                print(line, file=stream, flush=True)


def fail(message: str) -> NoReturn:
    """Print an error, line by line, and end with status 1."""
    tell(*(f"error: {escaped(line)}" for line in message.splitlines()))
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1)
