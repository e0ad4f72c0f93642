"""Representation analysis gives the same bytes wherever and however it is started."""

import os
from pathlib import Path

import pytest
import torch
from workspace import run as run_program

from dhel_kcl.config import AnalysisConfig
from dhel_kcl.errors import InputError
from dhel_kcl.feature_cache import load_features, save_features
from dhel_kcl.layout import Layout
from dhel_kcl.representation import analyse

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


def test_collapsed_features_are_named_instead_of_measured(layout: Layout, tmp_path: Path) -> None:
    features = load_features(layout.features(RUN))
    features["test_h"] = torch.zeros_like(features["test_h"])
    save_features(features, tmp_path / "features.safetensors")
    with pytest.raises(InputError, match=r"features\.safetensors: the representation cannot be measured"):
        analyse(tmp_path / "features.safetensors", AnalysisConfig(), 1, tmp_path / "representation.json")
    assert not (tmp_path / "representation.json").exists()
