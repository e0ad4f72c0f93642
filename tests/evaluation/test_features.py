"""Features of the frozen encoder."""

from pathlib import Path

import pytest
import torch
from run_files import make_features, write_outcome

from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.feature_cache import Features, load_features, save_features
from dhel_kcl.evaluation.features import extract_features
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.training.encoder import build_encoder, load_encoder, save_encoder

RUN = "digits-dhel-temperature0.3-bs256-seed0"


def test_every_image_has_features_of_both_spaces_and_two_views(layout: Layout) -> None:
    features = load_features(layout.features(RUN)).tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in features.items()}
    views = {f"test_view{view}_{space}": (360, dim) for view in (1, 2) for space, dim in (("h", 32), ("z", 16))}
    assert shapes == {
        "train_h": (1437, 32),
        "train_z": (1437, 16),
        "train_label": (1437,),
        "test_h": (360, 32),
        "test_z": (360, 16),
        "test_label": (360,),
        **views,
    }
    assert not torch.equal(features["test_view1_z"], features["test_view2_z"])


def test_they_are_what_the_encoder_gives_in_evaluation_mode(layout: Layout, tiny_config: ExperimentConfig) -> None:
    features = load_features(layout.features(RUN)).tensors
    encoder = load_encoder(tiny_config.run(RUN).dataset.encoder, layout.encoder(RUN)).eval()
    images, labels, _ = next(iter(OneViewLoader(layout.beton("digits", "test"), batch_size=10, image_size=8)))
    with torch.inference_mode():
        h, z = encoder(images)
    torch.testing.assert_close(features["test_h"][:10], h)
    torch.testing.assert_close(features["test_z"][:10], z)
    assert torch.equal(features["test_label"][:10], labels)


def test_extracting_again_gives_the_same_bytes(layout: Layout, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
    betons = {split: layout.beton("digits", split) for split in ("train", "test")}
    compute = ComputeConfig(device="cpu", threads=1, loader_workers=2)
    run, files = tiny_config.run(RUN), (layout.encoder(RUN), layout.outcome(RUN))
    extract_features(run, compute, *files, betons, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == layout.features(RUN).read_bytes()


def test_a_diverged_run_has_no_features(layout: Layout, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
    files = layout.encoder(RUN), write_outcome(tmp_path / "outcome.json", "diverged")
    extract_features(tiny_config.run(RUN), ComputeConfig(device="cpu"), *files, {}, tmp_path / "none.safetensors")
    assert load_features(tmp_path / "none.safetensors") == Features({})


def test_missing_and_damaged_features_are_named(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    with pytest.raises(InputError, match=r"features.safetensors: no features; extract them first"):
        load_features(path)
    path.write_bytes(layout.features(RUN).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"features.safetensors: damaged"):
        load_features(path)


def test_outputs_that_are_not_finite_leave_the_reason_in_their_place(
    tiny_config: ExperimentConfig,
    digits_betons: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tiny_config.run(RUN)
    encoder = build_encoder(run.dataset.encoder, seed=0)
    with torch.no_grad():  # finite weights, infinite projections
        encoder.projector[4].weight.fill_(3e38)
        encoder.projector[4].running_var.fill_(1e-38)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    files = tmp_path / "encoder.safetensors", write_outcome(tmp_path / "outcome.json", "finished")
    extract_features(run, ComputeConfig(device="cpu"), *files, digits_betons, tmp_path / "features.safetensors")
    features = load_features(tmp_path / "features.safetensors")
    assert "train_h" in features.tensors
    assert not [name for name in features.tensors if name.endswith("_z")]
    assert features.not_measured.keys() == {"z"}
    assert "hold NaN or infinity" in features.not_measured["z"]
    assert f"{RUN}: z not measured: the encoder's outputs" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_view2_z": None}, "lacks test_view2_z"),
        ({"weight": torch.zeros(2)}, "holds weight too"),
        ({"train_h": torch.zeros(40, 4, dtype=torch.float64)}, "train_h is float64 instead of float32"),
        ({"test_label": torch.zeros(20)}, "test_label is float32 instead of int64"),
        ({"test_label": torch.zeros(19, dtype=torch.int64)}, r"test_h has shape \(20, 4\) instead of \(19, 4\)"),
        ({"test_view1_h": torch.zeros(20, 5)}, r"test_view1_h has shape \(20, 5\) instead of \(20, 4\)"),
        ({"train_label": torch.full((40,), -2)}, "has the label -2"),
        ({"test_z": torch.full((20, 3), torch.nan)}, "test_z holds NaN or infinity"),
    ],
)
def test_other_tensors_than_features_are_named(
    tmp_path: Path, change: dict[str, torch.Tensor | None], said: str
) -> None:
    path = tmp_path / "features.safetensors"
    tensors = {name: tensor for name, tensor in {**make_features(), **change}.items() if tensor is not None}
    save_features(tensors, path)
    with pytest.raises(
        InputError, match=rf"features\.safetensors: not the features of a run: it {said}; delete it and"
    ):
        load_features(path)


def test_features_that_are_cut_short_after_they_were_read_do_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    save_features(make_features(), path)
    tensors = load_features(path).tensors
    path.write_bytes(b"")
    assert torch.equal(tensors["train_h"], make_features()["train_h"])
