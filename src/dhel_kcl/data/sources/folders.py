"""Images in folders, one for each class."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from dhel_kcl.config import DataConfig
from dhel_kcl.data.sources import ImageSource, Kind, read_image
from dhel_kcl.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


class ImageFolder(Kind):
    """Images in `root/train/<class>/` and `root/test/<class>/`, at any depth below."""

    kind: ClassVar[str] = "imagefolder"
    title: ClassVar[str] = "Image folder"
    needs: ClassVar[tuple[str, ...]] = ("root",)

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split."""
        assert data.root is not None  # DataConfig refuses this kind without it
        return _open(data, split, {"train": data.root / "train", "test": data.root / "test"})


class ImageNet100(Kind):
    """The classes of `class_list` among the folders of ImageNet, whose test images may be in `root/val`."""

    kind: ClassVar[str] = "imagenet100"
    title: ClassVar[str] = "ImageNet-100"
    needs: ClassVar[tuple[str, ...]] = ("root", "class_list")
    images: ClassVar[dict[str, int]] = {"train": 126_689, "test": 5_000}  # of the classes that the paper's grid lists

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split."""
        assert data.root is not None  # DataConfig refuses this kind without it
        test = "val" if (data.root / "val").is_dir() else "test"
        return _open(data, split, {"train": data.root / "train", "test": data.root / test})


def _open(data: DataConfig, split: str, folders: dict[str, Path]) -> ImageSource:
    present = {name: _class_folders(folder) for name, folder in folders.items()}
    if data.class_list is not None:
        classes = _read_class_list(data.class_list)
        for name, folder in folders.items():
            if missing := [wnid for wnid in classes if wnid not in present[name]]:
                raise InputError(
                    f"{folder}: no folder for the classes {_printable(missing)} of {data.class_list}; add their images"
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


def _printable(names: list[str]) -> str:
    return ", ".join(name if name.isprintable() else ascii(name) for name in names)


def _read_class_list(path: Path) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise InputError(f"{path}: the class list cannot be read ({error.strerror}); see data.class_list") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the class list is not text; write one class folder name per line") from error
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path}: the class list is empty or repeats a class; write one class folder name per line")
    return names
