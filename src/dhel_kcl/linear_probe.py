"""Linear evaluation of frozen features, with k-nearest-neighbour accuracy beside it.

The classifier sees cached features only; no gradient can reach the encoder.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dhel_kcl.artifacts import atomic_path, write_json
from dhel_kcl.config import EvaluationConfig
from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.feature_cache import load_features
from dhel_kcl.metrics import knn_accuracy
from dhel_kcl.seeding import derive_seed

Array = NDArray[Any]


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier of features as they are: their standardisation is folded into the weights.

    Attributes:
        weight: ``(C, dim)``.
        bias: ``(C,)``.
        classes: the label of each of the C scores.
    """

    weight: Array
    bias: Array
    classes: Array

    def predict(self, features: Array) -> Array:
        """Labels ``(N,)`` of features ``(N, dim)``."""
        predicted: Array = self.classes[(features @ self.weight.T + self.bias).argmax(axis=1)]
        return predicted


def save_classifier(classifier: LinearClassifier | None, path: Path) -> None:
    """Write a classifier, or that there is none, as safetensors, atomically."""
    # safetensors writes the memory of an array, whatever the order of its axes there.
    arrays = {name: np.ascontiguousarray(array) for name, array in vars(classifier).items()} if classifier else {}
    with atomic_path(path) as temporary:
        temporary.write_bytes(serialize(arrays))


def load_classifier(path: Path) -> LinearClassifier:
    """Read a classifier written by `save_classifier`.

    Raises:
        InputError: the file is missing or damaged, or holds no classifier.
    """
    try:
        return LinearClassifier(**load_file(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no classifier; evaluate the run first") from error
    except SafetensorError as error:
        raise InputError(f"{path}: damaged ({error}); delete it and evaluate the run again") from error
    except TypeError as error:
        raise InputError(f"{path}: holds no classifier; delete it and evaluate the run again") from error


def linear_probe(
    train: Array, train_labels: Array, test: Array, test_labels: Array, config: EvaluationConfig, seed: int
) -> tuple[dict[str, float], LinearClassifier]:
    """Multinomial logistic regression on standardised features.

    The inverse regularisation strength is the one with the best top-1 accuracy on a stratified
    validation split of the training set (the smallest one on a tie); the classifier is then fitted
    again on the whole training set. The test set is used once, for the reported accuracies.

    Args:
        train: features ``(N, dim)``.
        train_labels: integers ``(N,)``.
        test: features ``(K, dim)``.
        test_labels: integers ``(K,)``, classes that occur in `train_labels`.
        config: the grid of strengths, the validation fraction and the iteration limit.
        seed: seed of the validation split.

    Returns:
        ``linear_top1``, ``linear_top5`` and ``validation_top1`` in [0, 1], and the chosen ``regularisation_c``;
        and the classifier.

    Raises:
        InputError: there are fewer than two classes, or a class is too small to be split.
    """
    try:
        fitting, validation, fitting_labels, validation_labels = train_test_split(
            train,
            train_labels,
            test_size=config.validation_fraction,
            stratify=train_labels,
            random_state=derive_seed(seed, "validation_split") % 2**32,
        )
    except ValueError as error:
        raise InputError(
            f"evaluation.validation_fraction: the training set cannot be split by class ({error})"
        ) from error
    accuracies = {
        c: float(_fitted(c, config, fitting, fitting_labels).score(validation, validation_labels))
        for c in sorted(config.regularisation_c)
    }
    best = max(accuracies, key=lambda c: accuracies[c])
    classifier = _fitted(best, config, train, train_labels)
    classes = classifier.classes_
    scores = classifier.predict_proba(test)
    top5 = 1.0
    if len(classes) > 5:
        top5 = float(top_k_accuracy_score(test_labels, scores, k=5, labels=classes))
    measured = {
        "linear_top1": float(np.mean(classes[scores.argmax(axis=1)] == test_labels)),
        "linear_top5": top5,
        "validation_top1": accuracies[best],
        "regularisation_c": best,
    }
    return measured, _folded(classifier)


def _fitted(c: float, config: EvaluationConfig, features: Array, labels: Array) -> Pipeline:
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=config.max_iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in one line
        classifier.fit(features, labels)
    if classifier[-1].n_iter_.max() >= config.max_iterations:
        console.print(f"C = {c:g}: stopped at evaluation.max_iterations = {config.max_iterations}, before converging")
    return classifier


def _folded(classifier: Pipeline) -> LinearClassifier:
    scaler, regression = classifier[0], classifier[-1]
    coefficients, intercept = regression.coef_, regression.intercept_
    if len(coefficients) == 1:  # of two classes scikit-learn keeps the second's score, relative to the first's
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.append(0, intercept)
    weight = coefficients / scaler.scale_
    return LinearClassifier(weight, intercept - weight @ scaler.mean_, regression.classes_)


def evaluate(
    features_path: Path, config: EvaluationConfig, seed: int, threads: int, output: Path, classifier_path: Path
) -> None:
    """Evaluate the backbone features of one run; write the accuracies as JSON, and the classifier.

    Of a diverged run there are no accuracies, and the classifier's file holds nothing.

    Beside the accuracies stands ``test_images``, the number of images that they were measured on.

    Raises:
        InputError: the features are missing, damaged or cannot be evaluated.
    """
    features = {name: tensor.numpy() for name, tensor in load_features(features_path).items()}
    if not features:
        write_json(output, {})
        save_classifier(None, classifier_path)
        return
    train, train_labels = features["train_h"], features["train_label"]
    test, test_labels = features["test_h"], features["test_label"]
    with threadpool_limits(threads):
        accuracies, classifier = linear_probe(train, train_labels, test, test_labels, config, seed)
        neighbours = min(config.neighbours, len(train))
        try:
            accuracies["knn_top1"] = knn_accuracy(train, train_labels, test, test_labels, k=neighbours)
        except ValueError as error:
            raise InputError(f"{features_path}: k-NN needs features that point somewhere: {error}") from error
    save_classifier(classifier, classifier_path)
    write_json(output, {**accuracies, "test_images": len(test)})
