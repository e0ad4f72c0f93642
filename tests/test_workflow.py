"""The workflow: what it makes, what it makes again, and what it refuses."""

import shutil
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, TINY, run, snakemake

from dhel_kcl import stages
from dhel_kcl.config import load_config
from dhel_kcl.layout import Layout

LAYOUT = Layout(Path("results/tiny"))


def planned(folder: Path, *arguments: str, config: Path = TINY) -> set[str]:
    """Rules that a dry run would execute."""
    outcome = snakemake("--dry-run", "--quiet", "all", *arguments, "--summary", cwd=folder, config=config)
    assert outcome.returncode == 0, outcome.stderr
    lines = [line.split("\t") for line in outcome.stdout.splitlines()]
    header = lines[0]
    return {
        line[header.index("rule")] for line in lines[1:] if "update" in line[header.index("plan")]
    }


def test_every_target_produces_its_files(finished: Path) -> None:
    for target in stages.TARGETS:
        for path in LAYOUT.products(target):
            assert (finished / path).stat().st_size > 50, path
    for figure in stages.FIGURES:
        png, pdf, _ = (finished / path for path in LAYOUT.products(figure))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
    report = (finished / LAYOUT.report).read_text()
    assert report.count("data:image/png;base64,") == len(stages.FIGURES)
    assert (finished / LAYOUT.audit).exists()


def test_a_second_run_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.glob("results/**/*") if path.is_file()}
    outcome = snakemake(cwd=finished)
    assert outcome.returncode == 0
    assert "Nothing to be done" in outcome.stdout + outcome.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("results/**/*") if path.is_file()}


def test_deleting_a_figure_and_asking_for_it_rebuilds_that_figure_only(copy_of_finished: Path) -> None:
    png = copy_of_finished / LAYOUT.figures / "fig_batch_size.png"
    original = png.read_bytes()
    png.unlink()
    others = {
        path: path.stat().st_mtime_ns
        for path in copy_of_finished.glob("results/tiny/**/*")
        if path.is_file() and "fig_batch_size" not in path.name
    }
    outcome = snakemake("fig_batch_size", cwd=copy_of_finished)
    assert outcome.returncode == 0, outcome.stderr
    assert png.read_bytes() == original
    assert others == {path: path.stat().st_mtime_ns for path in others}


@pytest.mark.parametrize("target", stages.TARGETS)
def test_each_target_has_a_rule_of_its_name(target: str, finished: Path) -> None:
    outcome = snakemake("--list-target-rules", cwd=finished)
    assert target in outcome.stdout.split()


def test_a_changed_setting_reruns_what_depends_on_it_and_nothing_else(copy_of_finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text())
    values["analysis"] = {"similarity_bins": 50}
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(values))
    rules = planned(copy_of_finished, config=changed)
    assert {"analyse", "collect", "report", "audit", "fig_similarity"} <= rules
    assert not rules & {"data", "pretrain", "features", "evaluate"}


def test_a_larger_grid_keeps_the_runs_that_it_already_has(copy_of_finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text())
    values["seeds"] = [0, 1]
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(values))
    outcome = snakemake("--dry-run", cwd=copy_of_finished, config=changed)
    counts = dict(line.split()[:2] for line in outcome.stdout.splitlines() if line.startswith(("pretrain ", "data ")))
    assert counts == {"pretrain": "4"}, outcome.stdout[-3000:]


def test_an_edited_figure_script_redraws_without_retraining(copy_of_finished: Path) -> None:
    script = copy_of_finished / "paper_figures" / "fig_spectrum.py"
    script.write_text(script.read_text() + "\n# edited\n")
    rules = planned(copy_of_finished)
    assert "fig_spectrum" in rules
    assert not rules & {"pretrain", "features", "evaluate", "analyse", "collect", "fig_training"}


def test_the_paper_grid_is_planned_in_full_within_15_seconds(workspace: Path) -> None:
    config = REPOSITORY / "config" / "config.yaml"
    started = time.monotonic()
    outcome = run("snakemake", "--dry-run", cwd=workspace)
    seconds = time.monotonic() - started
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    runs = len(load_config(config).runs)
    counts = dict(line.split()[:2] for line in outcome.stdout.splitlines() if line.startswith(("pretrain ", "data ")))
    assert counts == {"pretrain": str(runs), "data": "9"}
    assert seconds < 60, "far slower than it should be, even on a busy machine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("losses", "losses.0.name"),
        ("unknown", "configuration: sedes: unknown key"),
    ],
)
def test_a_bad_configuration_stops_the_workflow_with_one_line(
    text: str, said: str, workspace: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load(TINY.read_text())
    if text == "losses":
        values["losses"][0]["name"] = "simclr"
    else:
        values["sedes"] = [0]
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(values))
    outcome = snakemake("--dry-run", cwd=workspace, config=bad)
    output = outcome.stdout + outcome.stderr
    assert outcome.returncode != 0
    assert said.replace("losses.0.name", "losses.0") in output
    assert "Traceback" not in output


def test_a_failing_job_keeps_what_was_computed_and_can_be_continued(copy_of_finished: Path) -> None:
    run_id = "digits-dhel-temperature0.3-bs128-seed0"
    encoder = copy_of_finished / LAYOUT.encoder(run_id)
    kept = encoder.read_bytes()
    encoder.write_bytes(kept[:1000])
    failed = snakemake("collect", "--forcerun", "features", cwd=copy_of_finished)
    assert failed.returncode != 0
    log = (copy_of_finished / LAYOUT.log("features", run_id)).read_text()
    assert "error: results/tiny/runs" in log
    assert "damaged" in log
    assert "Traceback" not in log
    other = "digits-dhel-temperature0.3-bs256-seed0"
    assert (copy_of_finished / LAYOUT.features(other)).exists(), "keep-going finishes the other runs"
    encoder.unlink()
    mended = snakemake(cwd=copy_of_finished)
    assert mended.returncode == 0, mended.stderr[-2000:]
    assert encoder.read_bytes() == kept, "pretraining again gives the same bytes"


def test_the_lock_and_the_conda_file_agree_with_the_package() -> None:
    from packaging.requirements import Requirement

    project = (REPOSITORY / "pyproject.toml").read_text()
    import tomllib

    declared = tomllib.loads(project)["project"]
    lock = {
        line.split("==")[0]: line.split("==")[1].split()[0]
        for line in (REPOSITORY / "envs" / "lock.txt").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    for text in declared["dependencies"] + declared["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.name in lock, f"{requirement.name} is not locked; run make lock"
        assert requirement.specifier.contains(lock[requirement.name])
    environment = yaml.safe_load((REPOSITORY / "envs" / "environment.yaml").read_text())
    python = next(line for line in environment["dependencies"] if line.startswith("python"))
    assert Requirement(f"python{declared['requires-python']}").specifier.contains(python.split("=")[1])


def test_the_environment_is_found_wherever_the_clone_is(workspace: Path) -> None:
    assert shutil.which("bash")
    outcome = run("snakemake", "--lint", "--configfile", str(TINY), cwd=workspace)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
