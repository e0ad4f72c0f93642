"""Accuracy of the linear probe on corrupted test images (after Hendrycks & Dietterich, ICLR 2019).

The encoder is frozen and in evaluation mode, and the classifier is the one that `linear_probe` fitted on the clean
training images. Nothing is fitted or selected here.

Images that were compressed as JPEG already are not corrupted by JPEG: compressing them again at about the same quality
changes them little, so that its severities would not be those of CIFAR-10-C.
"""

from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from threadpoolctl import threadpool_limits

from dhel_kcl.console import console
from dhel_kcl.data.beton import open_beton
from dhel_kcl.data.corrupt import SEVERITIES, Images, corrupt
from dhel_kcl.data.loader import OneViewLoader
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.classifier import LinearClassifier, load_classifier
from dhel_kcl.evaluation.features import BATCH_SIZE
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.experiment.grid import Run
from dhel_kcl.files import write_json
from dhel_kcl.jobs.job import Job
from dhel_kcl.training.devices import prepare_device
from dhel_kcl.training.encoder import Encoder, load_encoder
from dhel_kcl.training.outcome import read_outcome


def corrupted_accuracies(
    encoder: Encoder,
    classifier: LinearClassifier,
    test: Path,
    *,
    image_size: int,
    seed: int,
    num_workers: int = 1,
    batch_size: int = BATCH_SIZE,
) -> dict[str, list[float]]:
    """Classify the test images under every corruption at every severity.

    Args:
        encoder: the encoder, on the compute device; it is put into evaluation mode and not trained.
        classifier: a classifier of the backbone's features.
        test: beton of the test images.
        image_size: side of the images in pixels; they are corrupted at the size that the encoder sees.
        seed: seed of the noise.
        num_workers: number of threads that decode images.
        batch_size: number of images encoded at once.

    Returns:
        For each key of `SEVERITIES`, without ``jpeg`` if images were compressed so already, the top-1 accuracies in
        [0, 1] at severities 0 (clean) to 5, over the labelled images.

    Raises:
        InputError: the beton is damaged.
        ValueError: no test image has a label, or a score of the classifier is not finite.
    """
    device = next(encoder.parameters()).device
    encoder.eval()
    # Load onto the CPU even if there is a GPU: the images are corrupted before they are moved.
    tests = OneViewLoader(test, batch_size=batch_size, image_size=image_size, num_workers=num_workers)

    def is_right(images: Images, labels: torch.Tensor) -> float:
        views = torch.from_numpy(images).to(device).to(torch.float32).div_(255).permute(0, 3, 1, 2)
        features = encoder.backbone(views).float().cpu().numpy()
        return float((classifier.predict(features) == labels.numpy()).sum())

    clean, total = 0.0, 0
    left_out = {"jpeg"} if open_beton(test).compressed else set()
    if left_out:
        console.print(f"{test}: its images were compressed as JPEG already, so this corruption is left out")
    right = {name: np.zeros(len(strengths)) for name, strengths in SEVERITIES.items() if name not in left_out}
    with torch.inference_mode():
        for views, labels, indices in track(tests, "corrupted images", console=console):
            images = (255 * views).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            total += int((labels >= 0).sum())
            clean += is_right(images, labels)
            for corruption, counts in right.items():
                for severity in range(1, len(counts) + 1):
                    corrupted = corrupt(images, indices.numpy(), corruption, severity, seed)
                    counts[severity - 1] += is_right(corrupted, labels)
    if total == 0:
        raise ValueError("no test image has a label")
    return {corruption: [clean / total, *(counts / total).tolist()] for corruption, counts in right.items()}


def evaluate(
    run: Run,
    compute: ComputeConfig,
    encoder_path: Path,
    outcome: Path,
    classifier_path: Path,
    test: Path,
    output: Path,
) -> None:
    """Evaluate one run on corrupted test images and write the accuracies as JSON.

    For a diverged run, the file is an empty object. If the accuracies cannot be measured, for example without a
    classifier, ``not_measured`` gives the reason.

    Args:
        run: the run that trained the encoder.
        compute: device and threads.
        encoder_path: weights written by pretraining.
        outcome: file that says how pretraining ended.
        classifier_path: the classifier written by the linear evaluation.
        test: beton of the test images.
        output: path of the JSON file.

    Raises:
        InputError: an input is missing or damaged, or the classifier belongs to another encoder.
    """
    if read_outcome(outcome).diverged:
        write_json(output, {})
        return
    encoder = load_encoder(run.dataset.encoder, encoder_path).to(prepare_device(compute))
    classifier = load_classifier(classifier_path)
    measured: dict[str, list[float] | str]
    try:
        if isinstance(classifier, str):
            raise ValueError(classifier)
        if classifier.weight.shape[1] != encoder.backbone.output_dim:
            raise InputError(f"{classifier_path}: not of the features of {encoder_path}; evaluate the run again")
        with threadpool_limits(compute.threads):
            measured = {
                **corrupted_accuracies(
                    encoder,
                    classifier,
                    test,
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
    """Evaluate one run on corrupted test images.

    Raises:
        InputError: see `evaluate`.
    """
    (encoder, outcome, classifier, test), (output,) = job.reads.values(), job.writes.values()
    with job.recorded({"run": job.run.seed}):
        evaluate(job.run, job.config.compute, encoder, outcome, classifier, test, output)
