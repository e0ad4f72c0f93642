"""Linear evaluation of frozen features, with k-nearest-neighbour accuracy beside it.

The classifier sees cached features only; no gradient can reach the encoder.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dhel_kcl.artifacts import write_json
from dhel_kcl.config import EvaluationConfig
from dhel_kcl.errors import InputError
from dhel_kcl.feature_cache import load_features
from dhel_kcl.metrics import knn_accuracy
from dhel_kcl.seeding import derive_seed

Array = NDArray[Any]


def linear_probe(
    train: Array, train_labels: Array, test: Array, test_labels: Array, config: EvaluationConfig, seed: int
) -> dict[str, float]:
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
        ``linear_top1``, ``linear_top5`` and ``validation_top1`` in [0, 1], and the chosen ``regularisation_c``.

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
        c: float(_classifier(c, config).fit(fitting, fitting_labels).score(validation, validation_labels))
        for c in sorted(config.regularisation_c)
    }
    best = max(accuracies, key=lambda c: accuracies[c])
    classifier = _classifier(best, config).fit(train, train_labels)
    classes = classifier.classes_
    scores = classifier.predict_proba(test)
    top5 = 1.0
    if len(classes) > 5:
        top5 = float(top_k_accuracy_score(test_labels, scores, k=5, labels=classes))
    return {
        "linear_top1": float(np.mean(classes[scores.argmax(axis=1)] == test_labels)),
        "linear_top5": top5,
        "validation_top1": accuracies[best],
        "regularisation_c": best,
    }


def _classifier(c: float, config: EvaluationConfig) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=config.max_iterations))


def evaluate(features_path: Path, config: EvaluationConfig, seed: int, threads: int, output: Path) -> None:
    """Evaluate the backbone features of one run and write the accuracies as JSON; of a diverged run, none.

    Beside the accuracies stands ``test_images``, the number of images that they were measured on.

    Raises:
        InputError: the features are missing, damaged or cannot be evaluated.
    """
    features = {name: tensor.numpy() for name, tensor in load_features(features_path).items()}
    if not features:
        write_json(output, {})
        return
    train, train_labels = features["train_h"], features["train_label"]
    test, test_labels = features["test_h"], features["test_label"]
    with threadpool_limits(threads):
        accuracies = linear_probe(train, train_labels, test, test_labels, config, seed)
        neighbours = min(config.neighbours, len(train))
        try:
            accuracies["knn_top1"] = knn_accuracy(train, train_labels, test, test_labels, k=neighbours)
        except ValueError as error:
            raise InputError(f"{features_path}: k-NN needs features that point somewhere: {error}") from error
    write_json(output, {**accuracies, "test_images": len(test)})
