"""Outputs of the frozen encoder, computed once for the stages that measure them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dhel_kcl.console import console
from dhel_kcl.data.loader import OneViewLoader, TwoViewLoader
from dhel_kcl.evaluation.feature_cache import REPRESENTATIONS, save_features
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.experiment.grid import Run
from dhel_kcl.jobs.job import Job
from dhel_kcl.training.devices import prepare_device
from dhel_kcl.training.encoder import Encoder, load_encoder
from dhel_kcl.training.outcome import read_outcome
from dhel_kcl.training.tensor_files import is_finite

BATCH_SIZE = 256  # fixed, because sums may round differently with another batch size


def extract_features(
    run: Run, compute: ComputeConfig, encoder_path: Path, outcome: Path, betons: dict[str, Path], output: Path
) -> None:
    """Write ``h`` and ``z`` of the train and test images, and of two random views of the test images.

    The file (safetensors) holds ``{train,test}_{h,z}`` ``(N, dim)``, float32, and ``{train,test}_label`` ``(N,)``,
    int64, of the unaugmented images. It also holds ``test_view{1,2}_{h,z}`` of positive pairs drawn by the training
    augmentation, on which alignment is measured. The encoder is in evaluation mode and is never modified. For a
    diverged run, the file holds no tensors. If ``h`` or ``z`` is not finite, the reason replaces its tensors.

    Args:
        run: the run that trained the encoder.
        compute: device and threads.
        encoder_path: weights written by pretraining.
        outcome: file that says how pretraining ended.
        betons: betons of the splits ``train`` and ``test``.
        output: path of the features.

    Raises:
        InputError: an input is missing or damaged.
    """
    if read_outcome(outcome).diverged:
        save_features({}, output)
        return
    device = prepare_device(compute)
    encoder = load_encoder(run.dataset.encoder, encoder_path).to(device).eval()
    tensors: dict[str, Tensor] = {}
    image_size, workers = run.dataset.image_size, compute.loader_workers
    with torch.inference_mode():
        for split, beton in betons.items():
            views = OneViewLoader(
                beton, batch_size=BATCH_SIZE, image_size=image_size, num_workers=workers, device=device
            )
            names: tuple[str, ...] = (f"{split}_h", f"{split}_z", f"{split}_label")
            tensors |= _concatenate(names, [(*_outputs(encoder, view), label) for view, label, _ in views])
        pairs = TwoViewLoader(
            betons["test"],
            batch_size=BATCH_SIZE,
            image_size=image_size,
            augmentation=run.dataset.augmentation,
            seed=run.seed,
            num_workers=workers,
            device=device,
            shuffle=False,
            drop_last=False,
        )
        batches = [(*_outputs(encoder, view1), *_outputs(encoder, view2)) for view1, view2, _, _ in pairs]
        names = ("test_view1_h", "test_view1_z", "test_view2_h", "test_view2_z")
        tensors |= _concatenate(names, batches)
    not_measured = {}
    for representation in REPRESENTATIONS:
        own = {name: tensor for name, tensor in tensors.items() if name.endswith(f"_{representation}")}
        if infinite := [name for name, tensor in own.items() if not is_finite(tensor)]:
            not_measured[representation] = f"the encoder's outputs {', '.join(infinite)} hold NaN or infinity"
            console.print(f"{run.id}: {representation} not measured: {not_measured[representation]}")
            tensors = {name: tensor for name, tensor in tensors.items() if name not in own}
    save_features(tensors, output, not_measured)


def _outputs(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    h, z = encoder(images)
    return h.float(), z.float()


def _concatenate(names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    columns = zip(*batches, strict=True)
    return {name: torch.cat([part.cpu() for part in parts]) for name, parts in zip(names, columns, strict=True)}


def run(job: Job) -> None:
    """Compute the features of one run's frozen encoder.

    Raises:
        InputError: see `extract_features`.
    """
    read, betons = job.reads, {split: job.reads[f"{split}.beton"] for split in ("train", "test")}
    with job.recorded({"run": job.run.seed}):
        encoder, outcome = read["encoder.safetensors"], read["outcome.json"]
        extract_features(job.run, job.config.compute, encoder, outcome, betons, job.writes["features.safetensors"])
