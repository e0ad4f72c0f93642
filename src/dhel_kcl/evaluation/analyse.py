"""Representation analysis: alignment, uniformity and rank of the learnt features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from dhel_kcl.console import console
from dhel_kcl.evaluation.feature_cache import REPRESENTATIONS, Features, load_features
from dhel_kcl.evaluation.mini_batch_losses import mini_batch_losses
from dhel_kcl.experiment.config import AnalysisConfig
from dhel_kcl.files import write_json
from dhel_kcl.jobs.job import Job
from dhel_kcl.metrics.alignment_uniformity import alignment, uniformity
from dhel_kcl.metrics.similarity import similarity_histogram
from dhel_kcl.metrics.spectrum import (
    centred_effective_rank,
    effective_rank,
    participation_ratio,
    rank,
    singular_values,
)
from dhel_kcl.metrics.wasserstein import wasserstein_uniformity
from dhel_kcl.seeding import derive_seed

RANKME_IMAGES = 25_600
"""How many training images RankMe is measured on (Garrido et al. 2023, arXiv 2210.02885)."""


def analyse(
    features_path: Path,
    config: AnalysisConfig,
    loss: Mapping[str, Any],
    threads: int,
    output: Path,
    projected_dim: int | None = None,
) -> None:
    """Measure the test set's features ``h`` (backbone) and ``z`` (projector) and write JSON.

    Both are measured on l2-normalised rows: ``alignment`` and ``uniformity_of_views`` on two random views of each test
    image, ranks, spectrum and ``uniformity`` on the unaugmented images. For z, three things are added. The similarities
    and their Wasserstein distance compare it with the uniform law on the sphere; h is never negative, so it cannot be
    uniform. ``rankme`` is the effective rank of raw rows of `RANKME_IMAGES` training images, drawn once for all runs,
    or of all if there are fewer; ``rankme_images`` is their number. And ``mini_batch_loss`` is the run's own `loss` of
    the two views in mini-batches of different sizes, empty if it is not finite.

    If a representation cannot be measured (it is not finite, or the features of an image have no direction),
    ``not_measured`` gives the reason instead. For a diverged run, the file is an empty object.

    Raises:
        InputError: the features are missing or damaged, or z does not have `projected_dim` dimensions.
    """
    torch.set_num_threads(threads)
    features = load_features(features_path, projected_dim)
    if not features.tensors:
        write_json(output, {})
        return
    with threadpool_limits(threads):  # rounding in NumPy's linear algebra depends on the number of threads
        description = {name: _measure(name, features, config) for name in REPRESENTATIONS}
        if "not_measured" not in description["z"]:
            description["z"]["mini_batch_loss"] = _mini_batch_losses(features_path, features, loss)
    for name, content in description.items():
        if "not_measured" in content:
            console.print(f"{features_path}: {name} not measured: {content['not_measured']}")
    write_json(output, description)


def _measure(name: str, features: Features, config: AnalysisConfig) -> dict[str, Any]:
    if name in features.not_measured:
        return {"not_measured": features.not_measured[name]}
    x, view1, view2 = (features.tensors[f"{place}_{name}"] for place in ("test", "test_view1", "test_view2"))
    try:
        content = _describe(x, view1, view2)
        if name == "z":
            of_z = _describe_z(x, features.tensors["train_z"], config)
            content = content | of_z | {"scalars": content["scalars"] | of_z["scalars"]}
    except ValueError as error:
        return {"not_measured": " ".join(str(error).split())}
    return content


def _describe(x: torch.Tensor, view1: torch.Tensor, view2: torch.Tensor) -> dict[str, Any]:
    x = functional.normalize(x.double())
    return {
        "scalars": {
            "alignment": alignment(view1, view2),
            "uniformity_of_views": (uniformity(view1) + uniformity(view2)) / 2,
            "uniformity": uniformity(x),
            "rank": rank(x),
            "effective_rank": effective_rank(x),
            "centred_effective_rank": centred_effective_rank(x),
            "participation_ratio": participation_ratio(x),
            "embedding_dim": x.shape[1],
        },
        "singular_value": singular_values(x).tolist(),
    }


def _describe_z(z: torch.Tensor, train_z: torch.Tensor, config: AnalysisConfig) -> dict[str, Any]:
    generator = np.random.default_rng(derive_seed(0, "rankme"))
    drawn = generator.choice(len(train_z), size=min(len(train_z), RANKME_IMAGES), replace=False)
    edges, density = similarity_histogram(z, bins=config.similarity_bins)
    return {
        "scalars": {
            "wasserstein_uniformity": wasserstein_uniformity(z),
            "rankme": effective_rank(train_z[drawn]),
            "rankme_images": len(drawn),
        },
        "similarity_density": {"x": ((edges[:-1] + edges[1:]) / 2).tolist(), "value": density.tolist()},
    }


def _mini_batch_losses(path: Path, features: Features, loss: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return mini_batch_losses(features.tensors["test_view1_z"], features.tensors["test_view2_z"], loss)
    except ValueError as error:  # embeddings without a finite loss still have a rank
        console.print(f"{path}: mini_batch_loss not measured: {' '.join(str(error).split())}")
        return {"x": [], "value": [], "standard_error": [], "growth": None}


def run(job: Job) -> None:
    """Measure the representation of one run.

    Raises:
        InputError: see `analyse`.
    """
    (features,), (output,) = job.reads.values(), job.writes.values()
    projected_dim = job.run.dataset.encoder.embedding_dim
    with job.recorded():
        analyse(features, job.config.analysis, job.run.loss, job.config.compute.threads, output, projected_dim)
