"""Representation analysis: how aligned, how uniform and of what rank the learnt features are."""

from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from dhel_kcl import metrics
from dhel_kcl.artifacts import write_json
from dhel_kcl.config import AnalysisConfig
from dhel_kcl.errors import InputError
from dhel_kcl.feature_cache import load_features


def analyse(features_path: Path, config: AnalysisConfig, threads: int, output: Path) -> None:
    """Measure the test set's features ``h`` (backbone) and ``z`` (projector) and write JSON.

    Everything is measured on l2-normalised rows: alignment on two random views of each test image,
    the rest on the unaugmented images. Of a diverged run there is nothing to measure.

    Raises:
        InputError: the features are missing, damaged or collapsed to zero.
    """
    torch.set_num_threads(threads)
    features = load_features(features_path)
    if not features:
        write_json(output, {})
        return
    try:
        with threadpool_limits(threads):  # NumPy's linear algebra rounds differently with other thread counts
            description = {
                name: _describe(
                    features[f"test_{name}"], features[f"test_view1_{name}"], features[f"test_view2_{name}"], config
                )
                for name in ("h", "z")
            }
    except ValueError as error:
        raise InputError(f"{features_path}: the representation cannot be measured: {error}") from error
    write_json(output, description)


def _describe(x: torch.Tensor, view1: torch.Tensor, view2: torch.Tensor, config: AnalysisConfig) -> dict[str, Any]:
    x = functional.normalize(x.double())
    edges, density = metrics.similarity_histogram(x, bins=config.similarity_bins)
    return {
        "scalars": {
            "alignment": metrics.alignment(view1, view2),
            "uniformity": metrics.uniformity(x),
            "wasserstein_uniformity": metrics.wasserstein_uniformity(x),
            "rank": metrics.rank(x),
            "effective_rank": metrics.effective_rank(x),
            "embedding_dim": x.shape[1],
        },
        "singular_value": metrics.singular_values(x).tolist(),
        "similarity_density": {"x": ((edges[:-1] + edges[1:]) / 2).tolist(), "value": density.tolist()},
    }
