"""The data sets that torchvision downloads; it verifies the checksums of archives and of the pickles in them."""

import errno
import http.client
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock
from torchvision import datasets

from dhel_kcl.data.sources import ImageSource, Kind
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import DataConfig


class CIFAR10(Kind):
    """CIFAR-10: 60,000 images of 32 x 32 pixels in 10 classes."""

    kind: ClassVar[str] = "cifar10"
    title: ClassVar[str] = "CIFAR-10"
    needs: ClassVar[tuple[str, ...]] = ("root",)
    images: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split, downloading it first."""
        return _open(datasets.CIFAR10, {"train": split == "train"}, data, split)


class CIFAR100(Kind):
    """CIFAR-100: 60,000 images of 32 x 32 pixels in 100 classes."""

    kind: ClassVar[str] = "cifar100"
    title: ClassVar[str] = "CIFAR-100"
    needs: ClassVar[tuple[str, ...]] = ("root",)
    images: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split, downloading it first."""
        return _open(datasets.CIFAR100, {"train": split == "train"}, data, split)


class STL10(Kind):
    """STL-10: 96 x 96 pixels, 10 classes; pretraining reads the 100,000 unlabelled images and the training set."""

    kind: ClassVar[str] = "stl10"
    title: ClassVar[str] = "STL-10"
    splits: ClassVar[tuple[str, ...]] = ("pretrain", "train", "test")
    needs: ClassVar[tuple[str, ...]] = ("root",)
    images: ClassVar[dict[str, int]] = {"pretrain": 105_000, "train": 5_000, "test": 8_000}

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split, downloading it first."""
        return _open(datasets.STL10, {"split": "train+unlabeled" if split == "pretrain" else split}, data, split)


def _open(kind: Any, arguments: dict[str, str | bool], data: DataConfig, split: str) -> ImageSource:
    assert data.root is not None  # DataConfig refuses these kinds without it
    try:
        dataset = kind(data.root, download=False, **arguments)
    except RuntimeError:
        dataset = _download(data.kind, data.root, kind, arguments)
    stl = data.kind == "stl10"
    labels = np.asarray(dataset.labels if stl else dataset.targets, dtype=np.int64)
    pixels = dataset.data.transpose(0, 2, 3, 1) if stl else dataset.data
    return ImageSource(
        classes=list(dataset.classes),
        labels=labels,
        origin=f"{kind.url} md5 {kind.tgz_md5} ({split})",
        names=[str(index) for index in range(len(labels))],
        read=lambda index: np.ascontiguousarray(pixels[index]),
    )


def _download(name: str, root: Path, kind: Any, arguments: dict[str, str | bool]) -> Any:
    if hasattr(tarfile, "data_filter"):  # since Python 3.11.4; not every torchvision sets it itself
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind.filename}.lock"):
            return kind(root, download=True, **arguments)
    except (OSError, RuntimeError, tarfile.TarError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{root}: no space left on the disk for {name}; free some and run the command again"
            ) from error
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name}: could not be downloaded ({reason}); download {kind.url} elsewhere, "
            f"put it at {root / kind.filename} and run the same command again"
        ) from error
