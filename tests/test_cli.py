"""The command line: it teaches, and its errors are one line with a remedy."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from workspace import REPOSITORY, TINY, run

from dhel_kcl.config import load_config

RUN = "digits-dhel-temperature0.3-bs256-seed0"


def test_help_names_every_stage_and_comes_without_loading_torch(tmp_path: Path) -> None:
    outcome = run("dhel-kcl", "--help", cwd=tmp_path)
    for stage in (
        "configure",
        "data",
        "pretrain",
        "features",
        "evaluate",
        "augmented-probe",
        "corruptions",
        "watch",
        "analyse",
        "collect",
        "theory",
        "render",
        "explorer",
        "crate",
        "audit",
        "release",
        "redraw",
    ):
        assert stage in outcome.stdout
    probe = "import sys, dhel_kcl.cli, dhel_kcl.stages; sys.exit(bool({'torch', 'ffcv', 'pandas'} & set(sys.modules)))"
    assert run("python", "-c", probe, cwd=tmp_path).returncode == 0


def test_the_package_does_not_know_the_workflow(tmp_path: Path) -> None:
    import grimp

    graph = grimp.build_graph("dhel_kcl", include_external_packages=True, cache_dir=None)
    assert "torch" in graph.modules
    assert "snakemake" not in graph.modules


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    outcome = run("dhel-kcl", "configure", str(TINY), cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    return tmp_path


def test_configure_resolves_every_default_and_lists_the_runs(experiment: Path) -> None:
    resolved = experiment / "results" / "tiny" / "config.yaml"
    assert load_config(resolved) == load_config(TINY)
    assert yaml.safe_load(resolved.read_text(encoding="utf-8"))["compute"]["checkpoint_every_steps"] == 500
    listed = run("dhel-kcl", "runs", "results/tiny", cwd=experiment).stdout.split()
    assert listed == list(load_config(TINY).runs)


def test_configuring_again_changes_nothing(experiment: Path) -> None:
    files = [path for path in experiment.rglob("*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in files]
    assert run("dhel-kcl", "configure", str(TINY), cwd=experiment).returncode == 0
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["runs", "results/nowhere"], "results/nowhere/config.yaml: missing; create it with `dhel-kcl configure"),
        (["configure", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["data", "results/tiny", "mnist", "train"], "data set 'mnist' is not in experiment 'tiny'; it has digits"),
        (["data", "results/tiny", "digits", "dev"], "split 'dev': data set digits has train, test"),
        (["pretrain", "results/tiny", "digits-x"], "run 'digits-x' is not in experiment 'tiny'; one of its runs is"),
        (
            ["features", "results/tiny", "digits-dhel-temperature0.3-bs256-seed0"],
            "encoder.safetensors: missing; run the rule that writes it",
        ),
        (["collect", "results/tiny"], "outcome.json: missing; run the rule that writes it"),
        (["watch", "results/tiny", RUN, "--once"], "training_log.csv: missing; it appears when the first epoch"),
        (["render", "results/tiny", "fig_x"], "paper_figures: no figure or table scripts here; run this in the root"),
        (["show", "results/tiny"], "table_linear_accuracy.md: missing; run snakemake for results/tiny first"),
        (
            ["audit", "results/tiny"],
            "paper_figures: no figure or table scripts here; run this in the root of the repository",
        ),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_with_one_line_that_names_the_remedy(
    experiment: Path, command: list[str], said: str
) -> None:
    outcome = run("dhel-kcl", *command, cwd=experiment)
    assert outcome.returncode == 1
    *_, last = outcome.stderr.splitlines()
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in outcome.stderr


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ["data", "digits", "train"],
        ["pretrain", RUN],
        ["features", RUN],
        ["evaluate", RUN],
        ["augmented-probe", RUN],
        ["corruptions", RUN],
        ["analyse", RUN],
        ["collect"],
        ["theory"],
        ["render", "table_theory"],
        ["watch", RUN, "--once"],
        ["explorer"],
        ["report"],
        ["crate"],
    ],
    ids=lambda command: str(command[0]),
)
@pytest.mark.parametrize("folder", ["a release", "a folder of somebody's own"])
def test_a_command_that_writes_leaves_a_folder_alone_that_is_no_experiments(
    command: list[str], folder: str, tmp_path: Path
) -> None:
    (tmp_path / "paper_figures").symlink_to(REPOSITORY / "paper_figures")
    shutil.copytree(REPOSITORY / "docs" / "results" / "theory", tmp_path / "folder")
    if folder == "a folder of somebody's own":
        (tmp_path / "folder" / "SHA256SUMS").unlink()
        (tmp_path / "folder" / "manifests" / "configure.json").unlink()
    before = contents(tmp_path)
    name, *arguments = command
    outcome = run("dhel-kcl", name, "folder", *arguments, cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    said = {
        "a release": "error: folder: a release, which stays as it was published; give the experiment's folder",
        "a folder of somebody's own": "error: folder/manifests/configure.json: missing, so this may not be an exp",
    }
    assert outcome.stderr.startswith(said[folder])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", [["runs"], ["trace", "fig_minimisers"]], ids=lambda command: str(command[0]))
def test_a_release_can_be_read(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "paper_figures").symlink_to(REPOSITORY / "paper_figures")
    shutil.copytree(REPOSITORY / "docs" / "results" / "theory", tmp_path / "folder")
    before = contents(tmp_path)
    name, *arguments = command
    outcome = run("dhel-kcl", name, "folder", *arguments, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout
    assert contents(tmp_path) == before


def _edit(folder: Path) -> None:
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("# mine\n")


def _release(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "output", "said"),
    [
        (_release, "results/tiny", "results/tiny: a release, which stays as it was published"),
        (_release, "results/tiny/more", "results/tiny/more: inside"),
        (lambda _: None, "results/tiny/more", "results/tiny/more: inside"),
        (_edit, "results/tiny", "results/tiny/config.yaml: not what `dhel-kcl configure` wrote there, and would be l"),
        (
            lambda folder: (folder / "manifests" / "configure.json").write_text("{}", encoding="utf-8"),
            "results/tiny",
            "results/tiny/manifests/configure.json: not a manifest; delete it",
        ),
        (lambda _: None, "mine", "mine/config.yaml: not what `dhel-kcl configure` wrote there, and would be lost"),
        (lambda _: None, "links", "links/config.yaml: not what `dhel-kcl configure` wrote there, and would be lost"),
    ],
    ids=["release", "inside a release", "inside an experiment", "edited", "manifest", "foreign", "link"],
)
@pytest.mark.parametrize("config", ["the same", "another"])
def test_configure_writes_over_nothing_that_it_did_not_write(
    experiment: Path, change: Callable[[Path], object], output: str, said: str, config: str
) -> None:
    change(experiment / "results" / "tiny")
    (experiment / "mine").mkdir()
    shutil.copy(TINY, experiment / "mine" / "config.yaml")
    (experiment / "links").mkdir()
    (experiment / "links" / "config.yaml").symlink_to("nowhere")
    before = contents(experiment)
    source = TINY if config == "the same" else REPOSITORY / "config" / "quickstart.yaml"
    outcome = run("dhel-kcl", "configure", str(source), "--output", output, cwd=experiment)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith(f"error: {said}")
    assert contents(experiment) == before
    assert (experiment / "links" / "config.yaml").is_symlink()


def test_configure_changes_an_experiment_and_goes_on_where_it_was_killed(experiment: Path) -> None:
    folder, other = experiment / "results" / "tiny", REPOSITORY / "config" / "quickstart.yaml"
    assert run("dhel-kcl", "configure", str(other), "--output", str(folder), cwd=experiment).returncode == 0
    assert load_config(folder / "config.yaml") == load_config(other)
    (folder / "manifests" / "configure.json").unlink()
    before = contents(folder)
    assert run("dhel-kcl", "configure", str(other), "--output", str(folder), cwd=experiment).returncode == 0
    after = contents(folder)
    assert after[folder / "config.yaml"] == before[folder / "config.yaml"]
    assert folder / "manifests" / "configure.json" in after


def test_a_log_replaces_no_file_but_a_log(experiment: Path) -> None:
    config = experiment / "results" / "tiny" / "config.yaml"
    before = config.read_bytes()
    outcome = run("dhel-kcl", "--log", str(config), "runs", "results/tiny", cwd=experiment)
    assert outcome.returncode == 1
    assert outcome.stderr == f"error: {config}: --log writes a file anew, so it takes names that end in .log only\n"
    assert config.read_bytes() == before


def test_a_run_can_be_watched_until_it_ends(copy_of_finished: Path) -> None:
    folder = copy_of_finished / "results" / "tiny" / "runs" / RUN
    log, outcome = folder / "training_log.csv", folder / "outcome.json"
    lines, end = log.read_text(encoding="utf-8").splitlines(keepends=True), outcome.read_text(encoding="utf-8")
    log.write_text("".join(lines[:2]), encoding="utf-8")
    outcome.unlink()
    command = [str(Path(sys.executable).parent / "dhel-kcl"), "watch", "results/tiny", RUN, "--every", "0.05"]
    with subprocess.Popen(command, cwd=copy_of_finished, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == f"results/tiny/runs/{RUN}/live/fig_training.png: 1 of 2 epochs\n"
        log.write_text("".join(lines), encoding="utf-8")
        assert watching.stdout.readline().endswith("fig_training.png: 2 of 2 epochs\n")
        outcome.write_text(end, encoding="utf-8")
        assert watching.wait(timeout=60) == 0
    assert pd.read_csv(folder / "live" / "fig_training.csv")["epoch"].max() == 2
