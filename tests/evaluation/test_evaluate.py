"""Linear evaluation: what it reports, and that it cannot touch the encoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import make_features
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.classifier import LinearClassifier, load_classifier, save_classifier
from dhel_kcl.evaluation.evaluate import evaluate, linear_probe
from dhel_kcl.evaluation.feature_cache import save_features
from dhel_kcl.evaluation.hits import unpack_hits
from dhel_kcl.experiment.config import EvaluationConfig
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.metrics import knn_accuracy
from dhel_kcl.results.measurements import Evaluation

CONFIG = EvaluationConfig(regularisation_c=[0.001, 0.1, 10.0])


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


def test_real_images_are_classified_as_well_as_logistic_regression_is_known_to(digits: tuple[np.ndarray, ...]) -> None:
    accuracies, *_ = linear_probe(*digits, CONFIG, seed=0)
    assert 0.90 < accuracies["linear_top1"] < 0.97
    assert accuracies["linear_top1"] < accuracies["linear_top5"] <= 1
    assert accuracies["regularisation_c"] in CONFIG.regularisation_c


def test_the_test_labels_do_not_influence_the_chosen_regularisation(digits: tuple[np.ndarray, ...]) -> None:
    train, train_labels, test, test_labels = digits
    honest, *_ = linear_probe(train, train_labels, test, test_labels, CONFIG, seed=0)
    shuffled, *_ = linear_probe(train, train_labels, test, np.roll(test_labels, 1), CONFIG, seed=0)
    assert shuffled["regularisation_c"] == honest["regularisation_c"]
    assert shuffled["validation_top1"] == honest["validation_top1"]
    assert shuffled["linear_top1"] < 0.3


def test_random_features_give_chance() -> None:
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(2000, 8)), generator.integers(0, 10, 2000)
    accuracies, *_ = linear_probe(features[:1000], labels[:1000], features[1000:], labels[1000:], CONFIG, seed=0)
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
    accuracies, classifier, hits = linear_probe(train, train_labels, test, test_labels, CONFIG, seed=0)
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    assert isinstance(loaded, LinearClassifier)
    predicted = loaded.predict(test)
    scaler = StandardScaler().fit(train)
    regression = LogisticRegression(C=accuracies["regularisation_c"], max_iter=CONFIG.max_iterations)
    regression.fit(scaler.transform(train), train_labels)
    np.testing.assert_array_equal(predicted, regression.predict(scaler.transform(test)))
    assert set(predicted) == set(classes)
    assert np.mean(predicted == test_labels) == accuracies["linear_top1"]
    np.testing.assert_array_equal(hits, predicted == test_labels)


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
    with pytest.raises(ValueError, match=r"class 77 has one training image, which cannot be split"):
        linear_probe(train, labels, test, test_labels, CONFIG, seed=0)


@pytest.mark.parametrize("fraction", [0.005, 0.995])
def test_a_validation_split_with_fewer_images_than_classes_names_the_key(
    digits: tuple[np.ndarray, ...], fraction: float
) -> None:
    config = CONFIG.model_copy(update={"validation_fraction": fraction})
    with pytest.raises(
        InputError, match=r"evaluation\.validation_fraction: 0\.\d+ of 1000 training images cannot be split"
    ):
        linear_probe(*digits, config, seed=0)


@pytest.mark.parametrize(("known", "in_top5"), [(3, 3), (5, 5), (8, None)])
def test_images_of_classes_without_training_images_are_errors_also_in_the_first_five(
    digits: tuple[np.ndarray, ...], known: int, in_top5: int | None
) -> None:
    train, train_labels, test, test_labels = digits
    kept = train_labels < known
    accuracies, *_ = linear_probe(train[kept], train_labels[kept], test, test_labels, CONFIG, seed=0)
    share = float(np.mean(test_labels < known))
    assert accuracies["linear_top1"] <= accuracies["linear_top5"] <= share
    if in_top5 is not None:
        assert accuracies["linear_top5"] == pytest.approx(share)


def measured(folder: Path, features: dict[str, torch.Tensor], not_measured: dict[str, str] | None = None) -> Any:
    """What is written of some features, and what the classifier's file holds."""
    save_features(features, folder / "features.safetensors", not_measured)
    outputs = folder / "evaluation.json", folder / "classifier.safetensors"
    evaluate(folder / "features.safetensors", CONFIG, 0, 1, *outputs)
    written = json.loads(outputs[0].read_text(encoding="utf-8"))
    read = dict(Evaluation.model_validate(written).values())
    assert read.keys() == written.keys() - {"test_hits", "knn_top1"}
    return written, load_classifier(outputs[1])


@pytest.mark.parametrize(
    ("split", "label", "said"),
    [
        ("train", 4, "h: all labelled training images are of one class"),
        ("train", -1, "h: no training image has a label"),
        ("test", -1, "h: no test image has a label"),
    ],
)
def test_what_needs_labels_is_recorded_as_not_measured_without_them(
    tmp_path: Path, split: str, label: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features = make_features()
    features[f"{split}_label"][:] = label
    assert measured(tmp_path, features) == ({"not_measured": said}, said)
    assert f"not measured: {said}" in " ".join(capsys.readouterr().err.split())


def test_the_reason_of_features_that_are_not_finite_is_passed_on(tmp_path: Path) -> None:
    features = {name: tensor for name, tensor in make_features().items() if not name.endswith("_h")}
    said = "h: the encoder's outputs hold NaN"
    assert measured(tmp_path, features, {"h": "the encoder's outputs hold NaN"}) == ({"not_measured": said}, said)


def test_a_row_without_direction_costs_the_nearest_neighbours_only(tmp_path: Path) -> None:
    features = make_features()
    features["test_h"][3] = 0
    written, classifier = measured(tmp_path, features)
    assert written["linear_top1"] > 0.9
    assert "knn_top1" not in written
    assert written["not_measured"].startswith("knn_top1: row 3 of the embeddings is zero")
    assert isinstance(classifier, LinearClassifier)


def test_a_class_with_one_training_image_costs_the_linear_accuracy_only(tmp_path: Path) -> None:
    features = make_features()
    features["train_label"][0] = 7
    written, said = measured(tmp_path, features)
    assert written.keys() == {"knn_top1", "test_images", "not_measured"}
    assert said == "linear_top1: class 7 has one training image, which cannot be split"


def test_unlabelled_images_take_no_part(tmp_path: Path) -> None:
    features = make_features()
    sound, _ = measured(tmp_path, features)
    more = {name: torch.cat([tensor, torch.full_like(tensor[:5], -1)]) for name, tensor in features.items()}
    assert measured(tmp_path, more)[0] == sound
    assert sound["test_images"] == 20


@pytest.mark.parametrize(
    ("asked", "used"), [([3], ["3"]), ([20, 200], ["20", "40"]), ([200, 500], ["40"]), ([7, 3], ["3", "7"])]
)
def test_the_neighbours_that_voted_are_recorded(
    tmp_path: Path, asked: list[int], used: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    features = make_features()
    save_features(make_features(), tmp_path / "features.safetensors")
    outputs = tmp_path / "evaluation.json", tmp_path / "classifier.safetensors"
    evaluate(tmp_path / "features.safetensors", CONFIG.model_copy(update={"neighbours": asked}), 0, 1, *outputs)
    accuracies = json.loads(outputs[0].read_text(encoding="utf-8"))["knn_top1"]
    assert list(accuracies) == used
    labelled = (features[name] for name in ("train_h", "train_label", "test_h", "test_label"))
    assert accuracies[used[-1]] == knn_accuracy(*labelled, k=int(used[-1]))
    assert ("only 40 training images can vote" in " ".join(capsys.readouterr().err.split())) == (max(asked) > 40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": np.full((3, 2), np.nan)}, "weight holds NaN or infinity"),
        ({"weight": np.zeros((3, 2), np.float32)}, "weight is float32 instead of float64"),
        ({"bias": np.zeros(2)}, r"weight has shape \(3, 2\) instead of \(2, 2\)"),
        ({"classes": np.arange(3.0)}, "classes is float64 instead of int64"),
        ({"classes": np.array([1, 1, 2])}, "does not name two or more classes in their order"),
        ({"classes": np.array([-1, 0, 2])}, "does not name two or more classes in their order"),
    ],
)
def test_a_classifier_of_the_wrong_content_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    arrays = {"weight": np.zeros((3, 2)), "bias": np.zeros(3), "classes": np.arange(3), **change}
    save_classifier(LinearClassifier(**arrays), tmp_path / "classifier.safetensors")
    with pytest.raises(InputError, match=rf"classifier\.safetensors: holds no classifier: it {said}; delete it and"):
        load_classifier(tmp_path / "classifier.safetensors")


def test_evaluation_reads_backbone_features(digits: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    train, train_labels, test, test_labels = digits
    h = {"train": train, "test": test, "test_view1": test, "test_view2": test}
    features = {
        **{f"{place}_h": torch.tensor(values, dtype=torch.float32) for place, values in h.items()},
        **{f"{place}_z": torch.zeros(len(values), 4) for place, values in h.items()},
        "train_label": torch.tensor(train_labels),
        "test_label": torch.tensor(test_labels),
    }
    save_features(features, tmp_path / "features.safetensors")
    outputs = tmp_path / "evaluation.json", tmp_path / "classifier.safetensors"
    evaluate(tmp_path / "features.safetensors", CONFIG, 0, 1, *outputs)
    accuracies = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert accuracies["linear_top1"] > 0.9
    assert accuracies["knn_top1"].keys() == {"20", "200"}
    assert accuracies["knn_top1"]["20"] > 0.9
    loaded = load_classifier(outputs[1])
    assert isinstance(loaded, LinearClassifier)
    predicted = loaded.predict(test)
    assert accuracies["linear_top1"] == pytest.approx(np.mean(predicted == test_labels), abs=1 / len(test))
    assert accuracies["test_images"] == len(test)
    hits = unpack_hits(accuracies["test_hits"], len(test))
    assert hits.mean() == accuracies["linear_top1"]
    assert np.mean(hits != (predicted == test_labels)) <= 1 / len(test)


def test_evaluating_leaves_the_bytes_of_the_encoder_as_pretraining_wrote_them(
    copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workspace import run as run_program

    from dhel_kcl.jobs.manifest import load_manifest

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


@pytest.mark.parametrize("total", [10, 20, 25, 37])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_what_the_beton_s_job_accepts_can_be_split(fraction: float, classes: int, total: int) -> None:
    """The job that writes the training images asks the same question, before anything is trained."""
    labels = np.arange(total) % classes
    train = np.random.default_rng(0).normal(size=(total, 4))
    config = EvaluationConfig(validation_fraction=fraction, regularisation_c=[1.0])
    validating = config.validation_images(total)
    if min(validating, total - validating) < classes:
        with pytest.raises(InputError, match="validation_fraction"):
            linear_probe(train, labels, train, labels, config, seed=0)
    else:
        measured, *_ = linear_probe(train, labels, train, labels, config, seed=0)
        assert 0 <= measured["linear_top1"] <= 1
