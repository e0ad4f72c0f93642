"""Batches of random views: FFCV reads and schedules, the kernels of this package decode and augment.

Equal arguments give equal bytes, for any number of workers and in any process.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dhel_kcl.config import AugmentationConfig
from dhel_kcl.data.beton import open_beton
from dhel_kcl.data.ffcv_side_effects import importing_ffcv, preserved_thread_counts
from dhel_kcl.data.kernels import BICUBIC, FILTERS, ViewParameters, make_views
from dhel_kcl.errors import InputError
from dhel_kcl.seeding import derive_seed

with importing_ffcv():
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.libffcv import imdecode
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline import Compiler, PipelineSpec
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
    from ffcv.traversal_order.base import TraversalOrder

IndexArray = npt.NDArray[np.int64]

EVALUATION_MARGIN = 256 / 224
"""Photographs are resized to this many times the view's size before the centre is cut out (torchvision's reference)."""
PHOTOGRAPH_SIZE = 64
"""Views larger than this many pixels are taken for photographs."""
POLL_SECONDS = 0.5


class _EpochIndices(npt.NDArray[np.int64]):
    """The order of an epoch; its slices, which FFCV hands to the decoder, know the epoch and its threads too."""

    epoch: int
    pool: ThreadPoolExecutor | None

    def __array_finalize__(self, parent: Any) -> None:
        if isinstance(parent, _EpochIndices):
            self.epoch, self.pool = parent.epoch, parent.pool


class _EpochOrder(TraversalOrder):  # type: ignore[misc]
    """Sequential, or a permutation that is a hash of the seed and the epoch."""

    def __init__(self, num_images: int, seed: int, shuffle: bool) -> None:
        self.num_images, self.seed, self.shuffle = num_images, seed, shuffle
        self.pool: ThreadPoolExecutor | None = None

    def __call__(self, loader: Loader) -> "_EpochOrder":
        """Stand for the class that FFCV wants to instantiate: it only accepts an instance, and calls it."""
        return self

    def sample_order(self, epoch: int) -> _EpochIndices:
        if self.shuffle:
            generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "order", epoch)))
            order = generator.permutation(self.num_images)
        else:
            order = np.arange(self.num_images)
        indices = order.astype(np.int64).view(_EpochIndices)
        indices.epoch, indices.pool = epoch, self.pool
        return indices


class _ViewDecoder(Operation):  # type: ignore[misc]
    """From indices to the views of the images: FFCV's first and only stage for the image field."""

    def __init__(
        self, num_views: int, image_size: int, parameters: ViewParameters, seed: int, num_workers: int
    ) -> None:
        super().__init__()
        self.shape = (num_views, image_size, image_size, 3)
        self.parameters, self.seed, self.num_workers = parameters, seed, num_workers

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        dtype = np.dtype("u1")
        return replace(previous_state, shape=self.shape, dtype=dtype), AllocationQuery(self.shape, dtype)

    def generate_code(self) -> Any:
        return self.decode

    def decode(
        self, indices: _EpochIndices, out: Any, metadata: Any, storage: Any
    ) -> tuple[npt.NDArray[np.uint8], IndexArray] | Exception:
        """Fill `out` (B, views, S, S, 3); an exception is returned, since one raised here would end FFCV's thread."""
        try:
            epoch_key = np.uint64(derive_seed(self.seed, "augmentation", indices.epoch))
            pool, plain = indices.pool, np.asarray(indices)
            assert pool is not None  # each epoch has one
            bounds = np.linspace(0, len(plain), self.num_workers + 1).astype(int)
            work = [
                pool.submit(self._fill, plain[part], metadata[plain[part]], storage, epoch_key, out[part])
                for part in itertools.starmap(slice, itertools.pairwise(bounds))
                if part.stop > part.start
            ]
            for share in work:
                share.result()
        except Exception as error:
            return error
        return out, plain

    def _fill(self, indices: IndexArray, records: Any, storage: Any, epoch_key: np.uint64, out: Any) -> None:
        file, pointers, sizes = storage
        file = np.asarray(file)
        heights, widths = records["height"].astype(np.int64), records["width"].astype(np.int64)
        offsets = records["data_ptr"].astype(np.int64)
        if not (records["mode"] == IMAGE_MODES["jpg"]).any():
            make_views(file, offsets, heights, widths, indices, epoch_key, self.parameters, out)
            return
        decoded = np.empty(int((3 * heights * widths).max()), np.uint8)
        read_only = decoded.view()
        read_only.flags.writeable = False
        start = np.zeros(1, np.int64)
        lengths = sizes[np.searchsorted(pointers, records["data_ptr"])].astype(np.int64)
        for row, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            height, width = int(heights[row]), int(widths[row])
            imdecode(file[offset : offset + length], decoded, height, width, height, width, 0, 0, 1, 1, False, False)
            one = slice(row, row + 1)
            make_views(read_only, start, heights[one], widths[one], indices[one], epoch_key, self.parameters, out[one])


class _ViewLoader:
    """What both loaders share; they differ in the number of views and the shape of an item."""

    num_views: int

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        image_size: int,
        augmentation: AugmentationConfig,
        seed: int,
        num_workers: int,
        device: str | torch.device,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        info = open_beton(path)
        if drop_last and info.num_images < batch_size:
            raise InputError(
                f"{path}: a batch of {batch_size} needs more than the {info.num_images} images there are; "
                f"lower the batch size"
            )
        self.num_images = info.num_images
        self.classes = info.classes
        self.num_workers = num_workers
        self.device = torch.device(device)
        self._epoch = 0
        self._order = _EpochOrder(info.num_images, seed, shuffle)
        parameters = _view_parameters(augmentation, image_size)
        decoder = _ViewDecoder(self.num_views, image_size, parameters, seed, num_workers)
        with preserved_thread_counts(), _uncompiled_stages():
            # The workers are this class's own threads; FFCV's number counts numba's.
            self._loader = Loader(
                str(path),
                batch_size=batch_size,
                num_workers=1,
                os_cache=True,
                order=self._order,
                pipelines={"image": PipelineSpec("image", decoder=decoder), "label": None},
                drop_last=drop_last,
            )
        self._labels: IndexArray = self._loader.reader.metadata["f1"].astype(np.int64)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; each completed iteration advances it by one."""
        self._epoch = epoch

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield views (B, views, 3, S, S), labels and indices on the device."""
        epoch = self._epoch
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="views") as pool:
            with preserved_thread_counts():
                self._order.pool, self._loader.next_epoch = pool, epoch
                thread = iter(self._loader)
            try:
                # FFCV's thread sets torch's thread count once more, before its first batch.
                with preserved_thread_counts():
                    result = _next_result(thread)
                while result is not None:
                    yield self._to_device(*result)
                    result = _next_result(thread)
            finally:
                _stop(thread)
        self._epoch = epoch + 1

    def _to_device(self, pixels: npt.NDArray[np.uint8], indices: IndexArray) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.from_numpy(pixels), torch.from_numpy(self._labels[indices]), torch.from_numpy(indices.copy())
        if self.device.type != "cuda":
            return batch
        # On a stream of its own, the copy need not wait for the training step; FFCV reuses its buffer after it.
        copies = torch.cuda.Stream(self.device)
        with torch.cuda.stream(copies):
            views, label, index = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        copies.synchronize()
        for tensor in (views, label, index):
            tensor.record_stream(torch.cuda.current_stream(self.device))
        return views, label, index


class TwoViewLoader(_ViewLoader):
    """Two independent random views of every image of a beton.

    Iterating yields `(view1, view2, label, index)` on the device: views (B, 3, S, S), float32 in [0, 1], channels
    last; labels and indices (B,), int64. The tensors are the caller's to keep. A view is a function of the seed, the
    epoch, the image's index and which view it is, so it does not depend on workers, batches or order.

    Example:
        >>> loader = TwoViewLoader(path, batch_size=256, image_size=32, augmentation=augmentation, seed=0)
        >>> loader.set_epoch(3)
        >>> for view1, view2, label, index in loader: ...

    Args:
        path: a beton that `write_beton` wrote.
        batch_size: images in a batch.
        image_size: S, height and width of a view, in pixels.
        augmentation: how a view is made.
        seed: of the order and, independently, of the views.
        num_workers: threads that make views.
        device: where the tensors go; they travel as uint8.
        shuffle: permute the images anew in every epoch.
        drop_last: leave out the last batch if it is not full.

    Raises:
        InputError: the beton is damaged, or with `drop_last` holds less than one batch.
    """

    num_views = 2

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        image_size: int,
        augmentation: AugmentationConfig,
        seed: int,
        num_workers: int = 1,
        device: str | torch.device = "cpu",
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            path,
            batch_size=batch_size,
            image_size=image_size,
            augmentation=augmentation,
            seed=seed,
            num_workers=num_workers,
            device=device,
            shuffle=shuffle,
            drop_last=drop_last,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Iterate over one epoch; leaving the loop early stops its threads."""
        for views, label, index in self._batches():
            yield _to_float(views[:, 0]), _to_float(views[:, 1]), label, index


class OneViewLoader(_ViewLoader):
    """One view of every image of a beton, by default the deterministic one for evaluation.

    Iterating yields `(view, label, index)`, with shapes and types as in `TwoViewLoader`. Without an augmentation, an
    image that has the view's size is left as it is; otherwise its shorter side is resized (antialiased bicubic) to
    the view's size, or to 256/224 of it for views above 64 pixels, and the centre is cut out.

    Args:
        path: a beton that `write_beton` wrote.
        batch_size: images in a batch.
        image_size: S, height and width of a view, in pixels.
        augmentation: how a random view is made; None for the evaluation view.
        seed: of the order and, independently, of the views.
        num_workers: threads that make views.
        device: where the tensors go; they travel as uint8.
        shuffle: permute the images anew in every epoch.
        drop_last: leave out the last batch if it is not full.

    Raises:
        InputError: the beton is damaged, or with `drop_last` holds less than one batch.
    """

    num_views = 1

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        image_size: int,
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
        num_workers: int = 1,
        device: str | torch.device = "cpu",
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            path,
            batch_size=batch_size,
            image_size=image_size,
            augmentation=augmentation or AugmentationConfig(),
            seed=seed,
            num_workers=num_workers,
            device=device,
            shuffle=shuffle,
            drop_last=drop_last,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over one epoch; leaving the loop early stops its threads."""
        for views, label, index in self._batches():
            yield _to_float(views[:, 0]), label, index


def _to_float(view: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1], channels last."""
    # In the order of the memory: converting and transposing at once takes torch's slow path.
    return view.contiguous().to(torch.float32).div_(255).permute(0, 3, 1, 2)


def _view_parameters(augmentation: AugmentationConfig, image_size: int) -> ViewParameters:
    crop, jitter, blur = augmentation.crop, augmentation.jitter, augmentation.blur
    margin = EVALUATION_MARGIN if image_size > PHOTOGRAPH_SIZE else 1.0
    return ViewParameters(
        crop=crop is not None,
        scale_low=crop.scale[0] if crop else 1.0,
        scale_high=crop.scale[1] if crop else 1.0,
        ratio_low=crop.ratio[0] if crop else 1.0,
        ratio_high=crop.ratio[1] if crop else 1.0,
        resampling=FILTERS[crop.interpolation] if crop else BICUBIC,
        evaluation_resize=round(image_size * margin),
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
    )


@contextmanager
def _uncompiled_stages() -> Iterator[None]:
    """Have FFCV run its stages as plain Python: the one stage here only calls kernels that are compiled already."""
    enabled = Compiler.is_enabled
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)


def _next_result(thread: EpochIterator) -> tuple[npt.NDArray[np.uint8], IndexArray] | None:
    """Wait for the next batch; None at the end of the epoch.

    FFCV's own `next` waits for ever once its thread has died.

    Raises:
        Exception: whatever the decoder raised.
        RuntimeError: the thread died.
    """
    while True:
        try:
            item = thread.output_queue.get(timeout=POLL_SECONDS)
        except Empty:
            if thread.is_alive() or not thread.output_queue.empty():
                continue
            raise RuntimeError("the loader's thread ended before its epoch; its traceback is on stderr") from None
        if item is None:
            return None
        _, (result,) = item
        if isinstance(result, Exception):
            raise result
        pixels, indices = result
        return pixels, indices


def _stop(thread: EpochIterator) -> None:
    """End FFCV's thread after the batch it is working on, and wait for it."""
    thread.iter_ixes = iter(())
    while thread.is_alive():
        # The thread may be waiting for room in the queue.
        with suppress(Empty):
            thread.output_queue.get(timeout=0.01)
    thread.close()
