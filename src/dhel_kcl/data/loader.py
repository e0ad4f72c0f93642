"""Load batches of random views: FFCV reads and schedules, and the kernels of this package decode and augment.

Equal arguments give equal bytes, for any number of workers, in any process, over any number of ranks taken together,
and after any interruption.
"""

import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from torch import Tensor

from dhel_kcl.data.beton import open_beton
from dhel_kcl.data.decoder import ViewDecoder
from dhel_kcl.data.ffcv_import import importing_ffcv, preserved_thread_counts
from dhel_kcl.data.order import Epoch, EpochOrder, IndexArray
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import AugmentationConfig

with importing_ffcv():
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline import Compiler, PipelineSpec

POLL_SECONDS = 0.5

Batch = tuple[Tensor, Tensor, Tensor]
"""Views (V, B, S, S, 3), labels (B,) and indices (B,)."""


class _ViewLoader:
    """Base class of both loaders, which differ in the number of views, the shape of an item and a few defaults."""

    num_views: int

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
        os_cache: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        info = open_beton(path)
        if drop_last and info.num_images < batch_size:
            raise InputError(
                f"{path}: a batch of {batch_size} is larger than the data set of {info.num_images} images; "
                f"lower the batch size"
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} is not one of the {world_size} ranks 0 to {world_size - 1}")
        if batch_size % world_size:
            raise InputError(
                f"a batch of {batch_size} cannot be divided evenly among {world_size} ranks; use a multiple of it"
            )
        self.path = path
        self.num_images = info.num_images
        self.classes = info.classes
        self.num_workers = num_workers
        self.device = torch.device(device)
        self._settings = {
            "sha256 of the beton": info.sha256,
            "views": self.num_views,
            "batch_size": batch_size,
            "image_size": image_size,
            "augmentation": augmentation.model_dump_json(),
            "seed": seed,
            "shuffle": shuffle,
            "drop_last": drop_last,
        }
        self._epoch = self._batch = self._first_batch = 0
        self._order = EpochOrder(
            info.num_images,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        decoder = ViewDecoder(
            path,
            num_views=self.num_views,
            image_size=image_size,
            augmentation=augmentation,
            seed=seed,
            num_workers=num_workers,
            for_gpu=self.device.type == "cuda",
            page_bytes=info.page_bytes,
        )
        with preserved_thread_counts(), _uncompiled_stages():
            # The workers are threads of this class; FFCV's num_workers sets the number of numba threads.
            self._loader = Loader(
                str(path),
                batch_size=batch_size // world_size,
                num_workers=1,
                os_cache=os_cache,
                order=self._order,
                pipelines={"image": PipelineSpec("image", decoder=decoder), "label": None},
                drop_last=False,
            )
        self._labels = torch.from_numpy(self._loader.reader.metadata["f1"].astype("int64"))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; each completed iteration advances it by one."""
        self._epoch, self._batch, self._first_batch = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position, to save with a checkpoint; in a loop, it is after the batch yielded last.

        The state is valid for any number of workers and ranks.

        Returns:
            `epoch`; `batch`, the number of batches of the epoch already yielded; and `settings`, which determine the
            content of the batches.
        """
        epoch, batch = self._epoch, self._batch
        if batch == len(self):
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch, "settings": dict(self._settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the next iteration at the position in `state`; the iteration after that starts the next epoch.

        Raises:
            InputError: the state belongs to another data set or other settings, or is not the state of a loader.
        """
        try:
            epoch, batch, settings = int(state["epoch"]), int(state["batch"]), dict(state["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path}: not the state of a loader ({error!r}); restart the epoch") from error
        names = sorted(settings.keys() | self._settings.keys())
        if changed := [name for name in names if settings.get(name) != self._settings.get(name)]:
            raise InputError(
                f"{self.path}: the state was saved with another {', another '.join(changed)}; "
                "resume with the settings of the interrupted run"
            )
        if epoch < 0 or not 0 <= batch < len(self):
            raise InputError(f"{self.path}: the state names batch {batch} of {len(self)} in epoch {epoch}")
        self._epoch, self._batch, self._first_batch = epoch, batch, batch

    def _batches(self) -> Generator[Batch, None, None]:
        """Yield the remaining batches of the epoch, on the device."""
        epoch, first = self._epoch, self._first_batch
        self._first_batch = 0
        self._batch = first
        batches = self._host_batches(epoch, first)
        if self.device.type == "cuda":
            batches = _one_ahead(batches, self.device)
        with closing(batches):
            for number, batch in enumerate(batches, start=first + 1):
                self._epoch, self._batch = epoch, number
                yield batch
        self._epoch, self._batch = epoch + 1, 0

    def _host_batches(self, epoch: int, first: int) -> Generator[Batch, None, None]:
        open_beton(self.path)  # it may have changed since the loader was made
        process = os.getpid()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="views")
        file = self.path.open("rb")
        thread: EpochIterator | None = None
        try:
            self._order.epoch, self._order.first_batch = Epoch(epoch, pool, file.fileno()), first
            with preserved_thread_counts():
                self._loader.next_epoch = epoch
                thread = iter(self._loader)
            # FFCV's thread sets torch's thread count once more before its first batch.
            with preserved_thread_counts():
                result = _next_result(thread)
            while result is not None:
                views, indices = result
                index = torch.from_numpy(indices)
                yield views, self._labels[index], index
                if os.getpid() != process:
                    raise RuntimeError("this loop began before the fork; start a new iteration in the child")
                result = _next_result(thread)
        finally:
            if os.getpid() == process:  # threads do not survive a fork
                if thread is not None:
                    _stop(thread)
                pool.shutdown()
            file.close()
        open_beton(self.path)  # if it has changed meanwhile, so have the views


class TwoViewLoader(_ViewLoader):
    """Two independent random views of every image of a beton.

    Iterating yields `(view1, view2, label, index)` on the device: views (B, 3, S, S), float32 in [0, 1], channels
    last; labels and indices (B,), int64. The caller may keep the tensors. A view is a function of the seed, the epoch,
    the index of the image and the number of the view, so it does not depend on workers, ranks, batches or order.

    Each rank gets its share of every batch: at every step, the shares of all ranks form the batch of a single process.

    Example:
        >>> loader = TwoViewLoader(path, batch_size=256, image_size=32, augmentation=augmentation, seed=0)
        >>> loader.load_state_dict(checkpoint["loader"])
        >>> for view1, view2, label, index in loader: ...

    Args:
        path: a beton that `write_beton` wrote.
        batch_size: images in a batch, over all ranks; a multiple of `world_size`.
        image_size: S, height and width of a view, in pixels.
        augmentation: how a view is made.
        seed: seed of the order and, independently, of the views.
        num_workers: threads that make views.
        device: where the tensors go. They are copied to a GPU as uint8, one batch ahead of the one in use.
        shuffle: permute the images anew in every epoch.
        drop_last: leave out the last batch if it is not full.
        os_cache: read images one by one, through the operating system's cache; otherwise FFCV reads the whole pages
            that the next batches need.
        rank: which share of each batch to load.
        world_size: number of ranks.

    Raises:
        InputError: the beton is damaged, or has less than a batch with `drop_last`, or ranks cannot get equal shares.
    """

    num_views = 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Iterate over the rest of the epoch; leaving the loop early stops its threads.

        Raises:
            InputError: the beton has changed since the loader was created.
            RuntimeError: a thread died, or the loop continues in a process forked from the one in which it began.
        """
        with closing(self._batches()) as batches:
            for (first, second), label, index in batches:
                yield _channels_last(first), _channels_last(second), label, index


class OneViewLoader(_ViewLoader):
    """One view of every image of a beton, by default the deterministic one for evaluation.

    Iterating yields `(view, label, index)`, with shapes and types as in `TwoViewLoader`. Without an augmentation, an
    image that has the view's size is left as it is; otherwise its shorter side is resized (antialiased bicubic) to
    the view's size, or to 256/224 of it for views above 64 pixels, and the centre is cut out.

    Args:
        path: a beton that `write_beton` wrote.
        batch_size: images in a batch, over all ranks; a multiple of `world_size`.
        image_size: S, height and width of a view, in pixels.
        augmentation: how a random view is made; None for the evaluation view.
        seed: seed of the order and, independently, of the views.
        num_workers: threads that make views.
        device: where the tensors go, as in `TwoViewLoader`.
        shuffle: permute the images anew in every epoch.
        drop_last: leave out the last batch if it is not full; otherwise a rank may get no share of it.
        os_cache: as in `TwoViewLoader`.
        rank: which share of each batch to load.
        world_size: number of ranks.

    Raises:
        InputError: the beton is damaged, or has less than a batch with `drop_last`, or ranks cannot get equal shares.
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
        os_cache: bool = True,
        rank: int = 0,
        world_size: int = 1,
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
            os_cache=os_cache,
            rank=rank,
            world_size=world_size,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over the rest of the epoch, as in `TwoViewLoader`."""
        with closing(self._batches()) as batches:
            for (view,), label, index in batches:
                yield _channels_last(view), label, index


def _channels_last(view: Tensor) -> Tensor:
    """Permute (B, S, S, 3) to (B, 3, S, S) without copying."""
    return view.permute(0, 3, 1, 2)


def _one_ahead(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Copy the next batch to the GPU while the caller works on the current one; the host never waits for a copy."""
    copies = torch.cuda.Stream(device)
    previous: tuple[Batch, torch.cuda.Event] | None = None
    for host_views, host_label, host_index in batches:
        with torch.cuda.stream(copies):
            views = host_views.to(device, non_blocking=True).to(torch.float32).div_(255)
            label = host_label.pin_memory().to(device, non_blocking=True)
            index = host_index.pin_memory().to(device, non_blocking=True)
        upcoming = (views, label, index), copies.record_event()
        if previous is not None:
            yield _handed_over(*previous, device)
        previous = upcoming
    if previous is not None:
        yield _handed_over(*previous, device)


def _handed_over(batch: Batch, ready: torch.cuda.Event, device: torch.device) -> Batch:
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    for tensor in batch:
        tensor.record_stream(stream)
    return batch


@contextmanager
def _uncompiled_stages() -> Iterator[None]:
    """Run FFCV's stages as plain Python; the only stage here calls kernels that are already compiled."""
    enabled = Compiler.is_enabled
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)


def _next_result(thread: EpochIterator) -> tuple[Tensor, IndexArray] | None:
    """Wait for the next batch and return it, or None at the end of the epoch.

    FFCV's own `next` waits forever once its thread has died.

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
        views, indices = result
        return views, indices


def _stop(thread: EpochIterator) -> None:
    """End FFCV's threads after the batch they are working on, and wait for them."""
    thread.iter_ixes = iter(())
    while thread.is_alive():
        # The thread may be waiting for room in the queue.
        with suppress(Empty):
            thread.output_queue.get(timeout=0.01)
    thread.close()
    if executor := getattr(thread.memory_context, "executor", None):
        for reader in executor.threads:
            reader.join()
