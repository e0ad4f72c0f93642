"""Features of the frozen encoder."""

from pathlib import Path

import pytest
import torch

from dhel_kcl.config import ComputeConfig, ExperimentConfig
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.errors import InputError
from dhel_kcl.feature_cache import load_features
from dhel_kcl.features import extract_features
from dhel_kcl.layout import Layout
from dhel_kcl.models import load_encoder

RUN = "digits-dhel-temperature0.3-bs256-seed0"


def test_every_image_has_features_of_both_spaces_and_two_views(layout: Layout) -> None:
    features = load_features(layout.features(RUN))
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
    features = load_features(layout.features(RUN))
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
    (tmp_path / "outcome.json").write_text('{"status": "diverged"}', encoding="utf-8")
    files = layout.encoder(RUN), tmp_path / "outcome.json"
    extract_features(tiny_config.run(RUN), ComputeConfig(device="cpu"), *files, {}, tmp_path / "none.safetensors")
    assert load_features(tmp_path / "none.safetensors") == {}


def test_missing_and_damaged_features_are_named(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    with pytest.raises(InputError, match=r"features.safetensors: no features; extract them first"):
        load_features(path)
    path.write_bytes(layout.features(RUN).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"features.safetensors: damaged"):
        load_features(path)
