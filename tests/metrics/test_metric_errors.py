"""Embeddings without a meaningful metric are refused by every metric alike."""

import math

import numpy as np
import pytest
import torch

from dhel_kcl import metrics

ON_THE_SPHERE = {
    "alignment": lambda x: metrics.alignment(x, x),
    "uniformity": metrics.uniformity,
    "wasserstein_uniformity": metrics.wasserstein_uniformity,
    "similarity_histogram": lambda x: metrics.similarity_histogram(x, bins=4),
    "knn_accuracy": lambda x: metrics.knn_accuracy(x, np.zeros(len(x), int), x, np.zeros(len(x), int), k=1),
}
AS_GIVEN = {
    "rank": metrics.rank,
    "effective_rank": metrics.effective_rank,
    "centred_effective_rank": metrics.centred_effective_rank,
    "participation_ratio": metrics.participation_ratio,
    "singular_values": metrics.singular_values,
}
EVERY = ON_THE_SPHERE | AS_GIVEN


def with_row(value: float) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((4, 3))
    x[2] = value
    return x


@pytest.mark.parametrize("metric", EVERY)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("container", [np.asarray, torch.from_numpy])
def test_nan_and_infinity(metric: str, value: float, container) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        EVERY[metric](container(with_row(value)))


@pytest.mark.parametrize("metric", EVERY)
@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (3, 0), (3,), (2, 3, 4)])
def test_shapes(metric: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(n, d\) with n >= 2 and d >= 1"):
        EVERY[metric](np.ones(shape))


@pytest.mark.parametrize("metric", ON_THE_SPHERE)
def test_a_zero_row_has_no_place_on_the_sphere(metric: str) -> None:
    with pytest.raises(ValueError, match="row 2 of the embeddings is zero"):
        ON_THE_SPHERE[metric](with_row(0))


@pytest.mark.parametrize("metric", AS_GIVEN)
def test_a_zero_row_is_fine_where_rows_are_used_as_given(metric: str) -> None:
    assert np.isfinite(AS_GIVEN[metric](with_row(0))).all()
