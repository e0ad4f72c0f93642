"""One process measures a run: stages that still hold are kept, the others are done as by hand."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import TINY

from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.measure import measure
from dhel_kcl.experiment.grid import parse_config
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.stages import stages_of

LAYOUT = Layout(Path("results/tiny"))
RUN = "digits-dhel-temperature0.3-bs128-seed0"
EVERY = ["features", "evaluate", "augmented_probe", "corruptions", "analyse"]


@pytest.fixture(autouse=True)
def experiment(copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy_of_finished)


def measured(**changes: Any) -> list[str]:
    """Measure the run under a changed configuration; return the stages that were done."""
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change}
    experiment = Experiment(parse_config(values, "test"), LAYOUT)
    manifests = {name: LAYOUT.run_manifest(name, RUN) for name in EVERY}
    before = {name: path.stat().st_mtime_ns if path.exists() else 0 for name, path in manifests.items()}
    measure(experiment, RUN)
    return [name for name, path in manifests.items() if path.exists() and path.stat().st_mtime_ns != before[name]]


def contents() -> dict[Path, bytes]:
    results = [path for path in LAYOUT.run(RUN).iterdir() if path.is_file() and "manifest" not in path.name]
    return {path: path.read_bytes() for path in results}


def test_the_stages_are_those_of_the_rule_in_the_order_of_the_table() -> None:
    config = parse_config(yaml.safe_load(TINY.read_text(encoding="utf-8")), "test")
    assert [stage.name for stage in stages_of("measure", config)] == EVERY


def test_where_nothing_has_changed_everything_is_kept() -> None:
    before = contents()
    assert measured() == []
    assert contents() == before


def test_a_changed_setting_of_one_stage_leaves_the_others() -> None:
    assert measured(analysis={"similarity_bins": 50}) == ["analyse"]
    assert measured(evaluation={"neighbours": 5}) == ["evaluate", "analyse"], "its setting is that of before again"


@pytest.mark.parametrize("kept", [True, False], ids=["features kept", "features discarded"])
def test_what_is_gone_is_made_again_with_the_bytes_that_it_had(kept: bool) -> None:
    before = contents()
    for path in (LAYOUT.evaluation(RUN), LAYOUT.features(RUN)):
        path.unlink()
    assert measured(compute={"keep_features": kept}) == ["features", "evaluate"]
    if not kept:
        del before[LAYOUT.features(RUN)]
    assert contents() == before


def test_discarded_features_are_computed_only_for_a_stage_that_reads_them() -> None:
    LAYOUT.features(RUN).unlink()
    LAYOUT.corruptions(RUN).unlink()
    discarding = {"compute": {"keep_features": False}}
    assert measured(**discarding) == ["corruptions"]
    assert measured(**discarding, analysis={"similarity_bins": 50}) == ["features", "analyse"]
    assert not LAYOUT.features(RUN).exists()


def test_features_that_are_no_longer_kept_are_deleted() -> None:
    assert measured(compute={"keep_features": False}) == []
    assert not LAYOUT.features(RUN).exists()


def test_another_encoder_makes_everything_stale() -> None:
    manifest = LAYOUT.run_manifest("pretrain", RUN)
    text = manifest.read_text(encoding="utf-8")
    sha256 = yaml.safe_load(text)["outputs"]["encoder.safetensors"]["sha256"]
    manifest.write_text(text.replace(sha256, "0" * 64), encoding="utf-8")
    assert measured() == ["features", "augmented_probe", "corruptions"], "the features and the classifier are the same"


def test_a_damaged_manifest_counts_as_none() -> None:
    LAYOUT.run_manifest("evaluate", RUN).write_text("{", encoding="utf-8")
    assert measured() == ["evaluate"]


@pytest.mark.parametrize("kept", [True, False], ids=["features kept", "features discarded"])
def test_a_stage_that_fails_leaves_what_was_measured_before_it(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> str | None:
        if job.stage.name == "augmented_probe":
            raise InputError("no space")
        return done(job)

    done = Job.do
    monkeypatch.setattr(Job, "do", fail)
    for name in EVERY:
        LAYOUT.run_manifest(name, RUN).unlink()
    with pytest.raises(InputError, match="no space"):
        measured(compute={"keep_features": kept})
    assert [name for name in EVERY if LAYOUT.run_manifest(name, RUN).exists()] == ["features", "evaluate"]
    assert LAYOUT.features(RUN).exists() == kept
    monkeypatch.undo()
