"""The stage `configure`: check an experiment's configuration and write it with every default filled in."""

import os
import sys
from pathlib import Path

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import ExperimentConfig, load_config, parse_yaml, write_resolved_config
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.ownership import needs_configuring
from dhel_kcl.jobs.stages import STAGES


def configure(config: ExperimentConfig, layout: Layout, source: Path | None) -> bool:
    """Write the configuration into the experiment's folder, unless it is already there.

    Args:
        config: the configuration.
        layout: the folder, which may be new.
        source: the file that it was read from; None for a pipe or standard input.

    Returns:
        Whether it was written.

    Raises:
        InputError: the folder contains something that `dhel-kcl configure` did not write, or cannot be written.
    """
    if not needs_configuring(layout, config):
        return False
    job = Job(Experiment(config, layout), STAGES["configure"], config.name)
    with job.recorded(inputs={"source": source} if source else {}):
        write_resolved_config(config, layout.config)
    return True


def read_source(source: str) -> tuple[ExperimentConfig, Path | None]:
    """Read a configuration from a file, a pipe or standard input.

    Args:
        source: the path, or ``-`` for standard input.

    Returns:
        The configuration and its file; None for a pipe or standard input, which can be read only once.

    Raises:
        InputError: the source cannot be read, or is not a valid configuration.
    """
    path = Path(source)
    if source != "-" and not _is_unnamed_pipe(path):
        return load_config(path), path
    return parse_yaml(_standard_input() if source == "-" else _content(path), "configuration"), None


def _is_unnamed_pipe(path: Path) -> bool:
    """Return whether a path is an unnamed pipe, such as a shell's `<(...)`."""
    return path.is_fifo() and not os.path.lexists(os.path.realpath(path))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(str(path), error) from error


def _standard_input() -> str:
    if sys.stdin is None:
        raise InputError("standard input: closed; give the configuration's file, or its text on standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("standard input", error) from error


def _unreadable(source: str, error: OSError | UnicodeDecodeError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
    return InputError(f"{source}: cannot be read ({reason}); give the configuration's file")
