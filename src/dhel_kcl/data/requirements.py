"""Check what later stages require of a data set when its betons are written, not after hours of pretraining.

A data set can be evaluated if its split `train` has labels of at least two classes. For other data sets, all steps that
need labels are skipped, so their labels are not checked.
"""

import numpy as np

from dhel_kcl.data.sources import ImageSource, LabelArray, open_whole
from dhel_kcl.errors import InputError, few, listed, quoted
from dhel_kcl.experiment.config import DatasetConfig
from dhel_kcl.experiment.grid import ExperimentConfig

LEAST_OF_A_CLASS = 2
"""Linear evaluation fits on one part of each class and validates on another."""
LEAST_TEST_IMAGES = 2
"""Uniformity and rank are measured on pairs."""


def check_split(
    config: ExperimentConfig, dataset: DatasetConfig, split: str, source: ImageSource, labels: LabelArray
) -> None:
    """Refuse images that a later stage could not use.

    Args:
        config: the experiment; all its stages are taken into account.
        dataset: one of its data sets.
        split: one of its splits.
        source: the split's images, or the subset of `train_images` of them if it is the split to pretrain on.
        labels: (N,), labels of the images of `source` that are kept, in their order; -1 for no label.

    Raises:
        InputError: pretraining has fewer images than a batch, a class of the split `train` has too few for linear
            evaluation, or the split `test` has classes that `train` lacks.
    """
    if split == dataset.data.pretrain_split:
        _check_batches(config, dataset, labels)
    if split == "train":
        _check_train(config, dataset, source, labels)
    if split == "test":
        _check_test(dataset, source, labels)


def _check_batches(config: ExperimentConfig, dataset: DatasetConfig, labels: LabelArray) -> None:
    largest = max(size for grid in config.losses for size in grid.batch_sizes or config.batch_sizes)
    if largest > len(labels):
        raise InputError(
            f"batch_sizes: {largest} is larger than the {len(labels)} images that {dataset.name} pretrains on; "
            "lower it or add images"
        )


def _check_train(config: ExperimentConfig, dataset: DatasetConfig, source: ImageSource, labels: LabelArray) -> None:
    left = _counts(source, labels)
    if len(source.classes) < 2:
        return
    if left.min() < LEAST_OF_A_CLASS:
        whole, chosen = _counts(source, open_whole(dataset.data, "train").labels), _counts(source, source.labels)
        if (whole > 0).sum() < 2:
            return
        poor = np.flatnonzero((left < LEAST_OF_A_CLASS) & (whole > 0))
        if poor.size:
            remedies = []
            if (whole[poor] < LEAST_OF_A_CLASS).any():
                remedies.append("add images, or remove the class from every split")
            if ((chosen < LEAST_OF_A_CLASS) & (whole >= LEAST_OF_A_CLASS))[poor].any():
                remedies.append("raise data.train_images or leave it out")
            if (chosen[poor] >= LEAST_OF_A_CLASS).any():
                remedies.append("replace the images that on_corrupt: skip leaves out")
            kept = [f"{left[label]} of {whole[label]} of class {quoted(source.classes[label])}" for label in poor]
            raise InputError(
                f"datasets.{dataset.name}.data: the split train keeps {few(kept)}, and linear evaluation needs "
                f"at least {LEAST_OF_A_CLASS} images of each class; {'; '.join(remedies)}"
            )
    if unlabelled := int((labels < 0).sum()):
        raise InputError(
            f"datasets.{dataset.name}.data: {unlabelled} of the {len(labels)} images in the split train have no "
            "label; keep them for a split pretrain"
        )
    classes = int((left > 0).sum())
    fraction, total = config.evaluation.validation_fraction, len(labels)
    validating = config.evaluation.validation_images(total)
    if min(validating, total - validating) < classes:
        raise InputError(
            f"evaluation.validation_fraction: {fraction} splits the {total} training images of {dataset.name} into "
            f"{total - validating} and {validating}, too few for the {classes} classes; change it or add images"
        )


def _check_test(dataset: DatasetConfig, source: ImageSource, labels: LabelArray) -> None:
    place = f"datasets.{dataset.name}.data"
    if len(labels) < LEAST_TEST_IMAGES:
        raise InputError(f"{place}: fewer than {LEAST_TEST_IMAGES} images in the split test ({len(labels)}); add some")
    train = open_whole(dataset.data, "train")
    trained = np.unique(train.labels[train.labels >= 0])
    if len(trained) < 2:
        return
    if train.classes != source.classes:
        raise InputError(f"{place}: the splits train and test list other classes; its kind must list the same for both")
    if unlabelled := int((labels < 0).sum()):
        raise InputError(
            f"{place}: {unlabelled} of the {len(labels)} images in the split test have no label; drop them"
        )
    if strange := [source.classes[label] for label in np.setdiff1d(labels, trained)]:
        raise InputError(
            f"{place}: the split test has images of the classes {listed(strange, source.classes)}, and train has none; "
            "add some there or remove them"
        )


def _counts(source: ImageSource, labels: LabelArray) -> LabelArray:
    return np.bincount(labels[labels >= 0], minlength=len(source.classes)).astype(np.int64)
