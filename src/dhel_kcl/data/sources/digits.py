"""Handwritten digits, which need no download."""

from importlib.metadata import version
from typing import ClassVar

import numpy as np
from sklearn.datasets import load_digits

from dhel_kcl.data.sources import SUBSET_SEED, ImageSource, Kind, stratified_indices
from dhel_kcl.experiment.config import DataConfig

TRAIN_IMAGES = 1437


class Digits(Kind):
    """scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, four fifths of them for training."""

    kind: ClassVar[str] = "digits"
    title: ClassVar[str] = "Digits"
    images: ClassVar[dict[str, int]] = {"train": 1437, "test": 360}

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split; the split is stratified and always the same."""
        digits = load_digits()
        labels = digits.target.astype(np.int64)
        train = stratified_indices(labels, TRAIN_IMAGES, SUBSET_SEED)
        chosen = train if split == "train" else np.setdiff1d(np.arange(len(labels)), train)
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        images = np.repeat(grey[..., None], 3, axis=3)
        return ImageSource(
            classes=[str(name) for name in digits.target_names],
            labels=labels,
            origin=f"scikit-learn {version('scikit-learn')} load_digits",
            names=[str(index) for index in range(len(labels))],
            read=lambda index: images[index],
        ).subset(chosen)
