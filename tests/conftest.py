"""One tiny experiment, run by the real workflow in a folder of its own, that the integration tests share."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dhel_kcl.config import ExperimentConfig, load_config
from dhel_kcl.layout import Layout

REPOSITORY = Path(__file__).parents[1]
TINY = REPOSITORY / "tests" / "tiny.yaml"

torch.set_num_threads(1)  # tests run in several processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the finished experiment run in one process, which makes it once."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("finished"))


@pytest.fixture(scope="session")
def tiny_config() -> ExperimentConfig:
    return load_config(TINY)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty clone: the repository's files, none of its results."""
    return make_workspace(tmp_path)


def make_workspace(folder: Path) -> Path:
    for name in ("Snakefile", "workflow", "config", "paper_figures", "envs"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run(*command: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment that runs the tests."""
    program = str(Path(sys.executable).parent / command[0])
    return subprocess.run(
        [program, *command[1:]], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


def snakemake(*arguments: str, cwd: Path, config: Path = TINY) -> subprocess.CompletedProcess[str]:
    return run("snakemake", *arguments, "--cores", "2", "--configfile", str(config), cwd=cwd)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace in which the whole workflow has run once; tests must leave it as it is."""
    folder = make_workspace(tmp_path_factory.mktemp("finished"))
    outcome = snakemake(cwd=folder)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:] + _failed_logs(folder)
    return folder


def _failed_logs(folder: Path) -> str:
    logs = sorted(folder.glob("results/tiny/logs/**/*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in logs[-4:])


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    """The finished workspace, to be damaged."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


@pytest.fixture
def layout(finished: Path) -> Layout:
    return Layout(finished / "results" / "tiny")
