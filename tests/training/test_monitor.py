"""Watching the encoder measures it and changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dhel_kcl import metrics
from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.data.sources import open_source
from dhel_kcl.experiment.config import DataConfig, EncoderConfig, MonitorConfig
from dhel_kcl.training.encoder import Encoder, build_encoder
from dhel_kcl.training.monitor import Monitor

CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> Encoder:
    return build_encoder(EncoderConfig(width=0.0625, embedding_dim=16), seed=0)


def monitor(beton: Path, **settings: int) -> Monitor:
    return Monitor(MonitorConfig(**settings), beton, image_size=8, num_workers=1, device=CPU)


def test_it_measures_every_so_many_epochs_or_never(digits_beton: Path) -> None:
    assert [monitor(digits_beton, every_epochs=3).is_due(epoch) for epoch in range(1, 7)] == [False, False, True] * 2
    assert not monitor(digits_beton).is_due(1)


def test_it_leaves_the_encoder_as_it_was(digits_beton: Path, encoder: Encoder) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.train()
    monitor(digits_beton, images=300).measure(encoder)
    assert encoder.training
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_it_gives_the_metrics_of_the_same_sample_each_time(digits_beton: Path, encoder: Encoder) -> None:
    watching = monitor(digits_beton, images=10_000, neighbours=5)
    measured = watching.measure(encoder)
    assert watching.measure(encoder) == measured
    images, labels, _ = next(iter(OneViewLoader(digits_beton, batch_size=1437, image_size=8, shuffle=True)))
    with torch.no_grad():
        h, z = encoder.eval()(images)
    assert measured["effective_rank_h"] == pytest.approx(metrics.effective_rank(normalize(h)), rel=1e-4)
    assert measured["effective_rank_z"] == pytest.approx(metrics.effective_rank(normalize(z)), rel=1e-4)
    bank = 1437 - 718
    expected = metrics.knn_accuracy(h[:bank], labels[:bank], h[bank:], labels[bank:], k=5)
    assert measured["knn_top1"] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("images", "queries"), [(5000, 2000), (4000, 2000), (3001, 1500), (4, 2)])
def test_two_thousand_images_are_classified_or_half_of_a_smaller_sample(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, queries: int
) -> None:
    source = open_source(DataConfig(kind="digits"), "train")
    many = source.subset(np.resize(np.arange(1437), 5000))
    write_beton(many, tmp_path / "many.beton")
    asked = []
    monkeypatch.setattr(
        "dhel_kcl.training.monitor.knn_accuracy", lambda *labelled, k: asked.append([*map(len, labelled), k]) or 0.5
    )
    watching = monitor(tmp_path / "many.beton", images=max(20, images))
    watching.config = watching.config.model_copy(update={"images": images})
    watching.measure(encoder)
    bank = images - queries
    assert asked == [[bank, bank, queries, queries, min(20, bank)]]


def test_unlabelled_images_have_no_nearest_neighbour_accuracy(encoder: Encoder, tmp_path: Path) -> None:
    source = open_source(DataConfig(kind="digits"), "test")
    unlabelled = replace(source, labels=np.full_like(source.labels, -1))
    write_beton(unlabelled, tmp_path / "unlabelled.beton")
    measured = monitor(tmp_path / "unlabelled.beton", images=300).measure(encoder)
    assert measured.keys() == {"effective_rank_h", "effective_rank_z"}


@pytest.mark.parametrize(
    ("change", "has_accuracy"),
    [
        (lambda labels: np.where(labels < 5, labels, -1), True),
        (lambda labels: np.where(labels == 3, labels, -1), False),
        (lambda labels: np.zeros_like(labels), False),
    ],
    ids=["some have no label", "one class has", "one class"],
)
def test_its_accuracy_is_of_the_labelled_images_and_needs_two_classes(
    encoder: Encoder, relabelled: Callable[..., Path], change: Callable[[np.ndarray], np.ndarray], has_accuracy: bool
) -> None:
    measured = monitor(relabelled("test", change), images=300).measure(encoder)
    assert {"effective_rank_h", "effective_rank_z"} <= measured.keys()
    assert ("knn_top1" in measured) == has_accuracy


def test_one_embedding_that_collapses_does_not_cost_the_value_of_the_other(
    digits_beton: Path, encoder: Encoder
) -> None:
    sound = monitor(digits_beton, images=300).measure(encoder)
    with torch.no_grad():
        encoder.projector[4].weight.zero_()
    del sound["effective_rank_z"]
    assert monitor(digits_beton, images=300).measure(encoder) == sound


def test_a_collapse_to_zero_gives_no_values_instead_of_an_error(digits_beton: Path, encoder: Encoder) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert monitor(digits_beton, images=300).measure(encoder) == {}
