"""Where images come from: small sets by name, folders by path, all behind one indexable `ImageSource`."""

import errno
import http.client
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image, ImageOps

from dhel_kcl.config import DataConfig
from dhel_kcl.errors import InputError
from dhel_kcl.seeding import derive_seed

ImageArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.int64]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
DIGITS_TRAIN_IMAGES = 1437
SUBSET_SEED = 0
"""Seed of the digits split and of `train_images` subsets; fixed, so that runs of every seed see the same images."""


@dataclass(frozen=True)
class ImageSource:
    """An indexable of labelled RGB images.

    Attributes:
        classes: class names; a label is a position in this list.
        labels: (N,) int64, known without decoding any image; -1 for an unlabelled image.
        origin: what the images are, for the record.
        names: (N,) file path or index of each image, for messages.
        read: image number to (H, W, 3) uint8 pixels.
    """

    classes: list[str]
    labels: LabelArray
    origin: str
    names: list[str]
    read: Callable[[int], ImageArray]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[ImageArray, int]:
        """Return the (H, W, 3) uint8 pixels and the label of one image."""
        return self.read(index), int(self.labels[index])

    def subset(self, indices: LabelArray) -> "ImageSource":
        """Keep the images at `indices`, in that order."""
        return ImageSource(
            classes=self.classes,
            labels=self.labels[indices],
            origin=self.origin,
            names=[self.names[index] for index in indices],
            read=lambda index: self.read(int(indices[index])),
        )


def open_source(data: DataConfig, split: str) -> ImageSource:
    """Open one split of a data set, downloading it first where torchvision can.

    With `data.train_images`, the split that pretraining reads is reduced to a fixed stratified subset of that size.

    Args:
        data: the data set.
        split: one of `data.splits`.

    Raises:
        InputError: the split does not exist, or images, folders, the class list or the network are missing.
    """
    if split not in data.splits:
        raise InputError(f"data set kind {data.kind} has no split {split!r}; it has {', '.join(data.splits)}")
    if data.kind == "digits":
        source = _open_digits(split)
    elif data.kind in ("imagenet100", "imagefolder"):
        source = _open_folder(data, split)
    else:
        source = _open_torchvision(data, split)
    if data.train_images is None or split != data.pretrain_split:
        return source
    if data.train_images > len(source):
        raise InputError(
            f"train_images: {data.train_images} is more than the {len(source)} images of the {split} split; lower it"
        )
    chosen = stratified_indices(source.labels, data.train_images, SUBSET_SEED)
    return source.subset(chosen)


def stratified_indices(labels: LabelArray, count: int, seed: int) -> LabelArray:
    """Choose `count` positions whose class shares are those of `labels`, rounded by largest remainder.

    Args:
        labels: (N,) class of each image.
        count: how many to choose, at most N.
        seed: the choice is a function of the seed, the labels and the count.

    Returns:
        (count,) positions in increasing order.
    """
    values, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(np.int64)
    remainder_order = np.argsort(quota - exact, kind="stable")
    quota[remainder_order[: count - int(quota.sum())]] += 1
    chosen = []
    for value, size in zip(values, quota, strict=True):
        generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "subset", int(value))))
        chosen.append(generator.permutation(np.flatnonzero(labels == value))[:size])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def read_image(path: Path) -> ImageArray:
    """Decode a file to (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Grey, palette and CMYK images are converted; of 16-bit grey the high byte is kept, as PIL does for 16-bit colour;
    transparency is dropped.

    Raises:
        OSError: the file is missing or truncated. PIL raises other types for other damage.
        ValueError: the image holds floating-point values, whose range is unknown.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _open_digits(split: str) -> ImageSource:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    train = stratified_indices(labels, DIGITS_TRAIN_IMAGES, SUBSET_SEED)
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


def _open_torchvision(data: DataConfig, split: str) -> ImageSource:
    from torchvision import datasets

    assert data.root is not None  # DataConfig refuses these kinds without it
    root = data.root
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[data.kind]
    arguments: dict[str, str | bool]
    if data.kind == "stl10":
        arguments = {"split": "train+unlabeled" if split == "pretrain" else split}
    else:
        arguments = {"train": split == "train"}
    try:
        dataset = kind(root, download=False, **arguments)
    except RuntimeError:
        dataset = _download(data.kind, root, kind, arguments)
    labels = np.asarray(dataset.labels if data.kind == "stl10" else dataset.targets, dtype=np.int64)
    pixels = dataset.data.transpose(0, 2, 3, 1) if data.kind == "stl10" else dataset.data
    return ImageSource(
        classes=list(dataset.classes),
        labels=labels,
        origin=f"{kind.url} md5 {kind.tgz_md5} ({split})",
        names=[str(index) for index in range(len(labels))],
        read=lambda index: np.ascontiguousarray(pixels[index]),
    )


def _download(name: str, root: Path, kind: Any, arguments: dict[str, str | bool]) -> Any:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind.filename}.lock"):
            return kind(root, download=True, **arguments)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{root}: no space left on the disk for {name}; free some and run the command again"
            ) from error
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name}: could not be downloaded ({reason}); download {kind.url} elsewhere, "
            f"put it at {root / kind.filename} and run the same command again"
        ) from error


def _open_folder(data: DataConfig, split: str) -> ImageSource:
    assert data.root is not None  # DataConfig refuses these kinds without it
    folders = {"train": data.root / "train", "test": data.root / "test"}
    if data.kind == "imagenet100" and (data.root / "val").is_dir():
        folders["test"] = data.root / "val"
    present = {name: _class_folders(folder) for name, folder in folders.items()}
    if data.class_list is not None:
        classes = _read_class_list(data.class_list)
        for name, folder in folders.items():
            if missing := [wnid for wnid in classes if wnid not in present[name]]:
                raise InputError(
                    f"{folder}: no folder for the classes {', '.join(missing)} of {data.class_list}; add their images"
                )
    else:
        classes = present["train"]
        if odd := sorted(set(classes) ^ set(present["test"])):
            raise InputError(
                f"{data.root}: the classes {', '.join(odd)} are in only one of train and test; both need every class"
            )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = folders[split] / name
        images = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )
        if not images:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"{folder}: no images ({suffixes}); add some or remove the folder from every split")
        paths += images
        labels += [label] * len(images)
    return ImageSource(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        origin=str(folders[split]),
        names=[str(path) for path in paths],
        read=lambda index: read_image(paths[index]),
    )


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold one folder of images for each class")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: no class folders; it should hold one folder of images for each class")
    return names


def _read_class_list(path: Path) -> list[str]:
    try:
        names = path.read_text().split()
    except OSError as error:
        raise InputError(f"{path}: the class list cannot be read ({error.strerror}); see data.class_list") from error
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path}: the class list is empty or repeats a class; write one class folder name per line")
    return names
