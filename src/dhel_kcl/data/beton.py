"""Write a data set to a beton, FFCV's file of fixed layout, and refuse a beton that has changed since.

FFCV reads a damaged beton without complaint or crashes the interpreter. The sidecar `<beton>.json` holds what is needed
to detect the damage first.
"""

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from dhel_kcl.data.progress import writing_display
from dhel_kcl.data.sources import FORMATS, ImageArray, ImageSource, LabelArray
from dhel_kcl.errors import InputError, escaped, few, listed, quoted
from dhel_kcl.files import atomic_path, read_json, sha256_file, sha256_json, write_json
from dhel_kcl.jobs.layout import sidecar_path

BETON_VERSION = 2
FIELDS = {"image": "RGBImageField", "label": "IntField"}
"""The layout: the FFCV type of each field, in their order."""
MIN_PAGE_BYTES = 1 << 21
MAX_PAGE_BYTES = 1 << 31
"""FFCV stores the page size, a power of two, in 32 bits."""
MAX_SIDES = {"raw": (1 << 16) - 1, "jpg": 65_500}
"""The longest side of an image, in pixels: a record stores it in 16 bits, and JPEG libraries stop at 65,500."""
IMAGES_IN_FLIGHT = 256
"""How many decoded images are held in memory at once while writing."""

UNLABELLED = "(unlabelled)"


class BetonInfo(BaseModel):
    """The sidecar of a beton.

    Attributes:
        sha256: sha256 of the beton's bytes.
        bytes: size of the beton.
        num_images: images in the beton.
        classes: class names; a label is a position in this list.
        fields: the FFCV type of each field, in the order of the beton.
        page_bytes: size of a page, a power of two.
        class_counts: images of each class, and of `UNLABELLED` if there are any.
        jpeg_images: how many of the images came from files that are JPEG by their names.
        storage: raw pixels or JPEG.
        jpeg_quality: 1 to 100; None for raw storage.
        max_resolution: longest side allowed, in pixels; larger images were reduced to it.
        min_size: smallest stored height and width, each over all images, in pixels.
        max_size: largest stored height and width, each over all images, in pixels.
        origin: where the images came from.
        skipped: every image left out because it cannot be used, with the reason; names are `quoted`.
        left_out: how many files and folders of the source are left out, by reason.
        versions: versions of the libraries that decoded and wrote the images.
        sidecar_sha256: `sha256_json` of the other values; without it, a renamed class would go unnoticed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int
    num_images: int
    classes: list[str]
    fields: dict[str, str]
    page_bytes: int
    class_counts: dict[str, int]
    jpeg_images: int
    storage: Literal["raw", "jpg"]
    jpeg_quality: int | None
    max_resolution: int | None
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    origin: str
    skipped: list[str]
    left_out: dict[str, int]
    versions: dict[str, str]
    sidecar_sha256: str = ""

    @property
    def compressed(self) -> bool:
        """Whether any image was compressed as JPEG before or in the beton."""
        return self.storage == "jpg" or self.jpeg_images > 0


def write_beton(
    source: ImageSource,
    path: Path,
    *,
    storage: Literal["raw", "jpg"] = "raw",
    jpeg_quality: int = 90,
    max_resolution: int | None = None,
    on_corrupt: Literal["fail", "skip"] = "fail",
    num_workers: int = 1,
    accept: Callable[[LabelArray], None] = lambda labels: None,
) -> BetonInfo:
    """Write the images and labels of `source` to the beton `path`, and then its sidecar.

    Every image is decoded twice: once to find unusable images before anything is written, and once to write it. The
    bytes depend on the images and the arguments, not on `num_workers`.

    Args:
        source: labelled images.
        path: the beton to write; an existing one is replaced only when the new one is complete.
        storage: ``raw`` pixels, for images of one size, or ``jpg``.
        jpeg_quality: 1 to 100.
        max_resolution: reduce images whose longer side has more pixels than this.
        on_corrupt: what to do about unusable images: those that cannot be decoded or stored, or that change between the
            two passes.
        num_workers: decoding threads.
        accept: called with the labels of the images to write, first with all of them and again whenever some turn out
            to be unusable; it may raise an exception to prevent the writing.

    Returns:
        The content of the sidecar.

    Raises:
        InputError: images cannot be used (the first few are named), there are none, their sizes differ with raw
            storage, the labels or classes are invalid, or the disk is full.
    """
    _refuse_impossible_classes(source)
    accept(source.labels)
    with (
        writing_display(path.name, len(source)) as display,
        ThreadPoolExecutor(num_workers) as pool,
    ):
        sizes: dict[int, tuple[int, int]] = {}
        unusable: dict[int, str] = {}
        check = partial(_read, source, storage=storage, max_resolution=max_resolution)
        for index, outcome in enumerate(pool.map(lambda index: _size(check(index)), range(len(source)))):
            if isinstance(outcome, str):
                unusable[index] = outcome
            else:
                sizes[index] = outcome
            display.advance()
        refuse = partial(_refuse_what_is_left, source, path, storage=storage, on_corrupt=on_corrupt)
        refuse(sizes, unusable)
        if unusable:
            accept(source.labels[list(sizes)])
        with atomic_path(path) as temporary:
            while True:
                display.writing(len(sizes))
                page_bytes = _page_bytes(list(sizes.values()), storage)
                metadata, failed = _write_pages(
                    _images(check, sizes, pool),
                    source.labels[list(sizes)],
                    temporary,
                    page_bytes=page_bytes,
                    field_options={
                        "write_mode": storage,
                        "jpeg_quality": jpeg_quality,
                        "max_resolution": max_resolution,
                    },
                    advance=display.advance,
                )
                if not failed:
                    break
                places = list(sizes)
                unusable |= {places[number]: reason for number, reason in failed.items()}
                sizes = {index: size for index, size in sizes.items() if index not in unusable}
                refuse(sizes, unusable)
                accept(source.labels[list(sizes)])
            digest, size = sha256_file(temporary), temporary.stat().st_size
    heights, widths = metadata["f0"]["height"], metadata["f0"]["width"]
    labels = Counter(metadata["f1"].tolist())
    classes = _texts(source.classes)
    counts = {name: labels[label] for label, name in enumerate(classes)}
    info = _sealed(
        BetonInfo(
            sha256=digest,
            bytes=size,
            num_images=len(sizes),
            classes=classes,
            fields=FIELDS,
            page_bytes=page_bytes,
            class_counts=counts | ({UNLABELLED: labels[-1]} if labels[-1] else {}),
            jpeg_images=sum(Path(source.names[index]).suffix.lower() in FORMATS["JPEG"] for index in sizes),
            storage=storage,
            jpeg_quality=jpeg_quality if storage == "jpg" else None,
            max_resolution=max_resolution,
            min_size=(int(heights.min()), int(widths.min())),
            max_size=(int(heights.max()), int(widths.max())),
            origin=escaped(source.origin),
            skipped=_described(source, unusable),
            left_out=dict(source.left_out),
            versions={name: version(name) for name in ("ffcv", "numpy", "opencv-python-headless", "pillow")},
        )
    )
    write_json(sidecar_path(path), info.model_dump(mode="json"))
    return info


def open_beton(path: Path) -> BetonInfo:
    """Check that a beton is, byte for byte, the one that its sidecar describes.

    The file is hashed once per process, and again if its size or modification time changes.

    Raises:
        InputError: the beton or its sidecar is missing, empty, truncated, of another origin or changed, or the two do
            not match.
    """
    remedy = "delete it and run the command that wrote it again"
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: no such beton ({error.strerror}); run the command that writes it") from error
    if not path.is_file():
        raise InputError(f"{path}: not a file; give the path of a beton")
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
    if info != _sealed(info):
        raise InputError(f"{sidecar}: edited after it was written; delete {path.name} and write it again")
    if problem := _content_problem(path, status.st_mtime_ns, status.st_size, info.model_dump_json()):
        raise InputError(f"{path}: not a beton that matches its sidecar: {problem}; {remedy}")
    return info


@lru_cache
def _sha256(path: Path, modified_ns: int, size: int) -> str:
    return sha256_file(path)


@lru_cache
def _content_problem(path: Path, modified_ns: int, size: int, sidecar: str) -> str | None:
    from dhel_kcl.data import beton_check as beton_structure

    info = BetonInfo.model_validate_json(sidecar)
    if info.num_images < 1:
        return "the sidecar counts no image"
    if info.fields != FIELDS:
        return "the sidecar gives other fields"
    if set(info.class_counts) - {UNLABELLED} != set(info.classes) or len(set(info.classes)) != len(info.classes):
        return "the sidecar does not count each class once"
    problem = beton_structure.structural_problem(
        path,
        num_images=info.num_images,
        label_counts=[info.class_counts[name] for name in info.classes],
        storage=info.storage,
        min_size=info.min_size,
        max_size=info.max_size,
    )
    if problem is None and beton_structure.page_bytes(path) != info.page_bytes:
        return "the sidecar gives another page size"
    if problem is None and sum(info.class_counts.values()) != info.num_images:
        return "the sidecar counts other images without a label"
    return problem


def _sealed(info: BetonInfo) -> BetonInfo:
    values = info.model_dump(mode="json", exclude={"sidecar_sha256"})
    return info.model_copy(update={"sidecar_sha256": sha256_json(values)})


def _has_beton_header(path: Path) -> bool:
    layout = struct.Struct("<HHIQQ")
    with path.open("rb") as file:
        start = file.read(layout.size)
    return len(start) == layout.size and layout.unpack(start)[:2] == (BETON_VERSION, len(FIELDS))


def _texts(names: Sequence[str]) -> list[str]:
    """Return names as text that can be written to a file: bytes of a file name that are not UTF-8 are escaped."""
    return [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names]


def _refuse_impossible_classes(source: ImageSource) -> None:
    names = Counter(_texts([*source.classes, UNLABELLED]))
    if repeated := [name for name, count in names.items() if count > 1]:
        raise InputError(f"{escaped(source.origin)}: there are two classes {listed(repeated)}; rename one of them")
    if len(source.names) != len(source.labels):
        raise InputError(
            f"{escaped(source.origin)}: {len(source.names)} names but {len(source.labels)} labels; "
            "its kind must return one name and one label per image"
        )
    if (odd := np.flatnonzero((source.labels < -1) | (source.labels >= len(source.classes)))).size:
        raise InputError(
            f"{escaped(source.origin)}: label {source.labels[odd[0]]} of image {quoted(source.names[odd[0]])} is not "
            f"one of the {len(source.classes)} classes; its kind must return positions in their list, or -1 for none"
        )


def _read(
    source: ImageSource, index: int, size: tuple[int, int] | None = None, *, storage: str, max_resolution: int | None
) -> ImageArray | str:
    """Decode an image, or return why it cannot be used; if `size` is given, the image must have that size."""
    try:
        image, _ = source[index]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            return "not (H, W, 3) pixels of 8 bits"
    except Exception as error:  # PIL raises many types for broken files, SyntaxError among them
        return _reason(error)
    height, width = image.shape[:2]
    if size is not None and (height, width) != size:
        return f"had {size[1]}x{size[0]} pixels and then {width}x{height}: it changed while the beton was written"
    return _size_problem(height, width, storage, max_resolution) or image


def _reason(error: Exception) -> str:
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return f"{type(error).__name__}: {escaped(' '.join(text.split()))}"


def _size_problem(height: int, width: int, storage: str, max_resolution: int | None) -> str | None:
    longest = max(height, width)
    if min(height, width) < 1:
        return "no pixels"
    ratio = min(1.0, (max_resolution or longest) / longest)
    if int(ratio * min(height, width)) < 1:  # as FFCV rounds
        return f"{width}x{height} pixels: too thin for max_resolution: {max_resolution}"
    if int(ratio * longest) > MAX_SIDES[storage]:
        return f"{width}x{height} pixels: a side is longer than {MAX_SIDES[storage]:,}; set max_resolution"
    if _page_bytes([(height, width)], storage) > MAX_PAGE_BYTES:
        return f"{width}x{height} pixels: more than FFCV can store; make it smaller"
    return None


def _size(outcome: ImageArray | str) -> tuple[int, int] | str:
    return outcome if isinstance(outcome, str) else (outcome.shape[0], outcome.shape[1])


def _refuse_what_is_left(
    source: ImageSource,
    path: Path,
    sizes: dict[int, tuple[int, int]],
    unusable: dict[int, str],
    *,
    storage: str,
    on_corrupt: str,
) -> None:
    if unusable and on_corrupt == "fail":
        raise InputError(
            f"{len(unusable):,} of {len(source):,} images cannot be used; replace or remove them, "
            f"or set on_corrupt: skip. They are: {few(_described(source, unusable))}"
        )
    if not sizes:
        reasons = f"; none can be used: {few(_described(source, unusable))}" if unusable else ""
        raise InputError(f"{path}: there is no image to write; check {escaped(source.origin)}{reasons}")
    if storage == "raw":
        _refuse_several_sizes(source, sizes)


def _described(source: ImageSource, unusable: dict[int, str]) -> list[str]:
    return [f"{quoted(source.names[index])} ({reason})" for index, reason in sorted(unusable.items())]


def _refuse_several_sizes(source: ImageSource, sizes: dict[int, tuple[int, int]]) -> None:
    first, size = next(iter(sizes.items()))
    for index, other in sizes.items():
        if other != size:
            raise InputError(
                f"storage: raw needs images of one size, but {quoted(source.names[first])} has {size[1]}x{size[0]} "
                f"pixels and {quoted(source.names[index])} {other[1]}x{other[0]}; use storage: jpg"
            )


def _page_bytes(sizes: list[tuple[int, int]], storage: str) -> int:
    """Return the smallest page that surely fits the largest image; a JPEG of noise can be larger than its pixels."""
    largest = max(3 * height * width for height, width in sizes)
    needed = largest if storage == "raw" else 2 * largest + (1 << 16)
    return max(MIN_PAGE_BYTES, 1 << (needed - 1).bit_length())


def _images(
    read: Callable[..., ImageArray | str], sizes: dict[int, tuple[int, int]], pool: ThreadPoolExecutor
) -> Iterator[ImageArray | str]:
    items = list(sizes.items())
    for start in range(0, len(items), IMAGES_IN_FLIGHT):
        yield from pool.map(lambda item: read(*item), items[start : start + IMAGES_IN_FLIGHT])


def _write_pages(
    images: Iterator[ImageArray | str],
    labels: LabelArray,
    path: Path,
    *,
    page_bytes: int,
    field_options: dict[str, str | int | None],
    advance: Callable[[], None],
) -> tuple[npt.NDArray[np.void], dict[int, str]]:
    """Write a beton with FFCV's own components, but in this process.

    FFCV's worker processes lay out pages in the order in which they finish, and if one raises an exception, the writer
    waits forever.

    Args:
        images: N images, each as pixels or as the reason why it cannot be used.
        labels: (N,).
        path: the file.
        page_bytes: size of a page.
        field_options: options of FFCV's image field.
        advance: called after each image.

    Returns:
        FFCV's record of each image (`f0`) and label (`f1`), and the reason for each image that could not be written, by
        its number. If there are any, the file is unusable.
    """
    from dhel_kcl.data.ffcv_import import importing_ffcv

    with importing_ffcv():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.types import ALLOC_TABLE_TYPE
        from ffcv.writer import DatasetWriter, handle_sample

    fields = {"image": RGBImageField(**field_options), "label": IntField()}
    writer = DatasetWriter(str(path), fields, page_size=page_bytes, num_workers=1)
    writer.num_samples = len(labels)
    writer.prepare()
    # prepare() allocates memory shared with worker processes, of which there are none.
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    metadata: npt.NDArray[Any] = np.zeros(len(labels), writer.metadata_type)
    writer.metadata_sm = SimpleNamespace(buf=metadata.view(np.uint8))
    allocator = MemoryAllocator(str(path), writer.data_region_start, page_bytes)
    failed: dict[int, str] = {}
    with allocator:
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            if isinstance(image, str):
                failed[number] = image
            else:
                try:
                    handle_sample((image, label), number, metadata.dtype.names, metadata, allocator, fields)
                except OSError:  # from writing the file
                    raise
                except Exception as error:  # from the encoder
                    failed[number] = _reason(error)
            advance()
    if failed:
        return metadata, failed
    writer.finalize(allocator.allocations)
    pages = int(allocator.next_page_written.value)
    if path.stat().st_size != allocator.offset + pages * page_bytes + len(labels) * ALLOC_TABLE_TYPE.itemsize:
        # FFCV writes unbuffered and does not check how much was written.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return metadata, failed
