"""Entry point of the command line: `dhel-kcl` or `python -m dhel_kcl`.

This module does what must come before the imports of the command line itself, which take a third of a second.
"""

import os
import signal
import sys
from types import FrameType

from dhel_kcl.errors import INTERRUPTED


def main() -> None:
    """Import the command line and run it."""
    _open_standard_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in background jobs
        signal.signal(signal.SIGINT, _interrupt)
    from dhel_kcl.cli import main as command_line

    command_line()


def _open_standard_streams() -> None:
    """Open the null device in place of standard streams that the caller closed.

    Otherwise the next file opened would take a stream's number and receive its output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Exit at once during an import, which packages do not expect to be interrupted; otherwise act as Python does."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
