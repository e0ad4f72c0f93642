"""Linear evaluation: what it reports, and that it cannot touch the encoder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dhel_kcl.artifacts import sha256_file
from dhel_kcl.config import EvaluationConfig
from dhel_kcl.errors import InputError
from dhel_kcl.feature_cache import save_features
from dhel_kcl.layout import Layout
from dhel_kcl.linear_probe import evaluate, linear_probe, load_classifier, save_classifier

CONFIG = EvaluationConfig(regularisation_c=[0.001, 0.1, 10.0])


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def test_real_images_are_classified_as_well_as_logistic_regression_is_known_to(digits: tuple[np.ndarray, ...]) -> None:
    accuracies, _ = linear_probe(*digits, CONFIG, seed=0)
    assert 0.90 < accuracies["linear_top1"] < 0.97
    assert accuracies["linear_top1"] < accuracies["linear_top5"] <= 1
    assert accuracies["regularisation_c"] in CONFIG.regularisation_c


def test_the_test_labels_do_not_influence_the_chosen_regularisation(digits: tuple[np.ndarray, ...]) -> None:
    train, train_labels, test, test_labels = digits
    honest, _ = linear_probe(train, train_labels, test, test_labels, CONFIG, seed=0)
    shuffled, _ = linear_probe(train, train_labels, test, np.roll(test_labels, 1), CONFIG, seed=0)
    assert shuffled["regularisation_c"] == honest["regularisation_c"]
    assert shuffled["validation_top1"] == honest["validation_top1"]
    assert shuffled["linear_top1"] < 0.3


def test_random_features_give_chance() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(2000, 8)), generator.integers(0, 10, 2000)
    accuracies, _ = linear_probe(features[:1000], labels[:1000], features[1000:], labels[1000:], CONFIG, seed=0)
    assert accuracies["linear_top1"] == pytest.approx(0.1, abs=0.05)
    assert accuracies["linear_top5"] == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_gives_the_same_numbers(digits: tuple[np.ndarray, ...]) -> None:
    assert linear_probe(*digits, CONFIG, seed=1)[0] == linear_probe(*digits, CONFIG, seed=1)[0]


@pytest.mark.parametrize("classes", [[3, 7], list(range(10))], ids=["two classes", "ten classes"])
def test_the_classifier_that_is_kept_predicts_what_scikit_learn_does_from_standardised_features(
    digits: tuple[np.ndarray, ...], classes: list[int], tmp_path: Path
) -> None:
    train, train_labels, test, test_labels = digits
    train, train_labels = (part[np.isin(train_labels, classes)] for part in (train, train_labels))
    test, test_labels = (part[np.isin(test_labels, classes)] for part in (test, test_labels))
    accuracies, classifier = linear_probe(train, train_labels, test, test_labels, CONFIG, seed=0)
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    predicted = load_classifier(tmp_path / "classifier.safetensors").predict(test)
    scaler = StandardScaler().fit(train)
    regression = LogisticRegression(C=accuracies["regularisation_c"], max_iter=CONFIG.max_iterations)
    regression.fit(scaler.transform(train), train_labels)
    np.testing.assert_array_equal(predicted, regression.predict(scaler.transform(test)))
    assert set(predicted) == set(classes)
    assert np.mean(predicted == test_labels) == accuracies["linear_top1"]


def test_equal_classifiers_are_written_as_equal_bytes(digits: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_classifier(linear_probe(*digits, CONFIG, seed=0)[1], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "no classifier; evaluate the run first"),
        (lambda path: path.write_bytes(b"\x08"), "damaged"),
        (lambda path: save_classifier(None, path), "holds no classifier"),
        (lambda path: save_features({"weight": torch.zeros(2, 3)}, path), "holds no classifier"),
    ],
    ids=["missing", "damaged", "of a diverged run", "without its bias"],
)
def test_a_file_without_a_classifier_is_named(tmp_path: Path, prepare: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "classifier.safetensors"
    prepare(path)
    with pytest.raises(InputError, match=rf"classifier\.safetensors: {said}"):
        load_classifier(path)


def test_a_class_too_small_to_be_split_is_refused(digits: tuple[np.ndarray, ...]) -> None:
    train, train_labels, test, test_labels = digits
    labels = train_labels.copy()
    labels[0] = 77
    with pytest.raises(InputError, match=r"evaluation.validation_fraction: the training set cannot be split by class"):
        linear_probe(train, labels, test, test_labels, CONFIG, seed=0)


def test_evaluation_reads_backbone_features(digits: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    train, train_labels, test, test_labels = digits
    features = {
        "train_h": torch.tensor(train, dtype=torch.float32),
        "train_z": torch.zeros(len(train), 4),
        "train_label": torch.tensor(train_labels),
        "test_h": torch.tensor(test, dtype=torch.float32),
        "test_z": torch.zeros(len(test), 4),
        "test_label": torch.tensor(test_labels),
    }
    save_features(features, tmp_path / "features.safetensors")
    outputs = tmp_path / "evaluation.json", tmp_path / "classifier.safetensors"
    evaluate(tmp_path / "features.safetensors", CONFIG, 0, 1, *outputs)
    accuracies = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert accuracies["linear_top1"] > 0.9
    assert accuracies["knn_top1"] > 0.9
    predicted = load_classifier(outputs[1]).predict(test)
    assert accuracies["linear_top1"] == pytest.approx(np.mean(predicted == test_labels), abs=1 / len(test))
    assert accuracies["test_images"] == len(test)


def test_evaluating_leaves_the_bytes_of_the_encoder_as_pretraining_wrote_them(
    copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workspace import run as run_program

    from dhel_kcl.provenance import load_manifest

    layout, run = Layout(Path("results/tiny")), "digits-dhel-temperature0.3-bs256-seed0"
    monkeypatch.chdir(copy_of_finished)
    for stage in ("features", "evaluate", "analyse"):
        outcome = run_program("dhel-kcl", stage, str(layout.root), run, cwd=copy_of_finished)
        assert outcome.returncode == 0, outcome.stderr
    written = load_manifest(layout.run_manifest("pretrain", run)).outputs["encoder.safetensors"].sha256
    assert sha256_file(layout.encoder(run)) == written


def test_a_classifier_that_does_not_converge_says_so_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    features = np.random.default_rng(0).normal(size=(200, 8))
    labels = np.arange(200) % 4
    config = EvaluationConfig(regularisation_c=[10.0], max_iterations=2)
    linear_probe(features, labels, features, labels, config, seed=0)
    line = "C = 10: stopped at evaluation.max_iterations = 2, before converging"
    assert capfd.readouterr().err.splitlines() == [line, line]
