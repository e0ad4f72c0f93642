"""Make a clone without results and run the programs of the environment in it."""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "tiny.yaml"


def make_workspace(folder: Path) -> Path:
    """Copy the files that the workflow needs."""
    for name in ("Snakefile", "workflow", "profiles", "config", "paper_figures", "envs"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run(*command: str, cwd: Path, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run a program of the test environment."""
    program = str(Path(sys.executable).parent / command[0])
    return subprocess.run(
        [program, *command[1:]], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


def snakemake(*arguments: str, cwd: Path, config: Path = TINY) -> subprocess.CompletedProcess[str]:
    return run("snakemake", *arguments, "--cores", "2", "--configfile", str(config), cwd=cwd)
