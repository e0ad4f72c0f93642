"""Sources of images: one module for each kind of data set, all behind one indexable `ImageSource`."""

import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import DataConfig
from dhel_kcl.seeding import derive_seed

ImageArray = npt.NDArray[np.uint8]
LabelArray = npt.NDArray[np.int64]

SUBSET_SEED = 0
"""Seed of the digits split and of `train_images` subsets; fixed, so that runs of every seed see the same images."""


FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}
"""The image formats that are read, by PIL's name, with their suffixes.

PIL chooses the parser by a file's content and passes some formats to other programs: PostScript would be executed.
"""
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_TIFF_BITS, _TIFF_SAMPLE_FORMAT = 258, 339
"""Numbers of the tags for the bits of each channel and for their type, of which 1 is unsigned."""


@dataclass(frozen=True)
class ImageSource:
    """An indexable collection of labelled RGB images.

    Attributes:
        classes: class names, all different; a label is a position in this list.
        labels: (N,) int64, known without decoding any image; -1 for an unlabelled image.
        origin: a description of where the images come from, for the record.
        names: (N,) file path or index of each image, for error messages.
        read: maps an image number to (H, W, 3) uint8 pixels; any exception means that the image cannot be used.
        left_out: how many files and folders were found but left out, by reason.
    """

    classes: list[str]
    labels: LabelArray
    origin: str
    names: list[str]
    read: Callable[[int], ImageArray]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[ImageArray, int]:
        """Return the (H, W, 3) uint8 pixels and the label of one image."""
        return self.read(index), int(self.labels[index])

    def subset(self, indices: LabelArray) -> "ImageSource":
        """Keep the images at `indices`, in that order."""
        return replace(
            self,
            labels=self.labels[indices],
            names=[self.names[index] for index in indices],
            read=lambda index: self.read(int(indices[index])),
        )


class Kind(ABC):
    """One kind of data set, which configurations name as `data.kind`.

    Attributes:
        kind: the name in configurations.
        title: the name shown to readers for a data set that is named after its kind.
        splits: the splits; ``("pretrain", "train", "test")`` if there is one for pretraining only.
        needs: which of the keys `root` and `class_list` it needs.
        images: how many images each split has, if that is known without reading it; used by `dhel-kcl plan`.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    needs: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[dict[str, int]] = {}

    @abstractmethod
    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one of `splits`, downloading it first if necessary; raises what `open_source` raises."""


def open_source(data: DataConfig, split: str) -> ImageSource:
    """Open one split of a data set, downloading it first if torchvision can.

    If `data.train_images` is set, the split for pretraining is reduced to a fixed stratified subset of that size.

    Args:
        data: the data set.
        split: one of `data.splits`.

    Raises:
        InputError: the split does not exist, or images, folders, the class list or the network are missing.
    """
    source = open_whole(data, split)
    if data.train_images is None or split != data.pretrain_split:
        return source
    if data.train_images > len(source):
        raise InputError(
            f"train_images: {data.train_images} is more than the {len(source)} images of the {split} split; lower it"
        )
    chosen = stratified_indices(source.labels, data.train_images, SUBSET_SEED)
    return source.subset(chosen)


def open_whole(data: DataConfig, split: str) -> ImageSource:
    """Open one split like `open_source`, but ignore `data.train_images`."""
    if split not in data.splits:
        raise InputError(f"data set kind {data.kind} has no split {split!r}; it has {', '.join(data.splits)}")
    source: ImageSource = declarations.kinds()[data.kind].load()().open(data, split)
    return source


def stratified_indices(labels: LabelArray, count: int, seed: int) -> LabelArray:
    """Choose `count` positions whose class shares are those of `labels`, rounded by largest remainder.

    Args:
        labels: (N,) class of each image.
        count: how many to choose, at most N.
        seed: the choice depends only on the seed, the labels and the count.

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

    The file must have one of `FORMATS`, whatever its suffix, and at most 8 bits per channel: with more, it is undefined
    which levels are black and white. Grey, palette and CMYK images are converted; transparency is dropped. From an MPO,
    a JPEG to which cameras add further pictures, the first picture is read.

    Raises:
        OSError: the file is missing or truncated. PIL raises other types for other damage.
        ValueError: it is not a regular file, has another format, or has several images or over 8 bits per channel.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")  # opening a pipe may block forever
    try:
        opened = Image.open(path, formats=list(FORMATS))
    except UnidentifiedImageError as error:
        raise ValueError(f"no image of the formats {', '.join(FORMATS)}") from error
    with opened as file:
        if (images := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
            raise ValueError(f"{images} images in one file; keep one of them")
        _refuse_undefined_range(file)
        image = ImageOps.exif_transpose(file)
    return np.array(image.convert("RGB"))


def _refuse_undefined_range(file: Any) -> None:
    bits, unsigned = 8, True
    if file.format == "TIFF":
        bits = max(file.tag_v2.get(_TIFF_BITS, (1,)))
        unsigned = set(file.tag_v2.get(_TIFF_SAMPLE_FORMAT, (1,))) == {1}
    elif file.format == "PNG" and any(";16" in str(tile[3]) for tile in file.tile):  # PIL's modes hide it for colour
        bits = 16
    if bits > 8:
        raise ValueError(f"{bits} bits a channel; convert it to 8 bits")
    if not unsigned:
        raise ValueError("signed or floating-point levels; convert it to 8 bits without a sign")
