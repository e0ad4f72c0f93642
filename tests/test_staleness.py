"""Which jobs have to be done again follows from their manifests, not from Snakemake's records or the times of files."""

import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import REPOSITORY, TINY, snakemake

from dhel_kcl.experiment.config import ExperimentConfig, parse_config
from dhel_kcl.files import write_json
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.provenance.staleness import explain, stale_jobs

LAYOUT = Layout(Path("results/tiny"))
RUN = "digits-dhel-temperature0.3-bs128-seed0"


@pytest.fixture
def experiment(copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished experiment that was copied without Snakemake's records, at times that say nothing."""
    shutil.rmtree(copy_of_finished / ".snakemake")
    shuffle_times(copy_of_finished)
    monkeypatch.chdir(copy_of_finished)
    return copy_of_finished


def shuffle_times(folder: Path) -> None:
    generator = random.Random(0)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            time = 1_700_000_000 + generator.randrange(10**6)
            os.utime(path, (time, time))


def config(**changes: Any) -> ExperimentConfig:
    return parse_config(yaml.safe_load(TINY.read_text(encoding="utf-8")) | changes, "test")


def stale(**changes: Any) -> dict[str, str]:
    """What is stale, by the name of its manifest."""
    found = stale_jobs(Experiment(config(**changes), LAYOUT))
    return {str(path.relative_to(LAYOUT.root)): reason for path, reason in found.items()}


def planned(folder: Path) -> set[str]:
    outcome = snakemake("--dry-run", cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    return set(
        re.findall(r"^(\w+) +\d+$", outcome.stdout.partition("Job stats:")[2].partition("total")[0], re.MULTILINE)
    )


def test_a_copy_of_a_finished_experiment_has_nothing_to_do(experiment: Path) -> None:
    contents = {path: path.read_bytes() for path in experiment.rglob("*") if path.is_file()}
    assert stale() == {}
    assert planned(experiment) == set()
    assert contents == {path: path.read_bytes() for path in contents}, "only times are set right"


def test_without_records_a_changed_setting_is_noticed_all_the_same(experiment: Path) -> None:
    changed = stale(analysis={"similarity_bins": 50})
    analysed = {f"runs/{run}/analyse.manifest.json" for run in config().runs}
    assert changed.keys() == {*analysed, "manifests/report.json", "manifests/crate.json"}
    assert changed[f"runs/{RUN}/analyse.manifest.json"] == "similarity_bins was 100, is 50"


def test_a_changed_training_is_stale_and_what_follows_from_it_is_left_to_snakemake(experiment: Path) -> None:
    datasets = [config().datasets[0].model_dump(mode="json") | {"epochs": 3}]
    changed = stale(datasets=datasets)
    trained = {f"runs/{run}/pretrain.manifest.json" for run in config().runs}
    assert changed.keys() == {*trained, "manifests/report.json", "manifests/crate.json"}
    assert changed[f"runs/{RUN}/pretrain.manifest.json"] == "dataset.epochs was 2, is 3"


def test_a_part_of_the_grid_keeps_what_its_runs_have(experiment: Path) -> None:
    assert not [name for name in stale(only={"batch_size": 128}) if name.startswith("runs/")]


@pytest.mark.parametrize("stage", ["evaluate", "analyse"])
def test_changed_code_is_noticed_in_the_jobs_that_ran_it(experiment: Path, stage: str) -> None:
    manifest = LAYOUT.run_manifest(stage, RUN)
    job = load_manifest(manifest)
    write_json(manifest, job.model_copy(update={"source_digest": "0" * 16}).model_dump())
    found = stale()
    assert found[f"runs/{RUN}/{stage}.manifest.json"] == "its code has changed"
    assert not [name for name in found if "/runs/" in name and RUN not in name]


def test_an_edited_script_is_stale_alone(experiment: Path) -> None:
    script = SCRIPTS / "fig_spectrum.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    assert "manifests/render-fig_spectrum.json" in stale()
    assert not [name for name in stale() if name.startswith(("runs/", "manifests/data", "manifests/collect"))]


def test_a_file_that_no_job_writes_is_compared_with_what_was_read(experiment: Path) -> None:
    published = Path("config/published_results.csv")
    published.write_bytes(published.read_bytes() + b"\n")
    reason = "published_results.csv, which it read, has changed"
    assert reason in stale()["manifests/render-table_published.json"]


def test_a_job_that_was_done_again_by_hand_makes_its_readers_stale(experiment: Path) -> None:
    manifest = LAYOUT.run_manifest("pretrain", RUN)
    job = load_manifest(manifest)
    job.outputs["encoder.safetensors"].sha256 = "0" * 64
    write_json(manifest, job.model_dump())
    found = stale()
    for stage in ("features", "augmented_probe", "corruptions"):
        assert found[f"runs/{RUN}/{stage}.manifest.json"] == "encoder.safetensors, which it read, has changed"
    assert "audit.json" in found


def test_a_manifest_of_another_job_or_of_none_does_not_count(experiment: Path) -> None:
    other = LAYOUT.run_manifest("evaluate", "digits-dhel-temperature0.3-bs256-seed0")
    shutil.copy(other, LAYOUT.run_manifest("evaluate", RUN))
    LAYOUT.manifest("theory").write_text("{}", encoding="utf-8")
    found = stale()
    assert found[f"runs/{RUN}/evaluate.manifest.json"].startswith("its manifest describes evaluate of ")
    assert found["manifests/theory.json"] == "its manifest cannot be read"


def test_a_changed_input_is_not_hidden_by_setting_times_right(experiment: Path) -> None:
    features = LAYOUT.features(RUN)
    features.write_bytes(features.read_bytes() + b"\0")
    assert stale()[f"runs/{RUN}/evaluate.manifest.json"] == "features.safetensors, which it read, has changed"
    assert "evaluate" in planned(experiment)


def test_features_follow_what_is_kept_now(experiment: Path) -> None:
    compute = config().compute.model_dump(mode="json") | {"keep_features": False}
    assert stale(compute=compute)[f"runs/{RUN}/features.manifest.json"] == "compute.keep_features is false now"
    LAYOUT.features(RUN).unlink()
    assert stale()[f"runs/{RUN}/features.manifest.json"] == "compute.keep_features is true now"


def test_only_what_is_asked_for_is_done_again(experiment: Path) -> None:
    script = SCRIPTS / "fig_spectrum.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    other = snakemake("fig_training", "--dry-run", cwd=experiment)
    assert "Nothing to be done" in other.stdout + other.stderr
    said = snakemake("fig_spectrum", "--dry-run", cwd=experiment)
    assert re.search(r"^fig_spectrum +1$", said.stdout, re.MULTILINE)
    assert "render of fig_spectrum is stale: its code has changed" in said.stderr


def test_snakemakes_own_records_do_not_outvote_the_manifests(copy_of_finished: Path) -> None:
    for record in (copy_of_finished / ".snakemake" / "metadata").rglob("*"):
        if record.is_file():
            record.write_text(record.read_text(encoding="utf-8").replace("tiny", "other"), encoding="utf-8")
    assert planned(copy_of_finished) == set()


def test_jobs_that_are_stale_for_one_reason_are_one_line() -> None:
    tiny, code = Experiment(config(), LAYOUT, REPOSITORY / "paper_figures"), "its code has changed"
    first, second, *_ = tiny.config.runs
    found = {LAYOUT.run_manifest("evaluate", run): code for run in (first, second)}
    found[LAYOUT.manifest("theory")] = "t was 1.0, is 2.0"
    assert list(explain(found, tiny)) == [
        f"evaluate of {first} and 1 more is stale: its code has changed",
        "theory of tiny is stale: t was 1.0, is 2.0",
    ]
