"""Turn indices into views: the only stage of the FFCV pipeline, built from this package's kernels."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dhel_kcl.data.augment import BICUBIC, FILTERS, LEVELS, ViewParameters, make_views
from dhel_kcl.data.ffcv_import import importing_ffcv
from dhel_kcl.data.order import EpochIndices, IndexArray
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import AugmentationConfig
from dhel_kcl.seeding import derive_seed

with importing_ffcv():
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.libffcv import imdecode
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State

EVALUATION_MARGIN = 256 / 224
"""Photographs are resized to this multiple of the view's size before the centre crop (torchvision's reference)."""
PHOTOGRAPH_SIZE = 64
"""Views larger than this many pixels are treated as photographs."""


class ViewDecoder(Operation):  # type: ignore[misc]
    """FFCV operation that turns indices into views of the images.

    Views for the CPU are float32 in [0, 1], converted where they are made: if the consumer converted them with torch,
    torch's threads would keep spinning on the cores that make the next views. Views for a GPU are uint8 in pinned
    memory.

    Args:
        path: the beton, for error messages.
        num_views: views of each image.
        image_size: height and width of a view, in pixels.
        augmentation: how a view is made.
        seed: seed of the views.
        num_workers: threads among which a batch is divided.
        for_gpu: whether the batches will be copied to a GPU.
        page_bytes: size of a page of the beton, a power of two.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_views: int,
        image_size: int,
        augmentation: AugmentationConfig,
        seed: int,
        num_workers: int,
        for_gpu: bool,
        page_bytes: int,
    ) -> None:
        super().__init__()
        self.path, self.num_views, self.image_size = path, num_views, image_size
        self.parameters = view_parameters(augmentation, image_size)
        self.seed, self.num_workers, self.page_bytes = seed, num_workers, page_bytes
        self.for_gpu, self.levels = for_gpu, LEVELS["uint8" if for_gpu else "float32"]

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery | None]:
        """Request no memory: each batch has its own, so that the caller may keep it."""
        return replace(previous_state, shape=(self.num_views, self.image_size, self.image_size, 3)), None

    def generate_code(self) -> Any:
        """Return the function that FFCV calls for each batch."""
        return self.decode

    def decode(
        self, indices: EpochIndices, memory: None, metadata: Any, storage: Any
    ) -> tuple[Tensor, IndexArray] | Exception:
        """Return views (V, B, S, S, 3) with their indices, or an exception: raising it would end FFCV's thread."""
        try:
            epoch, plain = indices.epoch, np.array(indices, np.int64, subok=False)
            assert epoch is not None  # the loader sets it before each epoch
            epoch_key = np.uint64(derive_seed(self.seed, "augmentation", epoch.number))
            shape = (self.num_views, len(plain), self.image_size, self.image_size, 3)
            dtype = torch.uint8 if self.for_gpu else torch.float32
            views = torch.empty(shape, dtype=dtype, pin_memory=self.for_gpu)
            out = views.numpy()
            bounds = np.linspace(0, len(plain), self.num_workers + 1).astype(int)
            work = [
                epoch.pool.submit(
                    self._fill, plain[part], metadata[plain[part]], storage, epoch.file, epoch_key, out, part.start
                )
                for part in itertools.starmap(slice, itertools.pairwise(bounds))
                if part.stop > part.start
            ]
            for share in work:
                share.result()
        except Exception as error:
            return error
        return views, plain

    def _fill(
        self,
        indices: IndexArray,
        records: Any,
        storage: Any,
        file: int,
        epoch_key: np.uint64,
        out: npt.NDArray[Any],
        first: int,
    ) -> None:
        heights, widths = records["height"].astype(np.int64), records["width"].astype(np.int64)
        _, pointers, sizes = storage[:3]
        lengths = sizes[np.searchsorted(pointers, records["data_ptr"])].astype(np.int64)
        addresses = records["data_ptr"].astype(np.int64)
        if len(storage) == 3:
            stored, offsets = self._read(file, addresses, lengths)
        else:
            stored, offsets = self._cached(addresses, storage)
        if not (records["mode"] == IMAGE_MODES["jpg"]).any():
            make_views(stored, offsets, heights, widths, indices, epoch_key, self.parameters, self.levels, out, first)
            return
        decoded = np.empty(int((3 * heights * widths).max()), np.uint8)
        pixels = _read_only(decoded)
        start = np.zeros(1, np.int64)
        for row, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            height, width = int(heights[row]), int(widths[row])
            jpeg = stored[offset : offset + length]
            problem = None
            # From a JPEG of another size, FFCV would decode what fits and leave the rest of the memory unwritten.
            size = _jpeg_size(jpeg.data)
            if size is not None and size != (height, width):
                problem = f"a JPEG of {size[1]}x{size[0]} pixels, recorded as {width}x{height}"
            elif size is None or imdecode(jpeg, decoded, height, width, height, width, 0, 0, 1, 1, False, False) != 0:
                problem = "not a whole JPEG"
            if problem is not None:
                raise InputError(
                    f"{self.path}: image {indices[row]} of the beton is {problem}; delete the beton and write it again"
                )
            one = slice(row, row + 1)
            arguments = start, heights[one], widths[one], indices[one]
            make_views(pixels, *arguments, epoch_key, self.parameters, self.levels, out, first + row)

    def _cached(self, addresses: IndexArray, storage: Any) -> tuple[npt.NDArray[np.uint8], IndexArray]:
        """Return the pages that FFCV has read, and the offset in them of each address of the file."""
        pages, _, _, page_to_slot = storage
        slots = page_to_slot[addresses // self.page_bytes].astype(np.int64)
        return _read_only(pages.reshape(-1)), slots * self.page_bytes + addresses % self.page_bytes

    def _read(self, file: int, addresses: IndexArray, lengths: IndexArray) -> tuple[npt.NDArray[np.uint8], IndexArray]:
        """Copy parts of a file, and return the copy with the offset of each part in it.

        FFCV would map the file instead, and truncating a mapped file kills the process with a bus error.

        Raises:
            InputError: the file ends before the end of a part.
        """
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        stored = np.empty(offsets[-1], np.uint8)
        window = stored.data
        for address, start, stop in zip(addresses.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if os.preadv(file, [window[start:stop]], address) != stop - start:
                raise InputError(f"{self.path}: the beton was truncated while it was being read; write it again")
        return _read_only(stored), offsets[:-1]


def _jpeg_size(jpeg: memoryview) -> tuple[int, int] | None:
    """Return height and width from the frame header, the first segment SOF0 to SOF15, or None if it is not found."""
    position = 2
    while position + 9 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # these three are not frames
            return jpeg[position + 5] << 8 | jpeg[position + 6], jpeg[position + 7] << 8 | jpeg[position + 8]
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:  # not a segment with a length
            return None
        position += 2 + (jpeg[position + 2] << 8 | jpeg[position + 3])
    return None


def _read_only(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a read-only view, the only type for which the kernels are compiled."""
    view = array.view()
    view.flags.writeable = False
    return view


def view_parameters(augmentation: AugmentationConfig, image_size: int) -> ViewParameters:
    """Return the kernels' parameters for an augmentation and views of `image_size` pixels."""
    crop, jitter, blur, solarisation = (
        augmentation.crop,
        augmentation.jitter,
        augmentation.blur,
        augmentation.solarisation,
    )
    margin = EVALUATION_MARGIN if image_size > PHOTOGRAPH_SIZE else 1.0
    return ViewParameters(
        crop=crop is not None,
        scale_low=crop.scale[0] if crop else 1.0,
        scale_high=crop.scale[1] if crop else 1.0,
        ratio_low=crop.ratio[0] if crop else 1.0,
        ratio_high=crop.ratio[1] if crop else 1.0,
        resampling=FILTERS[crop.interpolation] if crop else BICUBIC,
        evaluation_resize=round(image_size * margin),
        shift=augmentation.shift,
        flip_probability=float(augmentation.flip_probability),
        jitter_probability=float(jitter.probability) if jitter else 0.0,
        brightness=float(jitter.brightness) if jitter else 0.0,
        contrast=float(jitter.contrast) if jitter else 0.0,
        saturation=float(jitter.saturation) if jitter else 0.0,
        hue=float(jitter.hue) if jitter else 0.0,
        grayscale_probability=float(augmentation.grayscale_probability),
        blur_probability=float(blur.probability) if blur else 0.0,
        sigma_low=float(blur.sigma[0]) if blur else 1.0,
        sigma_high=float(blur.sigma[1]) if blur else 1.0,
        solarisation_probability=float(solarisation.probability) if solarisation else 0.0,
        solarisation_threshold=solarisation.threshold if solarisation else 256,
    )


def compile_kernels() -> None:
    """Compile the kernels that the loaders need into numba's cache, so that no later process waits for it."""
    pixels = _read_only(np.zeros(3, np.uint8))
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    parameters = view_parameters(AugmentationConfig(), image_size=1)
    for levels in LEVELS.values():
        out = np.empty((1, 1, 1, 1, 3), levels.dtype)
        make_views(pixels, zero, one, one, zero, np.uint64(0), parameters, levels, out, 0)
