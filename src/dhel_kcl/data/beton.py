"""Write a data set to a beton, FFCV's file of fixed layout, and refuse one that is not what was written.

FFCV reads a damaged beton without complaint, or crashes the interpreter; the sidecar `<beton>.json` holds what is
needed to notice beforehand.
"""

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dhel_kcl.artifacts import atomic_path, read_json, sha256_file, write_json
from dhel_kcl.data.sources import ImageArray, ImageSource
from dhel_kcl.errors import InputError

BETON_VERSION = 2
FIELDS = {"image": "RGBImageField", "label": "IntField"}
"""The layout: the FFCV type of each field, in their order."""
MIN_PAGE_BYTES = 1 << 21
IMAGES_IN_FLIGHT = 256
"""Decoded images held in memory at once while writing."""

UNLABELLED = "(unlabelled)"


class BetonInfo(BaseModel):
    """The sidecar of a beton.

    Attributes:
        sha256: of the beton's bytes.
        bytes: size of the beton.
        num_images: images in the beton.
        classes: class names; a label is a position in this list.
        fields: the FFCV type of each field, in the order of the beton.
        page_bytes: size of a page, a power of two.
        class_counts: images of each class, and of `UNLABELLED` if there are any.
        storage: raw pixels or JPEG.
        jpeg_quality: 1 to 100; None for raw storage.
        max_resolution: longest side allowed, in pixels; larger images were reduced to it.
        min_size: smallest stored height and width, each over all images, in pixels.
        max_size: largest stored height and width, each over all images, in pixels.
        origin: where the images came from.
        skipped: images left out because they cannot be decoded, with the reason.
        versions: of the libraries that decoded and wrote the images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int
    num_images: int
    classes: list[str]
    fields: dict[str, str]
    page_bytes: int
    class_counts: dict[str, int]
    storage: Literal["raw", "jpg"]
    jpeg_quality: int | None
    max_resolution: int | None
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    origin: str
    skipped: list[str]
    versions: dict[str, str]


def sidecar_path(path: Path) -> Path:
    """Path of a beton's sidecar."""
    return path.with_name(path.name + ".json")


def write_beton(
    source: ImageSource,
    path: Path,
    *,
    storage: Literal["raw", "jpg"] = "raw",
    jpeg_quality: int = 90,
    max_resolution: int | None = None,
    on_corrupt: Literal["fail", "skip"] = "fail",
    num_workers: int = 1,
) -> BetonInfo:
    """Write the images and labels of `source` to the beton `path`, and its sidecar after it.

    Every image is decoded once to find the broken ones before anything is written. The bytes depend on the images and
    the arguments, not on `num_workers`.

    Args:
        source: labelled images.
        path: the beton to write; an existing one is replaced only when the new one is complete.
        storage: ``raw`` pixels, for images of one size, or ``jpg``.
        jpeg_quality: 1 to 100.
        max_resolution: reduce images whose longer side has more pixels than this.
        on_corrupt: what to do about images that cannot be decoded.
        num_workers: decoding threads.

    Returns:
        What the sidecar says.

    Raises:
        InputError: images are broken (all are named), or of several sizes with raw storage, or there are none, or the
            disk is full.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(num_workers) as pool,
    ):
        task = progress.add_task(f"checking {path.name}", total=len(source))
        sizes: dict[int, tuple[int, int]] = {}
        broken: dict[int, str] = {}
        for index, outcome in enumerate(pool.map(lambda index: _image_size(source, index), range(len(source)))):
            if isinstance(outcome, str):
                broken[index] = outcome
            else:
                sizes[index] = outcome
            progress.advance(task)
        skipped = [f"{source.names[index]} ({reason})" for index, reason in broken.items()]
        if skipped and on_corrupt == "fail":
            raise InputError(
                f"{len(skipped)} of {len(source)} images cannot be decoded; replace or remove them, "
                f"or set on_corrupt: skip. They are: {', '.join(skipped)}"
            )
        if not sizes:
            raise InputError(f"{path}: there is no image to write; check {source.origin}")
        if storage == "raw":
            _refuse_several_sizes(source, sizes)
        progress.reset(task, description=f"writing {path.name}", total=len(sizes))
        page_bytes = _page_bytes(list(sizes.values()), storage)
        with atomic_path(path) as temporary:
            metadata = _write_pages(
                _samples(source, list(sizes), pool),
                len(sizes),
                temporary,
                page_bytes=page_bytes,
                field_options={"write_mode": storage, "jpeg_quality": jpeg_quality, "max_resolution": max_resolution},
                advance=lambda: progress.advance(task),
            )
            digest, size = sha256_file(temporary), temporary.stat().st_size
    heights, widths = metadata["f0"]["height"], metadata["f0"]["width"]
    labels = Counter(metadata["f1"].tolist())
    counts = {name: labels[label] for label, name in enumerate(source.classes)}
    info = BetonInfo(
        sha256=digest,
        bytes=size,
        num_images=len(sizes),
        classes=source.classes,
        fields=FIELDS,
        page_bytes=page_bytes,
        class_counts=counts | ({UNLABELLED: labels[-1]} if labels[-1] else {}),
        storage=storage,
        jpeg_quality=jpeg_quality if storage == "jpg" else None,
        max_resolution=max_resolution,
        min_size=(int(heights.min()), int(widths.min())),
        max_size=(int(heights.max()), int(widths.max())),
        origin=source.origin,
        skipped=skipped,
        versions={name: version(name) for name in ("ffcv", "numpy", "opencv-python-headless", "pillow")},
    )
    write_json(sidecar_path(path), info.model_dump(mode="json"))
    return info


def open_beton(path: Path) -> BetonInfo:
    """Check that a beton is, byte for byte, the one its sidecar describes.

    The file is hashed once in a process, and again when its size or modification time changes.

    Raises:
        InputError: the beton or its sidecar is missing, empty, truncated, foreign or changed.
    """
    remedy = "delete it and run the command that wrote it again"
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: no such beton ({error.strerror}); run the command that writes it") from error
    if not path.is_file():
        raise InputError(f"{path}: not a file but a beton is expected; give the path of the beton")
    if status.st_size == 0:
        raise InputError(f"{path}: the beton is empty; {remedy}")
    if not _has_beton_header(path):
        raise InputError(f"{path}: not an FFCV beton of this project; check the path, or {remedy}")
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise InputError(f"{sidecar}: the beton's sidecar is missing; {remedy.replace('it ', f'{path.name} ', 1)}")
    try:
        info = BetonInfo.model_validate(read_json(sidecar))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{sidecar}: not a beton's sidecar ({place}: {first['msg']}); {remedy}") from error
    if status.st_size != info.bytes:
        raise InputError(
            f"{path}: the beton has {status.st_size} bytes but its sidecar says {info.bytes} (truncated?); {remedy}"
        )
    if _sha256(path, status.st_mtime_ns, status.st_size) != info.sha256:
        raise InputError(f"{path}: the beton changed after it was written (sha256 differs); {remedy}")
    expected = info.num_images, len(info.classes), info.storage, info.page_bytes
    if problem := _structural_problem(path, status.st_mtime_ns, status.st_size, *expected):
        raise InputError(f"{path}: not a beton that matches its sidecar: {problem}; {remedy}")
    return info


@lru_cache
def _sha256(path: Path, modified_ns: int, size: int) -> str:
    return sha256_file(path)


@lru_cache
def _structural_problem(
    path: Path, modified_ns: int, size: int, num_images: int, num_classes: int, storage: str, page_bytes: int
) -> str | None:
    from dhel_kcl.data import beton_structure

    if num_images < 1:
        return "the sidecar counts no image"
    problem = beton_structure.structural_problem(path, num_images=num_images, num_classes=num_classes, storage=storage)
    if problem is None and beton_structure.page_bytes(path) != page_bytes:
        return "the sidecar gives another page size"
    return problem


def _has_beton_header(path: Path) -> bool:
    layout = struct.Struct("<HHIQQ")
    with path.open("rb") as file:
        start = file.read(layout.size)
    return len(start) == layout.size and layout.unpack(start)[:2] == (BETON_VERSION, len(FIELDS))


def _image_size(source: ImageSource, index: int) -> tuple[int, int] | str:
    """Height and width of an image, or why it cannot be decoded."""
    try:
        image, _ = source[index]
    except Exception as error:  # PIL raises many types for broken files, SyntaxError among them
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return image.shape[0], image.shape[1]


def _refuse_several_sizes(source: ImageSource, sizes: dict[int, tuple[int, int]]) -> None:
    first, size = next(iter(sizes.items()))
    for index, other in sizes.items():
        if other != size:
            raise InputError(
                f"storage: raw needs images of one size, but {source.names[first]} has {size[1]}x{size[0]} pixels and "
                f"{source.names[index]} {other[1]}x{other[0]}; use storage: jpg"
            )


def _page_bytes(sizes: list[tuple[int, int]], storage: str) -> int:
    """Smallest page, a power of two, that the largest image is sure to fit; JPEG of noise can exceed its pixels."""
    largest = max(3 * height * width for height, width in sizes)
    needed = largest if storage == "raw" else 2 * largest + (1 << 16)
    return max(MIN_PAGE_BYTES, 1 << (needed - 1).bit_length())


def _samples(source: ImageSource, indices: list[int], pool: ThreadPoolExecutor) -> Iterator[tuple[ImageArray, int]]:
    for start in range(0, len(indices), IMAGES_IN_FLIGHT):
        yield from pool.map(source.__getitem__, indices[start : start + IMAGES_IN_FLIGHT])


def _write_pages(
    samples: Iterator[tuple[ImageArray, int]],
    num_images: int,
    path: Path,
    *,
    page_bytes: int,
    field_options: dict[str, str | int | None],
    advance: Callable[[], None],
) -> npt.NDArray[np.void]:
    """Write a beton with FFCV's own parts, but in this process.

    FFCV's worker processes lay out pages in the order of their arrival, and one that raises leaves the writer waiting
    for ever.

    Returns:
        FFCV's record of each image (`f0`) and label (`f1`).
    """
    from dhel_kcl.data.ffcv_side_effects import importing_ffcv

    with importing_ffcv():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.types import ALLOC_TABLE_TYPE
        from ffcv.writer import DatasetWriter, handle_sample

    fields = {"image": RGBImageField(**field_options), "label": IntField()}
    writer = DatasetWriter(str(path), fields, page_size=page_bytes, num_workers=1)
    writer.num_samples = num_images
    writer.prepare()
    # prepare() allocates memory to share with worker processes; there are none.
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    metadata = np.zeros(num_images, writer.metadata_type)
    writer.metadata_sm = SimpleNamespace(buf=metadata.view(np.uint8))
    allocator = MemoryAllocator(str(path), writer.data_region_start, page_bytes)
    with allocator:
        for number, sample in enumerate(samples):
            handle_sample(sample, number, metadata.dtype.names, metadata, allocator, fields)
            advance()
    writer.finalize(allocator.allocations)
    pages = int(allocator.next_page_written.value)
    if path.stat().st_size != allocator.offset + pages * page_bytes + num_images * ALLOC_TABLE_TYPE.itemsize:
        # FFCV writes unbuffered and does not look at how much was written.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return metadata
