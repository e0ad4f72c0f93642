"""Linear evaluation and k-nearest-neighbour accuracy of frozen features.

The classifier sees only cached features, so no gradient can reach the encoder.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.classifier import Array, LinearClassifier, save_classifier, why_not_classified
from dhel_kcl.evaluation.feature_cache import load_features
from dhel_kcl.evaluation.hits import pack_hits
from dhel_kcl.experiment.config import EvaluationConfig
from dhel_kcl.files import write_json
from dhel_kcl.jobs.job import Job
from dhel_kcl.metrics.knn import knn_accuracy
from dhel_kcl.seeding import derive_seed


def linear_probe(
    train: Array, train_labels: Array, test: Array, test_labels: Array, config: EvaluationConfig, seed: int
) -> tuple[dict[str, float], LinearClassifier, NDArray[np.bool_]]:
    """Fit and test a multinomial logistic regression on standardised features.

    The inverse regularisation strength is the one with the best top-1 accuracy on a stratified validation split of the
    training set (the smallest one in a tie). The classifier is then refitted on the whole training set. The test set is
    used once, for the reported accuracies.

    Args:
        train: features ``(N, dim)``.
        train_labels: integers ``(N,)``.
        test: features ``(K, dim)``.
        test_labels: integers ``(K,)``; an image whose class does not occur in `train_labels` counts as misclassified.
        config: the grid of strengths, the validation fraction and the iteration limit.
        seed: seed of the validation split.

    Returns:
        A dictionary of ``linear_top1``, ``linear_top5`` and ``validation_top1`` in [0, 1] and the chosen
        ``regularisation_c``; the classifier; and whether it classified each test image correctly, ``(K,)``.

    Raises:
        InputError: the validation split, or the rest of the training set, has fewer images than there are classes.
        ValueError: there are fewer than two classes, a class has only one image, or the features cannot be classified.
    """
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError("there are fewer than two classes")
    if counts.min() < 2:
        raise ValueError(f"class {classes[counts.argmin()]} has one training image, which cannot be split")
    validating = config.validation_images(len(train))
    if min(validating, len(train) - validating) < len(classes):
        raise InputError(
            f"evaluation.validation_fraction: {config.validation_fraction:g} of {len(train)} training images cannot be "
            f"split by class, of which there are {len(classes)}; choose one nearer to 0.5"
        )
    fitting, validation, fitting_labels, validation_labels = train_test_split(
        train,
        train_labels,
        test_size=config.validation_fraction,
        stratify=train_labels,
        random_state=derive_seed(seed, "validation_split") % 2**32,
    )
    accuracies = {
        c: float(_fitted(c, config, fitting, fitting_labels).score(validation, validation_labels))
        for c in sorted(config.regularisation_c)
    }
    best = max(accuracies, key=lambda c: accuracies[c])
    classifier = _fitted(best, config, train, train_labels)
    scores = classifier.predict_proba(test)
    if not np.isfinite(scores).all():
        raise ValueError("the linear classifier's probabilities hold NaN or infinity")
    known = np.isin(test_labels, classes)
    in_top5 = int(known.sum())
    if len(classes) > 5 and in_top5:
        in_top5 = int(top_k_accuracy_score(test_labels[known], scores[known], k=5, labels=classes, normalize=False))
    hits: NDArray[np.bool_] = classes[scores.argmax(axis=1)] == test_labels
    measured = {
        "linear_top1": float(hits.mean()),
        "linear_top5": in_top5 / len(test),
        "validation_top1": accuracies[best],
        "regularisation_c": best,
    }
    return measured, _folded(classifier), hits


def _fitted(c: float, config: EvaluationConfig, features: Array, labels: Array) -> Pipeline:
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=config.max_iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported below, in one line
        classifier.fit(features, labels)
    if classifier[-1].n_iter_.max() >= config.max_iterations:
        console.print(f"C = {c:g}: stopped at evaluation.max_iterations = {config.max_iterations}, before converging")
    return classifier


def _folded(classifier: Pipeline) -> LinearClassifier:
    scaler, regression = classifier[0], classifier[-1]
    coefficients, intercept = regression.coef_, regression.intercept_
    if len(coefficients) == 1:  # for two classes scikit-learn keeps only the second's score, relative to the first's
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.append(0, intercept)
    weight = coefficients / scaler.scale_
    return LinearClassifier(weight, intercept - weight @ scaler.mean_, regression.classes_)


def evaluate(
    features_path: Path,
    config: EvaluationConfig,
    seed: int,
    threads: int,
    output: Path,
    classifier_path: Path,
    projected_dim: int | None = None,
) -> None:
    """Evaluate the backbone features of one run; write the accuracies as JSON, and the classifier.

    For a diverged run, the JSON is an empty object and the classifier's file holds no tensors. Unlabelled images are
    ignored. Accuracies that cannot be measured are left out, and ``not_measured`` gives the reasons.

    ``knn_top1`` has an accuracy for each number of neighbours that voted: those of `config.neighbours`, or all training
    images if there are fewer, which is printed. The JSON also has ``test_images``, the number of images that the
    accuracies were measured on, and ``test_hits``, which of these the linear probe classified correctly (see `hits`),
    in the order of the test beton.

    Raises:
        InputError: the features are missing or damaged, `config` does not fit them, or z does not have `projected_dim`
            dimensions.
    """
    features = load_features(features_path, projected_dim)
    if not features.tensors:
        write_json(output, {})
        save_classifier(None, classifier_path)
        return
    train_labels, test_labels = (features.tensors[f"{split}_label"].numpy() for split in ("train", "test"))
    in_train, in_test = train_labels >= 0, test_labels >= 0
    counts = np.bincount(train_labels[in_train]), np.bincount(test_labels[in_test])
    classifier: LinearClassifier | None = None
    measured: dict[str, float | str | dict[str, float]] = {}
    reasons: dict[str, str] = {}
    if reason := features.not_measured.get("h") or why_not_classified(*(list(map(int, each)) for each in counts)):
        reasons["h"] = reason
    else:
        train, test = features.tensors["train_h"].numpy()[in_train], features.tensors["test_h"].numpy()[in_test]
        labelled = train, train_labels[in_train], test, test_labels[in_test]
        with threadpool_limits(threads):
            try:
                accuracies, classifier, hits = linear_probe(*labelled, config, seed)
                measured = {**accuracies, "test_hits": pack_hits(hits)}
            except ValueError as error:
                reasons["linear_top1"] = " ".join(str(error).split())
            neighbours = sorted({min(k, len(train)) for k in config.neighbours})
            if max(config.neighbours) > len(train):
                console.print(f"{features_path}: evaluation.neighbours: only {len(train)} training images can vote")
            try:
                measured["knn_top1"] = {str(k): knn_accuracy(*labelled, k=k) for k in neighbours}
            except ValueError as error:
                reasons["knn_top1"] = " ".join(str(error).split())
    content: dict[str, Any] = {**measured, "test_images": len(test)} if measured else {}
    if reasons:
        content["not_measured"] = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        console.print(f"{features_path}: not measured: {content['not_measured']}")
    save_classifier(classifier, classifier_path, None if classifier else content["not_measured"])
    write_json(output, content)


def run(job: Job) -> None:
    """Evaluate the frozen features of one run.

    Raises:
        InputError: see `evaluate`.
    """
    (features,), run, threads = job.reads.values(), job.run, job.config.compute.threads
    output, classifier = job.writes.values()
    projected_dim = run.dataset.encoder.embedding_dim
    with job.recorded({"run": run.seed}):
        evaluate(features, job.config.evaluation, run.seed, threads, output, classifier, projected_dim)
