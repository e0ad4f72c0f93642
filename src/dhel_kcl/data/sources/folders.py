"""Images in folders, one folder for each class."""

import errno
import os
from collections import Counter, deque
from pathlib import Path
from typing import ClassVar

import numpy as np

from dhel_kcl.data.sources import IMAGE_SUFFIXES, ImageSource, Kind, read_image
from dhel_kcl.errors import InputError, escaped, listed
from dhel_kcl.experiment.config import DataConfig

SYSTEM_NAMES = frozenset(
    [
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),  # archives and views of macOS and Windows
        *("$recycle.bin", "system volume information", "lost+found"),  # file systems
        *("@eadir", "#recycle", "@recycle", "@recently-snapshot"),  # network storage
        "__pycache__",
    ]
)
"""Files and folders that operating systems add, in lower case; most others begin with a dot."""

HIDDEN = "hidden or system files and folders"
NO_IMAGES = "files without an image's suffix"
BESIDE = "files beside the class folders"
AGAIN = "linked folders that were read before or lead back"
UNLISTED = "class folders that the class list does not name"
"""Reasons why a scan leaves something out."""


class ImageFolder(Kind):
    """Images in `root/train/<class>/` and `root/test/<class>/`, at any depth below.

    An image is a file with one of `IMAGE_SUFFIXES`, in upper or lower case. Links to files and folders are followed,
    but no folder is read twice for one class, and no folder that contains the class is read. Everything else is left
    out and counted: files and folders, with their content, whose names begin with a dot or are in `SYSTEM_NAMES`; files
    with other suffixes; and files beside the class folders.
    """

    kind: ClassVar[str] = "imagefolder"
    title: ClassVar[str] = "Image folder"
    needs: ClassVar[tuple[str, ...]] = ("root",)

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split."""
        assert data.root is not None  # DataConfig refuses this kind without it
        return _open(data, split, {"train": data.root / "train", "test": data.root / "test"})


class ImageNet100(Kind):
    """The classes of `class_list` from the folders of ImageNet, whose test images may be in `root/val`.

    Each folder is read as in `ImageFolder`.
    """

    kind: ClassVar[str] = "imagenet100"
    title: ClassVar[str] = "ImageNet-100"
    needs: ClassVar[tuple[str, ...]] = ("root", "class_list")
    images: ClassVar[dict[str, int]] = {"train": 126_689, "test": 5_000}  # for the classes in the paper's grid

    def open(self, data: DataConfig, split: str) -> ImageSource:
        """Open one split."""
        assert data.root is not None  # DataConfig refuses this kind without it
        test = "val" if (data.root / "val").is_dir() else "test"
        return _open(data, split, {"train": data.root / "train", "test": data.root / test})


def _open(data: DataConfig, split: str, folders: dict[str, Path]) -> ImageSource:
    left_out: dict[str, Counter[str]] = {name: Counter() for name in folders}
    present = {name: _class_folders(folder, left_out[name]) for name, folder in folders.items()}
    counts = left_out[split]
    if data.class_list is not None:
        classes = _read_class_list(data.class_list)
        for name, folder in folders.items():
            if missing := [wnid for wnid in classes if wnid not in present[name]]:
                raise InputError(
                    f"{folder}: no folder for the classes {listed(missing, present[name])} of {data.class_list}; "
                    "add their images"
                )
        if unlisted := len(set(present[split]) - set(classes)):
            counts[UNLISTED] = unlisted
    else:
        classes = present["train"]
        if odd := sorted(set(classes) ^ set(present["test"])):
            raise InputError(
                f"{data.root}: the classes {listed(odd)} are in only one of train and test; both need every class"
            )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = folders[split] / name
        images = _images(folder, counts)
        if not images:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(
                f"{escaped(str(folder))}: no images ({suffixes}); add some or remove the folder from every split"
            )
        paths += images
        labels += [label] * len(images)
    return ImageSource(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        origin=str(folders[split]),
        names=[str(path) for path in paths],
        read=lambda index: read_image(paths[index]),
        left_out=dict(sorted(counts.items())),
    )


def _class_folders(folder: Path, left_out: Counter[str]) -> list[str]:
    """Return the sorted names of the class folders; count everything else in `left_out`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold one folder of images for each class")
    entries = _entries(folder, left_out)
    names = [entry.name for entry in entries if _is_folder(entry)]
    if files := len(entries) - len(names):
        left_out[BESIDE] = files
    if not names and any(_is_image(entry) for entry in entries):
        raise InputError(
            f"{folder}: images but no class folders; move them into one folder for each class, or all into one folder "
            "if there are no classes"
        )
    if not names:
        raise InputError(f"{folder}: no class folders; it should hold one folder of images for each class")
    return names


def _images(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Return the sorted images of a class; count everything else in `left_out`."""
    read = {_identity(above) for above in {*folder.absolute().parents, *folder.resolve().parents}}
    images: list[Path] = []
    folders, links = [folder], deque[Path]()
    while folders or links:
        current = folders.pop() if folders else links.popleft()  # links last: a folder's own path comes first
        if (identity := _identity(current)) in read:
            left_out[AGAIN] += 1
            continue
        read.add(identity)
        for entry in _entries(current, left_out):
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(current / entry.name)
            elif _is_image(entry):
                images.append(current / entry.name)
            else:
                left_out[NO_IMAGES] += 1
    return sorted(images)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path, left_out: Counter[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden and system entries, which are counted."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{escaped(str(folder))}: cannot be listed ({error.strerror}); check its permissions"
        ) from error
    kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_NAMES]
    if hidden := len(entries) - len(kept):
        left_out[HIDDEN] += hidden
    return kept


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise InputError(f"{escaped(entry.path)}: cannot be read ({error.strerror}); check its permissions") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in IMAGE_SUFFIXES


def _read_class_list(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: the class list is not a file; see data.class_list")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    except OSError as error:
        raise InputError(f"{path}: the class list cannot be read ({error.strerror}); see data.class_list") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the class list is not text; write one class folder name per line") from error
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path}: the class list is empty or repeats a class; write one class folder name per line")
    return names
