"""Spectrum and rank of embeddings: how many dimensions they use."""

import numpy as np
from numpy.typing import NDArray

from dhel_kcl.metrics.embeddings import Embeddings, matrix


def singular_values(x: Embeddings) -> NDArray[np.float64]:
    """Return the singular values of the covariance of the columns, largest first.

    Rows are used as given. A plot of the log10 of the values shows dimensional collapse.

    Source: Jing et al. 2022, arXiv 2110.09348, section 3; the covariance divides by n - 1.

    Args:
        x: (n, d) real tensor or array, n >= 2.

    Returns:
        (d,) float64 array, descending, >= 0.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, or a value is NaN or infinite.
    """
    values = matrix(x)
    centred = values - values.mean(axis=0)
    covariance = centred.T @ centred / (len(values) - 1)
    spectrum: NDArray[np.float64] = np.linalg.svd(covariance, compute_uv=False)
    return spectrum


def rank(x: Embeddings, tol: float = 1e-5) -> int:
    """Count the singular values of the covariance above `tol`.

    Rows are used as given, so the scale of `x` matters: normalise rows first for the rank on the sphere.

    Source: the public code of Koromilas et al. 2024, arXiv 2405.18045.

    Args:
        x: (n, d) real tensor or array, n >= 2.
        tol: absolute threshold, >= 0.

    Returns:
        An integer in [0, d].

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, a value is NaN or infinite, or `tol` is negative or NaN.
    """
    if not tol >= 0:
        raise ValueError(f"tol must be at least 0, got {tol!r}")
    return int((singular_values(x) > tol).sum())


def effective_rank(x: Embeddings) -> float:
    """Return RankMe: exp(-sum_k p_k log p_k), where p are the singular values of the (n, d) matrix over their sum.

    Rows are used as given and not centred; the scale of `x` does not matter.

    Source: Garrido et al. 2023, arXiv 2210.02885, eq. 1, without its epsilon.

    Args:
        x: (n, d) real tensor or array, n >= 2.

    Returns:
        A number in [1, min(n, d)].

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, a value is NaN or infinite, or all are zero.
    """
    values = matrix(x)
    largest = max(values.max(), -values.min())
    if largest == 0:
        raise ValueError("the effective rank of all-zero embeddings is undefined")
    squares_are_normal = 1e-100 < largest < 1e100
    s = _matrix_singular_values(values if squares_are_normal else values / largest)
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def _matrix_singular_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the singular values, from the eigenvalues of the Gram matrix (faster) unless squaring loses small ones."""
    tall = values if values.shape[0] >= values.shape[1] else values.T
    squares = np.linalg.eigvalsh(tall.T @ tall)
    well_conditioned = squares[0] > 1e-8 * squares[-1]
    return np.asarray(np.sqrt(squares) if well_conditioned else np.linalg.svd(values, compute_uv=False), np.float64)
