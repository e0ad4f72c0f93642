"""Representation analysis gives the same bytes wherever and however it is started."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import make_features
from workspace import run as run_program

from dhel_kcl.evaluation.analyse import analyse
from dhel_kcl.evaluation.feature_cache import save_features
from dhel_kcl.experiment.config import AnalysisConfig
from dhel_kcl.jobs.layout import Layout

RUN = "digits-dhel-temperature0.3-bs256-seed0"


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
    analyse(folder / "features.safetensors", AnalysisConfig(), 1, folder / "representation.json")
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


def test_the_reason_of_features_that_are_not_finite_is_passed_on(tmp_path: Path) -> None:
    features = {name: tensor for name, tensor in make_features().items() if not name.endswith("_z")}
    measured = analysed(features, tmp_path, {"z": "the encoder's outputs hold NaN"})
    assert measured["z"] == {"not_measured": "the encoder's outputs hold NaN"}
    assert measured["h"]["scalars"]["embedding_dim"] == 4
