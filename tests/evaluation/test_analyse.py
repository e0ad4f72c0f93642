"""Representation analysis gives the same bytes wherever and however it is started."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import make_features
from workspace import run as run_program

from dhel_kcl import metrics
from dhel_kcl.evaluation.analyse import analyse
from dhel_kcl.evaluation.feature_cache import save_features
from dhel_kcl.evaluation.mini_batch_losses import mini_batch_losses
from dhel_kcl.experiment.config import AnalysisConfig
from dhel_kcl.jobs.layout import Layout

RUN = "digits-dhel-temperature0.3-bs256-seed0"
LOSS = {"name": "ntxent", "temperature": 0.5}


@pytest.mark.parametrize("stage", ["evaluate", "analyse"])
def test_thread_variables_of_the_environment_do_not_change_the_bytes(
    stage: str, copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(copy_of_finished / "results" / "tiny")
    file = layout.evaluation(RUN) if stage == "evaluate" else layout.representation(RUN)
    by_the_workflow = file.read_bytes()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, str(max(2, os.cpu_count() or 2)))
    outcome = run_program("dhel-kcl", stage, "results/tiny", RUN, cwd=copy_of_finished)
    assert outcome.returncode == 0, outcome.stderr
    assert file.read_bytes() == by_the_workflow


def analysed(features: dict[str, torch.Tensor], folder: Path, not_measured: dict[str, str] | None = None) -> Any:
    save_features(features, folder / "features.safetensors", not_measured)
    analyse(folder / "features.safetensors", AnalysisConfig(), LOSS, 1, folder / "representation.json")
    return json.loads((folder / "representation.json").read_text(encoding="utf-8"))


def test_a_representation_without_direction_has_the_reason_in_its_place_and_the_other_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = make_features()
    sound = analysed(features, tmp_path)
    features["test_h"][3] = 0
    measured = analysed(features, tmp_path)
    assert measured["h"].keys() == {"not_measured"}
    assert "has no direction" in measured["h"]["not_measured"]
    assert measured["z"] == sound["z"]
    assert "features.safetensors: h not measured:" in " ".join(capsys.readouterr().err.split())


def test_each_metric_is_of_the_images_that_it_says(tmp_path: Path) -> None:
    features = make_features()
    measured = analysed(features, tmp_path)
    for name in ("h", "z"):
        test, view1, view2 = (features[f"{place}_{name}"] for place in ("test", "test_view1", "test_view2"))
        unit = torch.nn.functional.normalize(test.double())
        expected = {
            "alignment": metrics.alignment(view1, view2),
            "uniformity_of_views": (metrics.uniformity(view1) + metrics.uniformity(view2)) / 2,
            "uniformity": metrics.uniformity(test),
            "rank": metrics.rank(unit),
            "effective_rank": metrics.effective_rank(unit),
            "centred_effective_rank": metrics.centred_effective_rank(unit),
            "participation_ratio": metrics.participation_ratio(unit),
            "embedding_dim": test.shape[1],
        }
        if name == "z":
            expected["wasserstein_uniformity"] = metrics.wasserstein_uniformity(test)
            expected |= {"rankme": metrics.effective_rank(features["train_z"]), "rankme_images": 40}
        assert measured[name]["scalars"] == pytest.approx(expected)
        assert ("similarity_density" in measured[name]) == (name == "z")
        assert ("mini_batch_loss" in measured[name]) == (name == "z")
    views = features["test_view1_z"], features["test_view2_z"]
    assert measured["z"]["mini_batch_loss"] == mini_batch_losses(*views, LOSS)


def test_a_loss_that_is_not_finite_costs_no_other_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = make_features()
    whole = analysed(features, tmp_path)["z"]
    monkeypatch.setattr("dhel_kcl.evaluation.mini_batch_losses.build_loss", lambda _: lambda *_: torch.tensor(math.nan))
    measured = analysed(features, tmp_path)["z"]
    assert measured == whole | {"mini_batch_loss": {"x": [], "value": [], "standard_error": [], "growth": None}}
    assert "features.safetensors: mini_batch_loss not measured: the loss" in " ".join(capsys.readouterr().err.split())


def test_a_diverged_run_has_no_measurements(tmp_path: Path) -> None:
    assert analysed({}, tmp_path) == {}


def test_rankme_is_measured_on_raw_rows_of_25600_images_drawn_from_all_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = make_features()
    labels = np.repeat([0, 1], 20_000)
    z = random.standard_normal((40_000, 3)) * np.where(labels, 100.0, 1.0)[:, None]
    features |= {"train_label": torch.from_numpy(labels), "train_h": torch.ones(40_000, 4)}
    features["train_z"] = torch.from_numpy(z + np.array([1000, 0, 0])).float()
    scalars = analysed(features, tmp_path)["z"]["scalars"]
    assert scalars["rankme_images"] == 25_600
    assert scalars["rankme"] == pytest.approx(metrics.effective_rank(features["train_z"]), rel=0.01)
    first = metrics.effective_rank(features["train_z"][:25_600])
    assert abs(first / scalars["rankme"] - 1) > 0.05, "the beton is sorted by class"


def test_embeddings_that_are_all_equal_have_no_spread(tmp_path: Path) -> None:
    features = {
        name: torch.full_like(tensor, 0.3) if name.endswith(("_h", "_z")) else tensor
        for name, tensor in make_features().items()
    }
    for scalars in (content["scalars"] for content in analysed(features, tmp_path).values()):
        assert scalars["effective_rank"] == pytest.approx(1)
        assert (scalars["rank"], scalars["centred_effective_rank"], scalars["participation_ratio"]) == (0, 0, 0)


def test_the_reason_of_features_that_are_not_finite_is_passed_on(tmp_path: Path) -> None:
    features = {name: tensor for name, tensor in make_features().items() if not name.endswith("_z")}
    measured = analysed(features, tmp_path, {"z": "the encoder's outputs hold NaN"})
    assert measured["z"] == {"not_measured": "the encoder's outputs hold NaN"}
    assert measured["h"]["scalars"]["embedding_dim"] == 4
