"""The examples run as they are, and say what they promise."""

import re
from pathlib import Path

import pytest
import torch
from workspace import REPOSITORY, run

from dhel_kcl import metrics
from dhel_kcl.evaluation.feature_cache import save_features

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in conftest.py, for the programs that the tests start."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def numbers(output: str) -> dict[str, list[float]]:
    """The rows of the tour's table."""
    rows = re.findall(r"^(\w+) +(-?[\d.]+) +(-?[\d.]+)$", output, re.MULTILINE)
    return {name: [float(first), float(second)] for name, first, second in rows}


def test_the_tour_explains_each_metric_on_features_of_its_own(tmp_path: Path) -> None:
    outcome = run("python", str(EXAMPLES / "tour_of_metrics.py"), cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    heading, *lines = outcome.stdout.splitlines()
    assert heading.split() == ["random", "(d", "=", "32)", "collapsed", "(d", "=", "32)"]
    measured = numbers(outcome.stdout)
    assert set(measured) == set(metrics.__all__) - {"ideal_similarity_density"}
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])
    assert measured["rank"] == [32, 2]
    assert measured["uniformity"][0] < measured["uniformity"][1]
    assert measured["wasserstein_uniformity"][0] < measured["wasserstein_uniformity"][1]
    assert measured["knn_accuracy"][0] > measured["knn_accuracy"][1]


def test_the_tour_measures_a_runs_features(tmp_path: Path) -> None:
    names = ("train", "test", "test_view1", "test_view2")
    features = {f"{name}_{x}": torch.randn(64, d) for name in names for x, d in (("h", 12), ("z", 3))}
    features["test_view2_z"] = features["test_view1_z"].clone()
    labels = {"train_label": torch.arange(64) % 4, "test_label": torch.arange(64) % 4}
    save_features(features | labels, tmp_path / "features.safetensors")
    outcome = run("python", str(EXAMPLES / "tour_of_metrics.py"), "features.safetensors", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[0].split() == ["h", "(d", "=", "12)", "z", "(d", "=", "3)"]
    assert numbers(outcome.stdout)["rank"] == [12, 3]
    assert numbers(outcome.stdout)["alignment"][1] == 0


def test_the_tour_refuses_another_file_in_one_line(tmp_path: Path) -> None:
    save_features({"weight": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    outcome = run("python", str(EXAMPLES / "tour_of_metrics.py"), "encoder.safetensors", cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr == (
        "error: encoder.safetensors: not the features of a run: it lacks test_h, test_label, test_view1_h and 7 more; "
        "delete it and extract the features again\n"
    )
