"""The linear probe on corrupted test images: the evaluation's classifier, frozen, on what the loader reads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import write_outcome
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dhel_kcl.data.corrupt import SEVERITIES, corrupt
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.classifier import LinearClassifier, save_classifier
from dhel_kcl.evaluation.corruptions import corrupted_accuracies, evaluate
from dhel_kcl.evaluation.evaluate import linear_probe
from dhel_kcl.experiment.config import ComputeConfig, EncoderConfig, EvaluationConfig
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.stages import STAGES, measurements, run_stages
from dhel_kcl.training.encoder import Encoder, build_encoder, save_encoder

RUN = "digits-dhel-temperature0.3-bs128-seed0"
CONFIG = EvaluationConfig(regularisation_c=[0.1, 1.0])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(EncoderConfig(width=0.0625, embedding_dim=16), seed=0).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features(encoder: Encoder, digits_betons: dict[str, Path]) -> dict[str, np.ndarray]:
    """Features and labels of both splits, in the order of `linear_probe`'s arguments."""
    arrays = {}
    for split, beton in digits_betons.items():
        views, labels, _ = zip(*OneViewLoader(beton, batch_size=256, image_size=8), strict=True)
        arrays[split] = torch.cat([encoder.backbone(view) for view in views]).numpy()
        arrays[f"{split}_label"] = torch.cat(labels).numpy()
    return arrays


@pytest.fixture(scope="module")
def probe(features: dict[str, np.ndarray]) -> tuple[dict[str, float], LinearClassifier]:
    arrays = (features[name] for name in ("train", "train_label", "test", "test_label"))
    measured, classifier, _ = linear_probe(*arrays, CONFIG, seed=0)
    return measured, classifier


def measure(encoder: Encoder, classifier: LinearClassifier, test: Path, **options: int) -> dict[str, list[float]]:
    return corrupted_accuracies(encoder, classifier, test, **{"image_size": 8, "seed": 0, **options})


@pytest.fixture(scope="module")
def accuracies(
    encoder: Encoder, probe: tuple[dict[str, float], LinearClassifier], digits_betons: dict[str, Path]
) -> dict[str, list[float]]:
    return measure(encoder, probe[1], digits_betons["test"])


def test_severity_0_is_the_clean_linear_accuracy(
    accuracies: dict[str, list[float]], probe: tuple[dict[str, float], LinearClassifier]
) -> None:
    assert set(accuracies) == set(SEVERITIES)
    for corruption, values in accuracies.items():
        assert len(values) == 6
        assert values[0] == pytest.approx(probe[0]["linear_top1"], abs=1e-12), corruption
        assert values[0] > 0.5


@pytest.mark.parametrize("corruption", SEVERITIES)
def test_each_accuracy_is_that_of_scikit_learns_classifier_on_the_corrupted_images(
    encoder: Encoder,
    features: dict[str, np.ndarray],
    probe: tuple[dict[str, float], LinearClassifier],
    accuracies: dict[str, list[float]],
    digits_betons: dict[str, Path],
    corruption: str,
) -> None:
    regression = LogisticRegression(C=probe[0]["regularisation_c"], max_iter=CONFIG.max_iterations)
    classifier = make_pipeline(StandardScaler(), regression).fit(features["train"], features["train_label"])
    views, labels, indices = next(iter(OneViewLoader(digits_betons["test"], batch_size=360, image_size=8)))
    images = np.rint(255 * views.permute(0, 2, 3, 1).numpy()).astype(np.uint8)
    for severity in range(1, 6):
        corrupted = corrupt(images, indices.numpy(), corruption, severity, seed=0) / np.float32(255)
        h = encoder.backbone(torch.from_numpy(corrupted).permute(0, 3, 1, 2)).numpy()
        expected = float(np.mean(classifier.predict(h) == labels.numpy()))
        assert accuracies[corruption][severity] == pytest.approx(expected, abs=1 / 360)


def test_corruption_costs_accuracy(accuracies: dict[str, list[float]]) -> None:
    assert min(values[5] for values in accuracies.values()) < accuracies["jpeg"][0] - 0.1


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"batch_size": 100}, {"batch_size": 7, "num_workers": 3}])
def test_neither_workers_nor_batches_change_an_accuracy(
    encoder: Encoder,
    probe: tuple[dict[str, float], LinearClassifier],
    accuracies: dict[str, list[float]],
    digits_betons: dict[str, Path],
    options: dict[str, int],
) -> None:
    assert measure(encoder, probe[1], digits_betons["test"], **options) == accuracies


def test_the_encoder_is_left_as_it_is(
    encoder: Encoder, probe: tuple[dict[str, float], LinearClassifier], digits_betons: dict[str, Path]
) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    measure(encoder.train(), probe[1], digits_betons["test"])
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.fixture
def files(
    encoder: Encoder, probe: tuple[dict[str, float], LinearClassifier], digits_betons: dict[str, Path], tmp_path: Path
) -> dict[str, Path]:
    names = {"encoder_path": "encoder.safetensors", "outcome": "outcome.json", "classifier_path": "c.safetensors"}
    paths = {key: tmp_path / name for key, name in names.items()}
    save_encoder(encoder, paths["encoder_path"])
    write_outcome(paths["outcome"], "finished")
    save_classifier(probe[1], paths["classifier_path"])
    return {**paths, "test": digits_betons["test"], "output": tmp_path / "corruptions.json"}


def run_stage(config: ExperimentConfig, files: dict[str, Path]) -> dict[str, list[float]]:
    evaluate(config.run(RUN), ComputeConfig(device="cpu"), **files)
    measured: dict[str, list[float]] = json.loads(files["output"].read_text(encoding="utf-8"))
    return measured


def test_the_stage_writes_every_accuracy(
    tiny_config: ExperimentConfig, files: dict[str, Path], accuracies: dict[str, list[float]]
) -> None:
    assert run_stage(tiny_config, files) == accuracies


def test_a_diverged_run_has_no_accuracy(tiny_config: ExperimentConfig, files: dict[str, Path]) -> None:
    write_outcome(files["outcome"], "diverged")
    save_classifier(None, files["classifier_path"])
    assert run_stage(tiny_config, files) == {}


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        (None, "holds no classifier: it lacks bias, classes, weight; delete it and evaluate the run again"),
        (LinearClassifier(np.zeros((10, 7)), np.zeros(10), np.arange(10)), "not of the features of"),
    ],
    ids=["none", "another width"],
)
def test_a_classifier_that_cannot_be_used_is_named(
    tiny_config: ExperimentConfig, files: dict[str, Path], classifier: LinearClassifier | None, said: str
) -> None:
    save_classifier(classifier, files["classifier_path"])
    with pytest.raises(InputError, match=rf"c\.safetensors: {said}"):
        run_stage(tiny_config, files)
    assert not files["output"].exists()


def test_without_a_classifier_the_reason_is_passed_on(tiny_config: ExperimentConfig, files: dict[str, Path]) -> None:
    save_classifier(None, files["classifier_path"], "all labelled training images are of one class")
    assert run_stage(tiny_config, files) == {"not_measured": "all labelled training images are of one class"}


def test_scores_that_are_not_finite_are_not_taken_for_an_answer(
    tiny_config: ExperimentConfig, files: dict[str, Path], probe: tuple[dict[str, float], LinearClassifier]
) -> None:
    huge = LinearClassifier(np.full_like(probe[1].weight, 1e308), probe[1].bias, probe[1].classes)
    save_classifier(huge, files["classifier_path"])
    assert run_stage(tiny_config, files) == {"not_measured": "the scores of the linear classifier hold NaN or infinity"}


def test_unlabelled_images_take_no_part(
    encoder: Encoder,
    probe: tuple[dict[str, float], LinearClassifier],
    accuracies: dict[str, list[float]],
    relabelled: Callable[..., Path],
) -> None:
    beton = relabelled("test", lambda labels: np.where(labels < 5, labels, -1))
    known = measure(encoder, probe[1], beton)
    right = {name: round(360 * values[0]) for name, values in accuracies.items()}
    share = {name: values[0] for name, values in known.items()}
    assert len({*share.values()}) == 1
    assert all(0.5 < value <= 1 for value in share.values())
    assert all(value * 360 / 2 < right[name] for name, value in share.items())


def test_asking_for_it_adds_its_jobs_and_outdates_no_other_job_of_a_run(tiny_config: ExperimentConfig) -> None:
    without = tiny_config.model_copy(
        update={"evaluation": tiny_config.evaluation.model_copy(update={"corruptions": False})}
    )
    assert set(run_stages(tiny_config)) - set(run_stages(without)) == {"corruptions"}
    layout = Layout(Path("results/tiny"))
    for stage in run_stages(without):
        jobs = (Job(Experiment(config, layout), STAGES[stage], RUN) for config in (without, tiny_config))
        assert len({job.identity for job in jobs}) == 1
    assert layout.corruptions(RUN) in measurements(layout, RUN, run_stages(tiny_config))
    assert layout.corruptions(RUN) not in measurements(layout, RUN, run_stages(without))
