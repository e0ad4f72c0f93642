"""Which jobs have to be done again follows from their manifests, not from Snakemake's records or the times of files."""

import os
import random
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import REPOSITORY, TINY, snakemake

from dhel_kcl import cli
from dhel_kcl.experiment.grid import ExperimentConfig, parse_config
from dhel_kcl.files import sha256_file, write_json
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import Artifact, load_manifest
from dhel_kcl.jobs.stages import STAGES
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


def test_a_dry_run_on_a_copy_plans_nothing_and_sets_no_time(experiment: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in LAYOUT.root.rglob("*")}
    assert planned(experiment) == set()
    assert {path: path.stat().st_mtime_ns for path in LAYOUT.root.rglob("*")} == before


def test_a_copy_of_a_finished_experiment_has_nothing_to_do(experiment: Path) -> None:
    contents = {path: path.read_bytes() for path in experiment.rglob("*") if path.is_file()}
    assert stale() == {}
    assert planned(experiment) == set()
    assert contents == {path: path.read_bytes() for path in contents}, "only times are set right"


def test_without_records_a_changed_setting_is_noticed_all_the_same(experiment: Path) -> None:
    changed = stale(analysis={"similarity_bins": 50})
    analysed = {f"runs/{run}/analyse.manifest.json" for run in config().runs}
    assert changed.keys() == {*analysed, "manifests/report.json"}
    assert changed[f"runs/{RUN}/analyse.manifest.json"] == "similarity_bins was 100, is 50"


def test_a_changed_training_is_stale_and_what_follows_from_it_is_left_to_snakemake(experiment: Path) -> None:
    datasets = [config().datasets[0].model_dump(mode="json") | {"epochs": 3}]
    changed = stale(datasets=datasets)
    trained = {f"runs/{run}/pretrain.manifest.json" for run in config().runs}
    assert changed.keys() == {*trained, "manifests/report.json"}
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
    assert "measure" in planned(experiment)


def test_features_follow_what_is_kept_now(experiment: Path) -> None:
    compute = config().compute.model_dump(mode="json") | {"keep_features": False}
    assert stale(compute=compute)[f"runs/{RUN}/features.manifest.json"] == "compute.keep_features is now false"
    LAYOUT.features(RUN).unlink()
    assert stale()[f"runs/{RUN}/features.manifest.json"] == "features.safetensors is missing"


def test_only_what_is_asked_for_is_done_again(experiment: Path) -> None:
    script = SCRIPTS / "fig_spectrum.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    other = snakemake("fig_batch_size", "--dry-run", cwd=experiment)
    assert "Nothing to be done" in other.stdout + other.stderr
    said = snakemake("fig_spectrum", "--dry-run", cwd=experiment)
    assert re.search(r"^fig_spectrum +1$", said.stdout, re.MULTILINE)
    assert "render of fig_spectrum is stale: its code has changed" in said.stderr


def test_snakemakes_own_records_do_not_outvote_the_manifests(copy_of_finished: Path) -> None:
    for path in (copy_of_finished / ".snakemake" / "metadata").rglob("*"):
        if path.is_file():
            path.write_text(path.read_text(encoding="utf-8").replace("tiny", "other"), encoding="utf-8")
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


@pytest.fixture
def from_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An experiment of which `theory` was done, by a clock that was an hour ahead."""
    monkeypatch.chdir(tmp_path)
    layout = Layout(Path("results/tiny"))
    cli.configure(str(TINY), layout.root)
    with Job(Experiment(config(), layout), STAGES["theory"], "tiny").recorded():
        for path in (layout.theory, layout.theory.with_suffix(".csv")):
            path.write_text(path.name, encoding="utf-8")
    for path in layout.root.rglob("*"):
        _put_an_hour_ahead(path)
    return layout


def _put_an_hour_ahead(path: Path) -> None:
    os.utime(path, (time.time() + 3600,) * 2)


def _ahead(layout: Layout) -> set[str]:
    files = [path for path in layout.root.rglob("*") if path.is_file() and path.parent.name != "manifests"]
    return {path.name for path in files if path.stat().st_mtime > time.time()}


def test_what_was_made_in_the_future_and_is_as_recorded_gets_the_present_time(from_the_future: Layout) -> None:
    from_the_future.theory.with_suffix(".csv").write_text("changed", encoding="utf-8")
    _put_an_hour_ahead(from_the_future.theory.with_suffix(".csv"))
    assert stale_jobs(Experiment(config(), from_the_future, chosen={})) == {}
    assert _ahead(from_the_future) == {"theory.csv", "config.yaml"}, "which no rule makes"
    assert from_the_future.manifest("theory").stat().st_mtime <= time.time()


def test_no_time_is_set_ahead_of_the_clock(
    from_the_future: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tmp_path / "read.txt"
    monkeypatch.setitem(STAGES, "theory", replace(STAGES["theory"], reads=lambda *_: {"read": read}))
    read.write_text("read", encoding="utf-8")
    _put_an_hour_ahead(read)
    manifest = from_the_future.manifest("theory")
    job = load_manifest(manifest)
    job.inputs["read"] = Artifact(path=os.path.relpath(read, manifest.parent), sha256=sha256_file(read), bytes=4)
    write_json(manifest, job.model_dump())
    assert stale_jobs(Experiment(config(), from_the_future, chosen={})) == {}
    assert _ahead(from_the_future) == {"config.yaml"}, "which no rule makes"
    assert read.stat().st_mtime > time.time()


def test_a_dry_run_only_notes_times(from_the_future: Layout) -> None:
    noted: dict[Path, int] = {}
    before = _ahead(from_the_future)
    stale_jobs(Experiment(config(), from_the_future, chosen={}), noted.__setitem__)
    assert _ahead(from_the_future) == before
    assert {path.name for path in noted} == {"theory.parquet", "theory.csv", "theory.json"}
    assert all(each <= time.time_ns() for each in noted.values())


@pytest.mark.parametrize("whose", ["a release", "somebody's"])
def test_times_stay_in_a_folder_that_is_no_experiments_own(whose: str, from_the_future: Layout) -> None:
    if whose == "a release":
        (from_the_future.root / "SHA256SUMS").touch()
    else:
        from_the_future.manifest("configure").unlink()
    before = _ahead(from_the_future)
    stale_jobs(Experiment(config(), from_the_future, chosen={}))
    assert _ahead(from_the_future) == before


def test_times_stay_of_files_that_no_job_writes_whatever_a_manifest_says(
    from_the_future: Layout, tmp_path: Path
) -> None:
    victim, notes = tmp_path / "victim", from_the_future.root / "notes.txt"
    for path in (victim, notes):
        path.write_text("mine", encoding="utf-8")
        _put_an_hour_ahead(path)
    from_the_future.theory.unlink()
    victim_of_link = from_the_future.theory
    victim_of_link.symlink_to(victim)
    manifest = from_the_future.manifest("theory")
    job = load_manifest(manifest)
    for path in (victim, notes, victim_of_link):
        place = os.path.relpath(path, manifest.parent)
        job.outputs[path.name] = Artifact(path=place, sha256=sha256_file(victim), bytes=4)
    job.outputs.pop("parquet")
    write_json(manifest, job.model_dump())
    assert stale_jobs(Experiment(config(), from_the_future, chosen={})) == {}
    assert victim.stat().st_mtime > time.time()
    assert _ahead(from_the_future) == {"config.yaml", "notes.txt", "theory.parquet"}


def test_a_manifest_that_is_a_pipe_is_not_waited_for(from_the_future: Layout) -> None:
    from_the_future.manifest("theory").unlink()
    os.mkfifo(from_the_future.manifest("theory"))
    assert stale_jobs(Experiment(config(), from_the_future, chosen={})) == {
        from_the_future.manifest("theory"): "its manifest cannot be read"
    }
