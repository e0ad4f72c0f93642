"""Run the programs of the environment in forks of one process that has imported them, which is most of the work."""

import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

PROGRAMS = {"dhel-kcl": "dhel_kcl.__main__", "snakemake": "snakemake.cli"}
"""The module whose `main` each program runs."""

# None of them imports FFCV, which looks for GPUs when it is imported.
PRELOADED = (
    *("dhel_kcl.__main__", "dhel_kcl.cli", "dhel_kcl.plan", "dhel_kcl.paper.explorer", "dhel_kcl.paper.report"),
    *("dhel_kcl.provenance.audit", "dhel_kcl.provenance.crate", "dhel_kcl.provenance.release"),
    *("dhel_kcl.provenance.repair", "dhel_kcl.provenance.show", "dhel_kcl.provenance.trace"),
    *("dhel_kcl.results.collect", "dhel_kcl.results.theory", "snakemake.cli"),
)
_OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*PRELOADED])
_begun = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_INTERPRETER)}


def can_fork(command: tuple[str, ...]) -> bool:
    """Whether a fork does what a new process would: it would not read settings of the interpreter again."""
    now = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_INTERPRETER)}
    return now == _begun and (command[0] == "dhel-kcl" or (command[0] == "snakemake" and "--dry-run" in command))


def run_forked(*command: str, cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a program in a fork, as `subprocess.run` would in a process."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _context.Process(target=_child, args=(command, str(cwd), dict(os.environ), *map(str, said)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text("utf-8") for path in said))


def _child(command: tuple[str, ...], cwd: str, environment: dict[str, str], *said: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", line_buffering=False)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace")
    sys.argv = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    status: object = 0
    try:
        status = import_module(PROGRAMS[command[0]]).main()
    except SystemExit as ended:
        status = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
