"""Monitor an encoder while it trains: online k-NN accuracy and effective rank on a sample of its training images."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.experiment.config import MonitorConfig
from dhel_kcl.metrics.embeddings import unit_rows
from dhel_kcl.metrics.knn import knn_accuracy
from dhel_kcl.metrics.spectrum import effective_rank
from dhel_kcl.training.encoder import Encoder

BATCH_SIZE = 250
QUERIES = 2000  # how many images of the sample are classified by the rest, at most half of it


class Monitor:
    """Measures the encoder on one random sample of unaugmented images, the same at every epoch and in every run.

    The encoder's state does not change.

    Args:
        config: how often and on how many images to measure.
        beton: the pretraining images.
        image_size: height and width of a view, in pixels.
        num_workers: threads that make views.
        device: where the encoder is.
    """

    def __init__(
        self, config: MonitorConfig, beton: Path, *, image_size: int, num_workers: int, device: torch.device
    ) -> None:
        self.config = config
        self._images = OneViewLoader(
            beton, batch_size=BATCH_SIZE, image_size=image_size, num_workers=num_workers, device=device, shuffle=True
        )

    def is_due(self, epoch: int) -> bool:
        """Whether to measure after this epoch, counted from 1."""
        return self.config.every_epochs is not None and epoch % self.config.every_epochs == 0

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """Return ``effective_rank_h``, ``effective_rank_z`` and, if the images have labels, ``knn_top1`` of h.

        The effective ranks are of l2-normalised rows, as in the stage `analyse`. Images without a label are left out of
        ``knn_top1``, which needs two classes. A value is left out if an embedding has no direction (a collapse to
        zero).
        """
        was_training = encoder.training
        encoder.eval()
        outputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._images.set_epoch(0)
        with torch.no_grad():
            for views, labels, _ in self._images:
                outputs.append((*encoder(views), labels))
                if BATCH_SIZE * len(outputs) >= self.config.images:
                    break
        encoder.train(was_training)
        h, z, label = (torch.cat(parts)[: self.config.images].cpu() for parts in zip(*outputs, strict=True))
        measured: dict[str, float] = {}
        for name, x in (("effective_rank_h", h), ("effective_rank_z", z)):
            with suppress(ValueError):
                measured[name] = effective_rank(unit_rows(x))
        h, label = h[label >= 0], label[label >= 0]
        bank = len(h) - min(QUERIES, len(h) // 2)
        if len(h) >= 4 and len(label[:bank].unique()) >= 2:
            with suppress(ValueError):
                measured["knn_top1"] = knn_accuracy(
                    h[:bank], label[:bank], h[bank:], label[bank:], k=min(self.config.neighbours, bank)
                )
        return measured
