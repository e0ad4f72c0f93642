"""Check that a file can be read as a beton: FFCV trusts every number in it, and a wrong one crashes the interpreter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dhel_kcl.data.beton import MAX_SIDES
from dhel_kcl.data.ffcv_import import importing_ffcv

with importing_ffcv():
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

FIELD_TYPES = {"image": 2, "label": 1}
"""FFCV's number for the type of each field, in order."""

Records = npt.NDArray[np.void]


def structural_problem(
    path: Path,
    *,
    num_images: int,
    label_counts: Sequence[int],
    storage: str,
    min_size: tuple[int, int],
    max_size: tuple[int, int],
) -> str | None:
    """Return what makes a file unreadable as a beton of this project, or None if nothing does.

    Args:
        path: the file.
        num_images: how many images it should hold.
        label_counts: how many of them should have each label from 0 on; the others should have none, which is -1.
        storage: how it should store them, ``raw`` or ``jpg``.
        min_size: the expected smallest height and width, in pixels.
        max_size: the expected largest height and width, in pixels.
    """
    size = path.stat().st_size
    if size < HeaderType.itemsize:
        return "it is shorter than a header"
    header = np.fromfile(path, HeaderType, count=1)[0]
    if header["version"] != CURRENT_VERSION or header["num_fields"] != len(FIELD_TYPES):
        return "its header is not that of FFCV's format 2 with two fields"
    if int(header["num_samples"]) != num_images:
        return f"its header counts {header['num_samples']} images instead of {num_images}"
    page = int(header["page_size"])
    if page == 0 or page & (page - 1):
        return f"its page size {page} is not a power of two"
    metadata_type = get_metadata_type([RGBImageField(), IntField()])
    fields_end = HeaderType.itemsize + len(FIELD_TYPES) * FieldDescType.itemsize
    metadata_end = fields_end + num_images * metadata_type.itemsize
    table_start = int(header["alloc_table_ptr"])
    if table_start < metadata_end or size - table_start != num_images * ALLOC_TABLE_TYPE.itemsize:
        return "its allocation table is not where the header says, or is incomplete"
    descriptions = np.fromfile(path, FieldDescType, count=len(FIELD_TYPES), offset=HeaderType.itemsize)
    names = [bytes(name).rstrip(b"\0") for name in descriptions["name"]]
    if names != [name.encode() for name in FIELD_TYPES] or descriptions["type_id"].tolist() != list(
        FIELD_TYPES.values()
    ):
        return "its fields are not an image and a label"
    records = np.fromfile(path, metadata_type, count=num_images, offset=fields_end)
    table = np.fromfile(path, ALLOC_TABLE_TYPE, offset=table_start)
    return (
        _sizes_problem(records["f0"], storage, min_size, max_size)
        or _labels_problem(records["f1"], label_counts)
        or _table_problem(records["f0"], table, page=page, first=metadata_end, last=table_start, storage=storage)
    )


def page_bytes(path: Path) -> int:
    """Return the page size of a beton."""
    return int(np.fromfile(path, HeaderType, count=1)[0]["page_size"])


def _sizes_problem(images: Records, storage: str, min_size: tuple[int, int], max_size: tuple[int, int]) -> str | None:
    sides = np.stack([images["height"], images["width"]]).astype(np.int64)
    if sides.min() < 1 or sides.max() > MAX_SIDES[storage]:
        return "the size of an image is impossible"
    if (images["mode"] != IMAGE_MODES[storage]).any():
        return f"an image is not stored as {storage}"
    if (tuple(sides.min(axis=1)), tuple(sides.max(axis=1))) != (min_size, max_size):
        return "its images have other sizes"
    return None


def _labels_problem(labels: Any, label_counts: Sequence[int]) -> str | None:
    if labels.min() < -1 or labels.max() >= len(label_counts):
        return "a label is not the number of a class"
    if np.bincount(labels[labels >= 0], minlength=len(label_counts)).tolist() != list(label_counts):
        return "its classes have other numbers of images"
    return None


def _table_problem(images: Records, table: Any, *, page: int, first: int, last: int, storage: str) -> str | None:
    if not np.array_equal(table["sample_id"], np.arange(len(images), dtype=np.uint64)):
        return "its allocation table does not list the images in their order"
    if not np.array_equal(table["ptr"], images["data_ptr"]):
        return "an image is not where the allocation table says"
    starts, lengths = table["ptr"], table["size"]
    if lengths.min() < 1 or lengths.max() > page or starts.min() < first or starts.max() >= last:
        return "an image lies outside of the pages"
    ends = starts + lengths  # no overflow: both are bounded now
    if ends.max() > last or (starts // page != (ends - 1) // page).any() or (starts[1:] < ends[:-1]).any():
        return "an image lies outside of its page or over another one"
    if storage == "raw" and (lengths != 3 * images["height"].astype(np.uint64) * images["width"]).any():
        return "an image has more or fewer bytes than its pixels need"
    return None
