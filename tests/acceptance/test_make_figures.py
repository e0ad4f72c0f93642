"""Every shipped figure and table is made again from the shipped tables, without images or training."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import REPOSITORY

from dhel_kcl import declarations
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.paper.render import points_equal, read_points


def run_here(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make to read the Makefile")
def test_make_figures_in_a_clone_makes_every_shipped_product_again_without_torch_and_ffcv(tmp_path: Path) -> None:
    top = run_here("git", "rev-parse", "--show-toplevel", folder=REPOSITORY)
    if top.returncode or not REPOSITORY.samefile(top.stdout.strip()):
        pytest.skip("the tests do not lie in a git clone, so there is no commit to clone")
    clone, absent = tmp_path / "clone", tmp_path / "absent"
    cloned = run_here("git", "clone", "--quiet", "--no-hardlinks", f"file://{REPOSITORY}", str(clone), folder=tmp_path)
    assert cloned.returncode == 0, cloned.stderr
    absent.mkdir()
    for module in ("torch", "ffcv"):
        (absent / f"{module}.py").write_text("raise ImportError('hidden by a test')", encoding="utf-8")
    setup, command = run_here("make", "--no-print-directory", "--dry-run", "figures", folder=clone).stdout.splitlines()
    assert setup == "envs/setup.sh"
    programs = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{absent}{os.pathsep}{clone / 'src'}",
    }
    made = subprocess.run(
        command, shell=True, cwd=clone, env=os.environ | programs, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    releases = sorted((clone / "docs" / "results").iterdir())
    assert len(releases) >= 3
    for release in releases:
        redrawn = clone / "results" / "redrawn" / release.name
        tables = {f"{table}.parquet" for table in declarations.TABLES} & {path.name for path in release.iterdir()}
        scripts = declarations.scripts(clone / "paper_figures").values()
        drawable = [script.name for script in scripts if {f"{table}.parquet" for table in script.tables} <= tables]
        names = [name for name in drawable if Layout(release).manifest("render", name).exists()]
        assert len(names) >= 3
        for name in names:
            for new, old in zip(Layout(redrawn).products(name), Layout(release).products(name), strict=True):
                assert new.stat().st_size > 50
                if new.suffix == ".csv":
                    assert points_equal(read_points(new), read_points(old))
        assert (redrawn / "report.html").exists() == (redrawn / "explorer.html").exists()
        assert (redrawn / "report.html").exists() == ("results.parquet" in tables)
    assert run_here("git", "status", "--porcelain", folder=clone).stdout == ""
