"""What a run is said to have measured fits how it ended; no number is too large to be one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import make_features, write_outcome
from test_measurements import LOG, THROUGHPUT, collected, sound  # noqa: F401 # fixtures

from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.analyse import analyse
from dhel_kcl.evaluation.evaluate import evaluate
from dhel_kcl.evaluation.feature_cache import load_features, save_features
from dhel_kcl.experiment.config import AnalysisConfig, EvaluationConfig
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.files import read_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.results.collect import collect, read_measurements

HUGE = "1" + 400 * "0"


@pytest.fixture
def run_folder(collected: tuple[ExperimentConfig, Layout, str]) -> tuple[Experiment, Path]:  # noqa: F811
    """An experiment of one run, and the folder of its files."""
    config, layout, run = collected
    return Experiment(config, layout), layout.run(run)


def test_a_finished_run_has_logged_every_epoch(run_folder: tuple[Experiment, Path]) -> None:
    experiment, folder = run_folder
    collect(experiment)
    log = folder / "training_log.csv"
    log.write_text(LOG.rpartition("2,22")[0], encoding="utf-8")
    with pytest.raises(InputError, match=r"training_log\.csv: has 1 epochs, but the run finished 2; delete it"):
        collect(experiment)
    log.write_text(LOG + LOG.splitlines()[-1].replace("2,22", "3,33") + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"training_log\.csv: has 3 epochs, but the run finished 2; delete it"):
        collect(experiment)


def test_of_a_diverged_run_nothing_was_measured(run_folder: tuple[Experiment, Path]) -> None:
    experiment, folder = run_folder
    write_outcome(folder / "outcome.json", "diverged")
    measured = ["evaluation.json", "augmented_probe.json", "corruptions.json", "representation.json"]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in measured}
    for name, text in texts.items():
        for other in measured:
            (folder / other).write_text("{}", encoding="utf-8")
        assert {*collect(experiment)["source"]} == {
            f"runs/{folder.name}/{own}" for own in ("outcome.json", "training_log.csv", "throughput.csv")
        }
        (folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=rf"{name}: holds measurements, but the run diverged; delete it"):
            collect(experiment)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("outcome.json", lambda text: text.replace("22", HUGE)),
        ("outcome.json", lambda text: text.replace('"processes": 1', f'"processes": {HUGE}')),
        ("evaluation.json", lambda text: text.replace('"test_images": 20', f'"test_images": {HUGE}')),
        ("evaluation.json", lambda text: text.replace('"regularisation_c": 1.0', f'"regularisation_c": {HUGE}')),
        ("evaluation.json", lambda text: text.replace('"test_images": 20', f'"test_images": {2**53 + 1}')),
        ("representation.json", lambda text: text.replace('"embedding_dim": 4', f'"embedding_dim": {HUGE}')),
        ("representation.json", lambda text: text.replace('"alignment": ', f'"alignment": {HUGE[:-2]}', 1)),
        ("training_log.csv", lambda text: text.replace("2,22", f"2,{HUGE}")),
        ("throughput.csv", lambda text: THROUGHPUT.replace("512.0", HUGE)),
    ],
)
def test_a_number_that_is_too_large_is_refused_in_one_line(
    sound: dict[str, str],  # noqa: F811
    tmp_path: Path,
    name: str,
    change: Callable[[str], str],
) -> None:
    path = tmp_path / name
    path.write_text(change(sound[name]), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != sound[name]
    with pytest.raises(InputError) as caught:
        list(read_measurements(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, make_manifest: Callable[..., Path]) -> None:
    path = tmp_path / "evaluation.json"
    for text in ('{"linear_top1": 0.9, "linear_top1": 0.1}', '{"a": [{"b": {"c": 1, "c": 1}}]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"evaluation\.json: not valid JSON \(key '\w+' is given twice\); delete"):
            read_json(path)
    manifest = make_manifest("evaluate", "a")
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace('"stage":', '"stage": "pretrain",\n  "stage":'), encoding="utf-8")
    assert json.loads(manifest.read_text(encoding="utf-8"))["stage"] == "evaluate"
    with pytest.raises(InputError, match="key 'stage' is given twice"):
        History([manifest])


@pytest.mark.parametrize("seconds", ["1e300", "NaN", "-1", HUGE])
def test_a_job_takes_a_time_that_can_be_summed_up(make_manifest: Callable[..., Path], seconds: str) -> None:
    manifest = make_manifest("evaluate", "a")
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace('"seconds": 1.0', f'"seconds": {seconds}'), encoding="utf-8")
    with pytest.raises(InputError, match="not a manifest"):
        History([manifest])


@pytest.mark.parametrize("label", [2**16, 10**12, -2])
def test_a_label_that_no_class_has_is_refused(tmp_path: Path, label: int) -> None:
    features: dict[str, Any] = make_features()
    features["test_label"] = torch.full((20,), label)
    path = tmp_path / "features.safetensors"
    save_features(features, path)
    with pytest.raises(InputError, match=f"it has the label {label}; delete it"):
        load_features(path)


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    save_features(make_features(), path)
    load_features(path, 3)
    with pytest.raises(InputError, match="it has z of dimension 3 instead of 16; delete it and extract the features"):
        analyse(path, AnalysisConfig(), {}, 1, tmp_path / "representation.json", 16)
    outputs = tmp_path / "evaluation.json", tmp_path / "classifier.safetensors"
    with pytest.raises(InputError, match="it has z of dimension 3 instead of 16"):
        evaluate(path, EvaluationConfig(), 0, 1, *outputs, 16)
    assert not any(output.exists() for output in outputs)
