"""Representation analysis: alignment, uniformity and rank of the learnt features."""

from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from dhel_kcl.console import console
from dhel_kcl.evaluation.feature_cache import REPRESENTATIONS, Features, load_features
from dhel_kcl.experiment.config import AnalysisConfig
from dhel_kcl.files import write_json
from dhel_kcl.jobs.job import Job
from dhel_kcl.metrics.alignment_uniformity import alignment, uniformity
from dhel_kcl.metrics.similarity import similarity_histogram
from dhel_kcl.metrics.spectrum import effective_rank, rank, singular_values
from dhel_kcl.metrics.wasserstein import wasserstein_uniformity


def analyse(
    features_path: Path, config: AnalysisConfig, threads: int, output: Path, projected_dim: int | None = None
) -> None:
    """Measure the test set's features ``h`` (backbone) and ``z`` (projector) and write JSON.

    Everything is measured on l2-normalised rows: alignment on two random views of each test image, the rest on the
    unaugmented images. If a representation cannot be measured (it is not finite, or the features of an image have no
    direction), ``not_measured`` gives the reason instead. For a diverged run, the file is an empty object.

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
    for name, content in description.items():
        if "not_measured" in content:
            console.print(f"{features_path}: {name} not measured: {content['not_measured']}")
    write_json(output, description)


def _measure(name: str, features: Features, config: AnalysisConfig) -> dict[str, Any]:
    if name in features.not_measured:
        return {"not_measured": features.not_measured[name]}
    x, view1, view2 = (features.tensors[f"{place}_{name}"] for place in ("test", "test_view1", "test_view2"))
    try:
        return _describe(x, view1, view2, config)
    except ValueError as error:
        return {"not_measured": " ".join(str(error).split())}


def _describe(x: torch.Tensor, view1: torch.Tensor, view2: torch.Tensor, config: AnalysisConfig) -> dict[str, Any]:
    x = functional.normalize(x.double())
    edges, density = similarity_histogram(x, bins=config.similarity_bins)
    return {
        "scalars": {
            "alignment": alignment(view1, view2),
            "uniformity": uniformity(x),
            "wasserstein_uniformity": wasserstein_uniformity(x),
            "rank": rank(x),
            "effective_rank": effective_rank(x),
            "embedding_dim": x.shape[1],
        },
        "singular_value": singular_values(x).tolist(),
        "similarity_density": {"x": ((edges[:-1] + edges[1:]) / 2).tolist(), "value": density.tolist()},
    }


def run(job: Job) -> None:
    """Measure the representation of one run.

    Raises:
        InputError: see `analyse`.
    """
    (features,), (output,) = job.reads.values(), job.writes.values()
    projected_dim = job.run.dataset.encoder.embedding_dim
    with job.recorded():
        analyse(features, job.config.analysis, job.config.compute.threads, output, projected_dim)
