"""Contrastive pretraining of one run.

Two views of each image go through the encoder in one pass (so that batch normalisation sees both),
and the loss pulls their projections together. A checkpoint after every few epochs makes the run
resumable; it is removed when the final weights are written.
"""

import io
import math
import pickle
import time
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dhel_kcl.artifacts import atomic_path, sha256_json
from dhel_kcl.config import ComputeConfig, OptimizerConfig, Run
from dhel_kcl.data.beton import open_beton
from dhel_kcl.data.loader import TwoViewLoader
from dhel_kcl.devices import prepare_device
from dhel_kcl.errors import InputError
from dhel_kcl.losses import PairLoss, build_loss
from dhel_kcl.models import Encoder, build_encoder, save_encoder

_console = Console(stderr=True)


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1 over `warmup_steps`, then a half cosine to 0 at `total_steps`.

    Args:
        step: steps already taken, in [0, total_steps].
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up, in [0, total_steps).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def build_optimizer(encoder: nn.Module, config: OptimizerConfig, learning_rate: float) -> Optimizer:
    """SGD or LARS (timm's); weight decay spares batch normalisation, as in the public training code."""
    normalisation = {
        id(parameter)
        for module in encoder.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in normalisation], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) in normalisation], "weight_decay": 0.0},
    ]
    if config.name == "lars":
        from timm.optim.lars import Lars  # imported here because timm takes seconds to import

        return Lars(groups, lr=learning_rate, momentum=config.momentum)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=config.momentum)


def pretrain(run: Run, compute: ComputeConfig, beton: Path, identity: str, folder: Path) -> None:
    """Train one run and write ``encoder.safetensors``, ``training_log.csv`` and ``throughput.csv``.

    Args:
        run: what to train.
        compute: device, threads and how often to write a checkpoint.
        beton: the images.
        identity: digest of the settings and the code that the weights depend on; a checkpoint made under another one
            is not resumed.
        folder: the run's folder.

    Raises:
        InputError: the data cannot be used, or training diverged.
    """
    device = prepare_device(compute)
    loader = TwoViewLoader(
        beton,
        batch_size=run.batch_size,
        image_size=run.dataset.image_size,
        augmentation=run.augmentation,
        seed=run.seed,
        num_workers=compute.loader_workers,
        device=device,
    )
    encoder = build_encoder(run.dataset.encoder, run.seed).to(device)
    contrastive_loss = build_loss(run.loss)
    optimizer = build_optimizer(encoder, run.dataset.optimizer, run.learning_rate)
    total_steps = run.dataset.epochs * len(loader)
    warmup_steps = round(run.dataset.optimizer.warmup_fraction * total_steps)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, total_steps, warmup_steps))
    key = sha256_json([identity, open_beton(beton).sha256])
    checkpoint = Checkpoint(folder / "checkpoint.pt", key, encoder, optimizer, schedule)
    checkpoint.resume()

    with _progress() as progress:
        task = progress.add_task(run.id, total=total_steps, completed=checkpoint.epoch * len(loader), loss=math.nan)
        for epoch in range(checkpoint.epoch, run.dataset.epochs):
            started = time.monotonic()
            loader.set_epoch(epoch)
            rows: list[dict[str, float]] = []
            for view1, view2, _, _ in loader:
                rate = float(schedule.get_last_lr()[0])
                try:
                    row = train_step(encoder, contrastive_loss, optimizer, view1, view2)
                except ValueError as error:
                    raise InputError(
                        f"{run.id}: diverged in epoch {epoch + 1} at step {len(rows) + 1} of {len(loader)} ({error}); "
                        "lower optimizer.learning_rate"
                    ) from error
                schedule.step()
                rows.append(row)
                progress.update(task, advance=1, loss=row["loss"])
            means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in ("loss", "alignment", "energy")}
            step = (epoch + 1) * len(loader)
            checkpoint.log.append({"epoch": epoch + 1, "step": step, **means, "learning_rate": rate})
            seconds = time.monotonic() - started
            rate_of_images = len(loader) * run.batch_size / seconds
            checkpoint.throughput.append({"epoch": epoch + 1, "seconds": seconds, "images_per_second": rate_of_images})
            checkpoint.epoch = epoch + 1
            progress.console.print(
                f"epoch {epoch + 1}/{run.dataset.epochs}: loss {means['loss']:.4f}, "
                f"learning rate {rate:.4g}, {rate_of_images:.0f} images/s"
            )
            if checkpoint.epoch % compute.checkpoint_every_epochs == 0:
                checkpoint.save()

    _write_csv(folder / "training_log.csv", checkpoint.log)
    _write_csv(folder / "throughput.csv", checkpoint.throughput)
    save_encoder(encoder, folder / "encoder.safetensors")
    checkpoint.path.unlink(missing_ok=True)


def train_step(
    encoder: Encoder, contrastive_loss: PairLoss, optimizer: Optimizer, view1: Tensor, view2: Tensor
) -> dict[str, float]:
    """One optimiser step on a batch of positive pairs.

    Returns:
        The loss and its two terms, ``alignment`` and ``energy``, before the step.

    Raises:
        ValueError: the loss is not finite, or the projections are not.
    """
    encoder.train()
    _, z = encoder(torch.cat([view1, view2]))
    z1, z2 = z.chunk(2)
    terms = contrastive_loss.terms(z1, z2)
    loss = terms.alignment + terms.energy
    row = {"loss": loss.item(), "alignment": terms.alignment.item(), "energy": terms.energy.item()}
    if not math.isfinite(row["loss"]):
        raise ValueError(f"the loss is not finite: {row}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return row


class Checkpoint:
    """The state of a run between two epochs, and the file that holds it."""

    def __init__(self, path: Path, key: str, encoder: Encoder, optimizer: Optimizer, schedule: LambdaLR) -> None:
        self.path = path
        self.key = key
        self._parts: dict[str, Encoder | Optimizer | LambdaLR] = {
            "encoder": encoder,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        self.epoch = 0
        self.log: list[dict[str, float]] = []
        self.throughput: list[dict[str, float]] = []

    def save(self) -> None:
        """Write the state, replacing the previous checkpoint only when the new one is whole."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        content = io.BytesIO()
        torch.save(
            {"key": self.key, "epoch": self.epoch, "log": self.log, "throughput": self.throughput, **state}, content
        )
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def resume(self) -> None:
        """Continue from the file if it is whole and was made under the same settings; else start afresh."""
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            _console.print(f"{self.path}: unreadable checkpoint ({type(error).__name__}); starting from epoch 0")
            return
        if state["key"] != self.key:
            _console.print(f"{self.path}: made under other settings or code; starting from epoch 0")
            return
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.epoch, self.log, self.throughput = state["epoch"], state["log"], state["throughput"]
        _console.print(f"{self.path}: resuming after epoch {self.epoch}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        console=_console,
    )


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
