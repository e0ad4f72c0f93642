"""Linear evaluation on augmented images: the public code's protocol.

The encoder is frozen and in evaluation mode. A linear classifier, initialised to zero, is trained by SGD on the
features of random views of the training images. Its learning rate falls linearly to 0. Nothing is selected, so the test
set is used once.
"""

import math
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from dhel_kcl.console import console
from dhel_kcl.data.beton import open_beton
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.classifier import why_not_classified
from dhel_kcl.experiment.config import ComputeConfig, ProbeConfig
from dhel_kcl.experiment.grid import Run
from dhel_kcl.files import write_json
from dhel_kcl.jobs.job import Job
from dhel_kcl.seeding import derive_seed
from dhel_kcl.training.devices import prepare_device
from dhel_kcl.training.encoder import Encoder, load_encoder
from dhel_kcl.training.outcome import read_outcome

TEST_BATCH_SIZE = 256
UNLABELLED = -1


def augmented_linear_probe(
    encoder: Encoder,
    train: Path,
    test: Path,
    config: ProbeConfig,
    *,
    image_size: int,
    seed: int,
    num_workers: int = 1,
) -> dict[str, float]:
    """Train a linear classifier on augmented images and test it on unaugmented ones.

    Unlabelled images are ignored. A test image whose class has no training images counts as misclassified, since the
    classifier cannot predict that class.

    Source: the evaluation code of github.com/AndrewAtanov/simclr-pytorch.

    Args:
        encoder: the encoder, on the compute device; it is put into evaluation mode and not trained.
        train: beton of the labelled training images.
        test: beton of the test images.
        config: augmentation of the training images, epochs, batch size and optimiser settings.
        image_size: side of the images in pixels.
        seed: seed of the order and the views; both are unrelated to those that pretraining derives from it.
        num_workers: number of threads that make views.

    Returns:
        ``augmented_top1`` and ``augmented_top5`` in [0, 1], of the classifier after the last step.

    Raises:
        InputError: a beton is damaged, or the classes of the two betons differ.
        ValueError: the training images have labels of fewer than two classes, no test image has a label, or training
            the classifier diverged.
    """
    device = next(encoder.parameters()).device
    batch_size, workers = config.batch_size, num_workers
    views = OneViewLoader(
        train,
        batch_size=batch_size,
        image_size=image_size,
        augmentation=config.augmentation,
        seed=derive_seed(seed, "augmented_probe"),
        num_workers=workers,
        device=device,
        shuffle=True,
    )
    tests = OneViewLoader(test, batch_size=TEST_BATCH_SIZE, image_size=image_size, num_workers=workers, device=device)
    if views.classes != tests.classes:
        raise InputError(f"{test}: its classes are not those of {train}; write both again from one data set")
    train_counts, test_counts = (_class_counts(beton) for beton in (train, test))
    if reason := why_not_classified(train_counts, test_counts):
        raise ValueError(reason)
    encoder.eval()
    classifier = nn.Linear(encoder.backbone.output_dim, len(views.classes)).to(device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = SGD(
        classifier.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    total_steps = config.epochs * len(views)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / total_steps)
    for _ in track(range(config.epochs), "linear probe on augmented images", console=console):
        for images, labels, _ in views:
            loss = functional.cross_entropy(classifier(_features(encoder, images)), labels, ignore_index=UNLABELLED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        scores = torch.cat([classifier(_features(encoder, images)) for images, _, _ in tests])
        truth = torch.cat([labels for _, labels, _ in tests])
    if not scores.isfinite().all():
        raise ValueError("the linear probe on augmented images diverged; a lower probe.learning_rate may help")
    scores, truth = scores[truth != UNLABELLED], truth[truth != UNLABELLED]
    trained = torch.tensor(train_counts, device=device) > 0
    scores = scores.masked_fill(~trained, -math.inf)
    ranked = (scores.topk(min(5, len(views.classes)), dim=1).indices == truth[:, None]) & trained[truth, None]
    top1, top5 = (float(hits.double().mean()) for hits in (ranked[:, 0], ranked.any(dim=1)))
    return {"augmented_top1": top1, "augmented_top5": top5}


def _class_counts(beton: Path) -> list[int]:
    """Return the number of images of each class in a beton."""
    info = open_beton(beton)
    return [info.class_counts.get(name, 0) for name in info.classes]


@torch.no_grad()
def _features(encoder: Encoder, images: Tensor) -> Tensor:
    features: Tensor = encoder.backbone(images)
    return features


def evaluate(
    run: Run, compute: ComputeConfig, encoder_path: Path, outcome: Path, betons: dict[str, Path], output: Path
) -> None:
    """Evaluate one run with its data set's `probe` settings and write the accuracies as JSON.

    For a diverged run, the file is an empty object. If the accuracies cannot be measured, ``not_measured`` gives the
    reason.

    Args:
        run: the run that trained the encoder.
        compute: device and threads.
        encoder_path: weights written by pretraining.
        outcome: file that says how pretraining ended.
        betons: betons of the splits ``train`` and ``test``.
        output: path of the JSON file.

    Raises:
        InputError: the data set has no `probe`, or an input is missing or damaged.
    """
    if run.dataset.probe is None:
        raise InputError(f"datasets.{run.dataset.name}.probe: missing; name a protocol or give its values")
    if read_outcome(outcome).diverged:
        write_json(output, {})
        return
    encoder = load_encoder(run.dataset.encoder, encoder_path).to(prepare_device(compute))
    measured: dict[str, float | str]
    try:
        measured = {
            **augmented_linear_probe(
                encoder,
                betons["train"],
                betons["test"],
                run.dataset.probe,
                image_size=run.dataset.image_size,
                seed=run.seed,
                num_workers=compute.loader_workers,
            )
        }
    except ValueError as error:
        measured = {"not_measured": str(error)}
        console.print(f"{run.id}: not measured: {error}")
    write_json(output, measured)


def run(job: Job) -> None:
    """Evaluate one run with the public code's protocol.

    Raises:
        InputError: see `evaluate`.
    """
    read, betons = job.reads, {split: job.reads[f"{split}.beton"] for split in ("train", "test")}
    (output,) = job.writes.values()
    with job.recorded({"run": job.run.seed}):
        evaluate(job.run, job.config.compute, read["encoder.safetensors"], read["outcome.json"], betons, output)
