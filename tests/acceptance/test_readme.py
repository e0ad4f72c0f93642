"""What the README and the pages for reproducing tell the reader to type works as it stands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from workspace import REPOSITORY, TINY

from dhel_kcl.declarations import scripts

PAGES = ("README.md", "docs/architecture.md", "docs/reproduce.md")
SCRIPTS = scripts(REPOSITORY / "paper_figures")

TINY_INSTEAD = {
    "config/quickstart.yaml": "config/tiny.yaml",
    "results/quickstart": "results/tiny",
    "digits-dhel-temperature0.5-bs256-seed0": "digits-dhel-temperature0.3-bs256-seed0",
}
"""The tiny experiment, which the tests have run already, stands for the quickstart."""

THEORY = (
    "snakemake --cores 1 table_theory fig_minimisers fig_population_minimisers fig_minibatch_asymptotic "
    "fig_uniformity_measures"
)
INSTEAD = {
    "make quickstart": (
        "make --dry-run quickstart",
        "takes minutes; .ci/run runs its commands",
    ),
    "make test": ("make --dry-run test", "is what runs this test"),
    "snakemake --cores all": ("snakemake --cores all --dry-run --quiet", "2,160 runs on GPUs"),
    THEORY: (
        "snakemake --cores 1 table_theory fig_minimisers --dry-run",
        "minutes; the tiny experiment has two of the targets",
    ),
    "snakemake --cores 2 table_claims --configfile config/cifar10_quarter.yaml": (
        "snakemake --cores 2 table_claims --configfile config/cifar10_quarter.yaml --dry-run --quiet",
        "hours, and CIFAR-10",
    ),
    "snakemake --cores all table_claims --resources gpu=8 --configfile config/cifar10_gpu.yaml": (
        "snakemake --cores all table_claims --resources gpu=8 --configfile config/cifar10_gpu.yaml --dry-run --quiet",
        "a GPU, and CIFAR-10",
    ),
    "snakemake --cores all table_claims --resources gpu=8 --configfile config/cifar10_seeds.yaml": (
        "snakemake --cores all table_claims --resources gpu=8 --configfile config/cifar10_seeds.yaml --dry-run --quiet",
        "a GPU, and CIFAR-10",
    ),
}
"""Lines that a test cannot run: what it runs instead, and why. Every other line is run."""


def blocks(page: str, language: str) -> list[str]:
    tokens = MarkdownIt().parse((REPOSITORY / page).read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info.split()[:1] == [language]]


def commands(block: str) -> list[str]:
    """The lines of a block without comments; those that a backslash continues are joined."""
    lines = (re.sub(r"(^|\s+)# .*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def inline_code(page: str, beginning: str) -> list[str]:
    """What is in backticks in the paragraph that begins so."""
    tokens = MarkdownIt().parse((REPOSITORY / page).read_text(encoding="utf-8"))
    paragraph = next(token for token in tokens if token.type == "inline" and token.content.startswith(beginning))
    return [child.content for child in paragraph.children or [] if child.type == "code_inline"]


BLOCKS = [(page, block) for page in PAGES for block in blocks(page, "bash")]


@pytest.fixture(scope="module")
def clone(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the finished tiny experiment."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("readme") / "clone", symlinks=True)
    shutil.copytree(REPOSITORY / "docs" / "results", folder / "docs" / "results")
    shutil.copy(REPOSITORY / "Makefile", folder)
    shutil.copy(TINY, folder / "config")
    return folder


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}: {commands(block)[0]}" for page, block in BLOCKS])
def test_the_commands_of_a_page_run(clone: Path, page: str, block: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands(block):
        line, _ = INSTEAD.get(command, (command, ""))
        for written, instead in TINY_INSTEAD.items():
            line = line.replace(written, instead)
        outcome = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=clone, env=environment, capture_output=True, text=True
        )
        assert outcome.returncode == 0, f"{page}: {line}\n{outcome.stdout[-2000:]}{outcome.stderr[-2000:]}"


def test_every_replaced_line_and_name_is_on_a_page() -> None:
    lines = {command for _, block in BLOCKS for command in commands(block)}
    assert set(INSTEAD) <= lines, "remove from INSTEAD what no page says"
    for name in TINY_INSTEAD:
        assert any(name in line for line in lines), name


def test_the_python_of_the_readme_runs() -> None:
    names: dict[str, Any] = {}
    for block in blocks("README.md", "python"):
        exec(block, names)
    kcl = names["KCL"](names["Gaussian"](t=2.0), gamma=16.0)
    assert names["loss"].isfinite()
    assert torch.equal(names["alignment"] + names["energy"], kcl(names["z1"], names["z2"]))


def test_the_readme_lists_every_figure_and_table() -> None:
    listed = [name for name in inline_code("README.md", "Targets:") if name.startswith(("fig_", "table_"))]
    assert sorted(listed) == sorted(SCRIPTS)


@pytest.mark.parametrize("page", PAGES)
def test_the_figures_and_tables_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`((?:fig|table)_\w+)`", (REPOSITORY / page).read_text(encoding="utf-8")))
    assert named <= set(SCRIPTS)
