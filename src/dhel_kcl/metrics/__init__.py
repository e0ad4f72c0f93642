"""Representation metrics on embeddings given as torch tensors or numpy arrays of any dimension."""

from dhel_kcl.metrics.alignment_uniformity import alignment, uniformity
from dhel_kcl.metrics.knn import knn_accuracy
from dhel_kcl.metrics.similarity import ideal_similarity_density, similarity_histogram
from dhel_kcl.metrics.spectrum import (
    centred_effective_rank,
    effective_rank,
    participation_ratio,
    rank,
    singular_values,
)
from dhel_kcl.metrics.wasserstein import wasserstein_uniformity

__all__ = [
    "alignment",
    "centred_effective_rank",
    "effective_rank",
    "ideal_similarity_density",
    "knn_accuracy",
    "participation_ratio",
    "rank",
    "similarity_histogram",
    "singular_values",
    "uniformity",
    "wasserstein_uniformity",
]
