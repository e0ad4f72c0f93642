"""Print messages to standard error, which the workflow keeps as the job's log.

Brackets in messages, such as those in a path, are not markup, and unprintable characters are escaped.
"""

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from rich.console import Console

from dhel_kcl.errors import INTERRUPTED, InputError, escaped


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


def run_program(program: Callable[[], object]) -> None:
    """Run a command line; a problem that the user can fix ends as lines on standard error and status 1.

    Ctrl-C ends it with one line and status 130.
    """
    _use_utf8()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # an encoding that PYTHONIOENCODING asks for may lack letters
        stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        program()
    except InputError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'a file or the output'}: {error.strerror or error}; check the disk and permissions")
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer turns Ctrl-C into it
            _interrupted()
        _flush()
        raise


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode under a locale that is not UTF-8, where paths and output would be misread."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        arguments = [each for each in sys.orig_argv[1:] if each != "-Xutf8=0"]
        if "utf8=0" in arguments[1:2] and arguments[0] == "-X":  # it would win over the environment
            del arguments[:2]
        os.execv(sys.executable, [sys.executable, *arguments])  # nosec B606 # the user's own command, again


def _interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more, and it is over at once
    tell("interrupted")
    sys.exit(INTERRUPTED)


def _flush() -> None:
    """Write what standard output still holds, which Python would do too late to say in one line that it cannot."""
    try:
        sys.stdout.flush()
    except OSError as error:
        fail(f"standard output: cannot be written ({error.strerror})")
