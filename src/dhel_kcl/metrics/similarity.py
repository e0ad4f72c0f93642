"""The distribution of pairwise similarities, measured and ideal (for embeddings uniform on the sphere)."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from dhel_kcl.metrics.embeddings import Embeddings, pair_similarities, unit_rows


def similarity_histogram(u: Embeddings, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the histogram of the similarities u_i.u_j over i < j, on [-1, 1].

    Rows are l2-normalised here. Memory is O(n d + 256 n): the pairs are streamed.

    Args:
        u: (n, d) real tensor or array, n >= 2.
        bins: number of equal bins, >= 1.

    Returns:
        Bin edges, (bins + 1,) float64 from -1 to 1, and the density in each bin, (bins,) float64 with integral 1.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, a row is zero, a value is NaN or infinite, or `bins` < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    u = unit_rows(u)
    edges = np.linspace(-1, 1, bins + 1)
    counts = np.zeros(bins)
    for similarity in pair_similarities(u):
        counts += np.histogram(similarity, bins=bins, range=(-1, 1))[0]
    return edges, counts / math.comb(len(u), 2) / (2 / bins)


def ideal_similarity_density(x: ArrayLike, d: int) -> NDArray[np.float64]:
    """Return the density of U.V for independent U, V uniform on the sphere S^{d-1}.

    It is Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)) (1 - x^2)^{(d-3)/2}, i.e. (x + 1)/2 ~ Beta((d-1)/2, (d-1)/2).

    Source: Koromilas et al. 2024, arXiv 2405.18045, appendix.

    Args:
        x: similarities, any shape.
        d: embedding dimension, >= 2.

    Returns:
        float64 array of the shape of `x`; 0 outside [-1, 1], infinite at -1 and 1 for d = 2.

    Raises:
        ValueError: if `d` < 2.
    """
    constant = density_constant(d)
    x = np.asarray(x, dtype=np.float64)
    inside = np.abs(x) <= 1
    with np.errstate(divide="ignore"):
        density = constant * np.where(inside, 1 - x**2, 1) ** ((d - 3) / 2)
    return np.where(inside, density, 0)


def density_constant(d: int) -> float:
    """Return the factor that makes (1 - x^2)^{(d-3)/2} a density on [-1, 1]; ValueError if `d` < 2."""
    if d < 2:
        raise ValueError(f"the ideal similarity law needs embedding dimension d >= 2, got {d}")
    return math.exp(gammaln(d / 2) - gammaln((d - 1) / 2)) / math.sqrt(math.pi)
