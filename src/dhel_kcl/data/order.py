"""The order of the images: a function of the seed and the epoch, divided among ranks batch by batch."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dhel_kcl.data.ffcv_import import importing_ffcv
from dhel_kcl.seeding import derive_seed

with importing_ffcv():
    from ffcv.loader import Loader
    from ffcv.traversal_order.base import TraversalOrder

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Epoch:
    """What the decoder needs to know about the current epoch.

    Attributes:
        number: number of the epoch.
        pool: the threads among which a batch is divided.
        file: descriptor of the open beton.
    """

    number: int
    pool: ThreadPoolExecutor
    file: int


class EpochIndices(np.ndarray[tuple[Any, ...], np.dtype[np.int64]]):
    """The order of an epoch; its slices, which FFCV passes to the decoder, carry the epoch too."""

    epoch: Epoch | None

    def __array_finalize__(self, parent: Any) -> None:
        if isinstance(parent, EpochIndices):
            self.epoch = parent.epoch


class EpochOrder(TraversalOrder):  # type: ignore[misc]
    """The order of one rank: its share of each batch of the whole epoch.

    Args:
        num_images: images in the beton.
        batch_size: images in a batch, over all ranks.
        seed: seed of the permutations.
        shuffle: permute the images anew in every epoch.
        drop_last: leave out the last batch if it is not full.
        rank: which share of each batch.
        world_size: number of ranks.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int,
        world_size: int,
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.first_batch = 0
        self.epoch: Epoch | None = None

    def __call__(self, loader: Loader) -> "EpochOrder":
        """Return this order; FFCV accepts only an instance here, but calls it like a class."""
        return self

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.num_images // self.batch_size if self.drop_last else -(-self.num_images // self.batch_size)

    def sample_order(self, epoch: int) -> EpochIndices:
        """Return the indices of this rank's images, from batch `first_batch` on."""
        if self.shuffle:
            generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "order", epoch)))
            order = generator.permutation(self.num_images)
        else:
            order = np.arange(self.num_images)
        starts = [self.batch_size * batch for batch in range(self.first_batch, len(self))]
        shares = [
            np.array_split(order[start : start + self.batch_size], self.world_size)[self.rank] for start in starts
        ]
        indices = np.concatenate([np.empty(0, np.int64), *shares]).astype(np.int64).view(EpochIndices)
        indices.epoch = self.epoch
        return indices
