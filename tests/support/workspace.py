"""Make a clone without results and run the programs of the environment in it."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from forked import can_fork, run_forked

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "tiny.yaml"
FINISHED = (
    *("fig_batch_size", "fig_effective_rank", "fig_minimisers", "fig_spectrum"),
    *("table_claims", "table_linear_accuracy", "table_published", "table_robustness", "table_theory"),
)
"""The figures and tables of the finished experiment, which each audit in the tests draws again.

The quickstart and `test_all_targets.py` have all of them.
"""


def make_workspace(folder: Path, targets: Iterable[str] | None = None) -> Path:
    """Copy the files that the workflow needs, with some of the figure and table scripts, or all of them."""
    for name in ("Snakefile", "workflow", "profiles", "config", "paper_figures", "envs"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    keep_targets(folder, targets)
    return folder


def keep_targets(folder: Path, targets: Iterable[str] | None) -> None:
    """Remove the figure and table scripts that a test does not look at."""
    for script in (folder / "paper_figures").iterdir():
        if targets is not None and script.stem.startswith(("fig_", "table_")) and script.stem not in targets:
            script.unlink()


def run(*command: str, cwd: Path, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run a program of the test environment."""
    if can_fork(command):
        return run_forked(*command, cwd=cwd, timeout=timeout)
    program = str(Path(sys.executable).parent / command[0])
    return subprocess.run(
        [program, *command[1:]], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


def snakemake(*arguments: str, cwd: Path, config: Path = TINY) -> subprocess.CompletedProcess[str]:
    return run("snakemake", *arguments, "--cores", "2", "--configfile", str(config), cwd=cwd)
