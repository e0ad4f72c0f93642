"""Alignment and uniformity on the unit sphere (Wang & Isola 2020, arXiv 2005.10242)."""

import math

import numpy as np

from dhel_kcl.metrics.embeddings import Embeddings, pair_similarities, unit_rows


def alignment(u: Embeddings, v: Embeddings, alpha: float = 2) -> float:
    """Return the mean distance between the two views of an image: mean_i |u_i - v_i|^alpha.

    Rows are l2-normalised here.

    Source: Wang & Isola 2020, arXiv 2005.10242, section 4.1.

    Args:
        u: (n, d) real tensor or array, n >= 2.
        v: (n, d) tensor or array; row i is another view of the image of row i of `u`.
        alpha: exponent, > 0.

    Returns:
        A number in [0, 2^alpha]; 0 is perfect alignment.

    Raises:
        ValueError: if shapes differ or are not (n, d) with n >= 2, a row is zero, a value is NaN or infinite, or
            `alpha` is not a positive finite number.
    """
    _check_positive("alpha", alpha)
    u, v = unit_rows(u), unit_rows(v)
    if u.shape != v.shape:
        raise ValueError(f"u and v must have one shape (n, d), got {u.shape} and {v.shape}")
    return float((np.linalg.norm(u - v, axis=1) ** alpha).mean())


def uniformity(u: Embeddings, t: float = 2) -> float:
    """Return the logarithm of the mean Gaussian potential: log mean_{i<j} exp(-t |u_i - u_j|^2).

    Rows are l2-normalised here. Memory is O(n d + 256 n): the pairs are streamed.

    Source: Wang & Isola 2020, arXiv 2005.10242, section 4.1.

    Args:
        u: (n, d) real tensor or array, n >= 2.
        t: inverse width of the Gaussian, > 0.

    Returns:
        A number in [-4t, 0]; 0 is total collapse, lower is more uniform.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, a row is zero, a value is NaN or infinite, or `t` is not a
            positive finite number.
    """
    _check_positive("t", t)
    u = unit_rows(u)
    log_sum = -math.inf
    for similarity in pair_similarities(u):
        exponent = 2 * t * (similarity - 1)
        largest = exponent.max()
        log_sum = np.logaddexp(log_sum, largest + np.log(np.exp(exponent - largest).sum()))
    return float(log_sum - math.log(math.comb(len(u), 2)))


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
