"""Linear evaluation on augmented images: frozen encoder, and the optimisation that it is said to be."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import write_outcome
from torch import nn
from torch.nn import functional

from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.data.sources import open_source
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.augmented_probe import augmented_linear_probe, evaluate
from dhel_kcl.experiment.config import AugmentationConfig, ComputeConfig, DataConfig, EncoderConfig, ProbeConfig
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.seeding import derive_seed
from dhel_kcl.training.encoder import Encoder, build_encoder, save_encoder

SHIFT = AugmentationConfig(shift=1)
CONFIG = ProbeConfig(augmentation=SHIFT, epochs=3, batch_size=256, learning_rate=0.2, weight_decay=1e-4)
RUN = "digits-dhel-temperature0.3-bs128-seed0"


@pytest.fixture
def encoder() -> Encoder:
    return build_encoder(EncoderConfig(width=0.125, embedding_dim=16), seed=0)


def probe(encoder: Encoder, betons: dict[str, Path], config: ProbeConfig = CONFIG, **options: int) -> dict[str, float]:
    return augmented_linear_probe(
        encoder, betons["train"], betons["test"], config, image_size=8, **{"seed": 0, **options}
    )


def test_it_learns_real_digits_from_an_untrained_encoder(encoder: Encoder, digits_betons: dict[str, Path]) -> None:
    config = CONFIG.model_copy(update={"epochs": 15})
    accuracies = probe(encoder, digits_betons, config)
    chance = 0.1
    assert 3 * chance < accuracies["augmented_top1"] < accuracies["augmented_top5"] <= 1


def test_it_is_sgd_from_zero_with_a_rate_that_falls_to_zero(encoder: Encoder, digits_betons: dict[str, Path]) -> None:
    """Against the same written out: one parameter, its velocity, one line for each."""
    weight, velocity = torch.zeros(10, 65), torch.zeros(10, 65)
    views = OneViewLoader(
        digits_betons["train"],
        batch_size=256,
        image_size=8,
        augmentation=SHIFT,
        seed=derive_seed(0, "augmented_probe"),
        shuffle=True,
    )
    frozen = encoder.eval().requires_grad_(False).backbone
    step, steps = 0, 3 * 6
    for _ in range(3):
        for images, labels, _ in views:
            h = functional.pad(frozen(images), (0, 1), value=1.0)
            error = (h @ weight.T).softmax(dim=1) - functional.one_hot(labels, 10)
            velocity = 0.9 * velocity + error.T @ h / len(h) + 1e-4 * weight
            weight = weight - 0.2 * (1 - step / steps) * velocity
            step += 1
    assert step == steps
    test, labels, _ = next(iter(OneViewLoader(digits_betons["test"], batch_size=360, image_size=8)))
    scores = functional.pad(frozen(test), (0, 1), value=1.0) @ weight.T
    expected = float((scores.argmax(dim=1) == labels).double().mean())
    assert probe(encoder, digits_betons)["augmented_top1"] == pytest.approx(expected, abs=1 / 360)


def test_the_encoder_is_frozen_in_evaluation_mode(encoder: Encoder, digits_betons: dict[str, Path]) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    probe(encoder.train(), digits_betons)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_same_seed_gives_the_same_numbers_for_any_number_of_workers(
    encoder: Encoder, digits_betons: dict[str, Path]
) -> None:
    assert probe(encoder, digits_betons, num_workers=2) == probe(encoder, digits_betons)


def test_a_probe_that_diverges_says_so(encoder: Encoder, digits_betons: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"diverged; a lower probe\.learning_rate may help"):
        probe(encoder, digits_betons, CONFIG.model_copy(update={"learning_rate": 1e30, "weight_decay": 1e10}))


def test_unlabelled_images_take_no_part(
    encoder: Encoder, digits_betons: dict[str, Path], relabelled: Callable[..., Path]
) -> None:
    hidden = relabelled("test", lambda labels: np.where(np.arange(len(labels)) < 100, labels, -1))
    config = CONFIG.model_copy(update={"epochs": 1})
    accuracies = probe(encoder, {"train": digits_betons["train"], "test": hidden}, config)
    assert accuracies["augmented_top5"] * 100 == pytest.approx(round(accuracies["augmented_top5"] * 100))
    some = relabelled("train", lambda labels: np.where(labels % 2, labels, -1))
    assert probe(encoder, {"train": some, "test": digits_betons["test"]}, config)["augmented_top5"] <= 0.55


def test_classes_without_training_images_are_errors_also_in_the_first_five(
    encoder: Encoder, digits_betons: dict[str, Path], relabelled: Callable[..., Path]
) -> None:
    three = relabelled("train", lambda labels: labels % 3)
    truth = relabelled("test", lambda labels: labels)
    accuracies = probe(encoder, {"train": three, "test": truth}, CONFIG.model_copy(update={"epochs": 1}))
    labels = open_source(DataConfig(kind="digits"), "test").labels
    assert accuracies["augmented_top5"] == pytest.approx(float((labels < 3).mean()))


@pytest.mark.parametrize(
    ("split", "label", "said"),
    [
        ("train", 4, "all labelled training images are of one class"),
        ("train", -1, "no training image has a label"),
        ("test", -1, "no test image has a label"),
    ],
)
def test_what_needs_labels_is_recorded_as_not_measured_without_them(
    tiny_config: ExperimentConfig,
    files: tuple[Path, Path],
    digits_betons: dict[str, Path],
    relabelled: Callable[..., Path],
    tmp_path: Path,
    split: str,
    label: int,
    said: str,
) -> None:
    run = tiny_config.run(RUN)
    save_encoder(build_encoder(run.dataset.encoder, seed=0), files[0])
    write_outcome(files[1], "finished")
    betons = {**digits_betons, split: relabelled(split, lambda labels: np.full_like(labels, label))}
    evaluate(run, ComputeConfig(device="cpu"), *files, betons, tmp_path / "accuracies.json")
    assert json.loads((tmp_path / "accuracies.json").read_text(encoding="utf-8")) == {"not_measured": said}


@pytest.fixture
def files(encoder: Encoder, tmp_path: Path) -> tuple[Path, Path]:
    nn.init.zeros_(encoder.projector[0].weight)  # the projector takes no part
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors", write_outcome(tmp_path / "outcome.json", "diverged")


def test_a_diverged_run_has_no_accuracy(
    tiny_config: ExperimentConfig, files: tuple[Path, Path], digits_betons: dict[str, Path], tmp_path: Path
) -> None:
    run = tiny_config.run(RUN)
    assert run.dataset.probe is not None
    evaluate(run, ComputeConfig(device="cpu"), *files, digits_betons, tmp_path / "accuracies.json")
    assert json.loads((tmp_path / "accuracies.json").read_text(encoding="utf-8")) == {}


def test_a_data_set_without_the_protocol_is_named(
    tiny_config: ExperimentConfig, files: tuple[Path, Path], digits_betons: dict[str, Path], tmp_path: Path
) -> None:
    run = tiny_config.run(RUN)
    run = run.model_copy(update={"dataset": run.dataset.model_copy(update={"probe": None})})
    with pytest.raises(InputError, match=r"datasets\.digits\.probe: missing"):
        evaluate(run, ComputeConfig(device="cpu"), *files, digits_betons, tmp_path / "accuracies.json")
