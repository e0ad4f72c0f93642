"""The command line: it teaches, and its errors are one line with a remedy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from workspace import TINY, run

from dhel_kcl import cli
from dhel_kcl.config import ExperimentConfig, load_config, write_resolved_config
from dhel_kcl.data.beton import sidecar_path
from dhel_kcl.errors import InputError
from dhel_kcl.layout import Layout

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


def test_a_training_outlives_a_manifest_that_cannot_be_written(
    digits_beton: Path, tiny_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "results")
    write_resolved_config(tiny_config, layout.config)
    beton = layout.beton("digits", "train")
    beton.parent.mkdir(parents=True)
    for path in (digits_beton, sidecar_path(digits_beton)):
        shutil.copy(path, beton.parent)

    def no_space(path: Path, value: object) -> None:
        raise InputError(f"{path}: no space left; free some and run the same command again")

    with monkeypatch.context() as patch:
        patch.setattr("dhel_kcl.provenance.write_json", no_space)
        with pytest.raises(InputError, match="no space left"):
            cli.pretrain(layout.root, RUN)
    assert list((layout.run(RUN) / "checkpoints").rglob("step-*.pt"))
    monkeypatch.delattr("dhel_kcl.pretrain.train_step")  # nothing is trained again
    cli.pretrain(layout.root, RUN)
    assert layout.run_manifest("pretrain", RUN).exists()
    assert not (layout.run(RUN) / "checkpoints").exists()
