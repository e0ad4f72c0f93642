"""One tiny experiment, run by the real workflow in a folder of its own, that the integration tests share."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import kept_drawings
import numpy as np
import pytest
import torch
from explorer_page import Page
from filelock import FileLock
from workspace import FINISHED, TINY, make_workspace, snakemake

from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.sources import open_source
from dhel_kcl.experiment.config import DataConfig
from dhel_kcl.experiment.grid import ExperimentConfig, load_config
from dhel_kcl.files import write_json
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import Artifact, Manifest

torch.set_num_threads(1)  # tests run in several processes
os.fsync = lambda _: None  # type: ignore[assignment] # no file of a test has to outlive a power cut


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that run Snakemake."""
    for item in items:
        if set(getattr(item, "fixturenames", ())) & {"finished", "extended", "workspace"}:
            item.add_marker(pytest.mark.workflow)


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest of a job that did not run; its inputs and outputs are names of files in one folder."""
    folder = tmp_path / "manifests"

    def make(stage: str, subject: str, inputs: Iterable[str] = (), outputs: Iterable[str] = (), **other: Any) -> Path:
        def described(names: Iterable[str]) -> dict[str, Artifact]:
            return {name: Artifact(path=name, sha256=sha256(name.encode()).hexdigest(), bytes=1) for name in names}

        values = {
            **{
                "command": [],
                "settings": {},
                "seeds": {},
                "source_digest": "0",
                "packages": {},
                "hardware": {"cpu": "X"},
            },
            **{"git_commit": "c" * 40, "git_dirty": False, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0},
            **other,
        }
        manifest = Manifest(
            stage=stage, subject=subject, inputs=described(inputs), outputs=described(outputs), **values
        )
        path = folder / f"{stage}-{subject.replace('/', '-')}.json"
        write_json(path, manifest.model_dump())
        return path

    return make


@pytest.fixture
def page(tmp_path: Path, make_manifest: Callable[..., Path]) -> Page:
    return Page(tmp_path, make_manifest)


@pytest.fixture(scope="session")
def tiny_config() -> ExperimentConfig:
    return load_config(TINY)


@pytest.fixture(scope="session")
def digits_betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both splits of the handwritten digits, by name."""
    folder = tmp_path_factory.mktemp("digits")
    for split in ("train", "test"):
        write_beton(open_source(DataConfig(kind="digits"), split), folder / f"{split}.beton")
    return {split: folder / f"{split}.beton" for split in ("train", "test")}


@pytest.fixture(scope="session")
def digits_beton(digits_betons: dict[str, Path]) -> Path:
    return digits_betons["train"]


@pytest.fixture
def relabelled(tmp_path: Path) -> Callable[..., Path]:
    """Write a split of the digits with other labels, -1 for none."""

    def write(split: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
        source = open_source(DataConfig(kind="digits"), split)
        beton = tmp_path / "relabelled" / f"{split}.beton"
        write_beton(replace(source, labels=change(np.asarray(source.labels))), beton)
        return beton

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty clone: the repository's files, none of its results."""
    return make_workspace(tmp_path)


def shared(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the processes of one call of pytest have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace in which the whole workflow has run once, for all processes; tests must leave it as it is."""
    folder = shared(tmp_path_factory) / "finished"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            outcome = snakemake(cwd=make_workspace(folder, FINISHED))
            assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:] + _failed_logs(folder)
    assert (folder / "results" / "tiny" / "audit.json").exists(), "another process could not make it"
    return folder


def _failed_logs(folder: Path) -> str:
    logs = sorted(folder.glob("results/tiny/logs/**/*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"{log}:\n{log.read_text(encoding='utf-8')[-1500:]}" for log in logs[-4:])


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    """The finished workspace, to be damaged."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


@pytest.fixture
def drawn_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits of this process draw each figure and table of given files once; `test_audit.py` draws them every time."""
    kept_drawings.folder = shared(tmp_path_factory) / "drawings"
    kept_drawings.folder.mkdir(exist_ok=True)
    monkeypatch.setattr("dhel_kcl.provenance.audit.render", kept_drawings.render)


@pytest.fixture
def layout(finished: Path) -> Layout:
    return Layout(finished / "results" / "tiny")
