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


def rank(x: Embeddings, rtol: float = 1e-5) -> int:
    """Count the directions whose variance is above `rtol` times the largest: a numerical rank of the covariance.

    Rows are used as given; their scale does not matter, nor does their mean. Trained embeddings have full rank at the
    tolerance of rounding (`numpy.linalg.matrix_rank`), so the default is what counts as collapsed: a standard deviation
    below 0.3% of the largest.

    Source: the public code of Koromilas et al. 2024, arXiv 2405.18045, where 1e-5 is an absolute threshold.

    Args:
        x: (n, d) real tensor or array, n >= 2.
        rtol: threshold relative to the largest singular value of the covariance, in [0, 1).

    Returns:
        An integer in [0, min(n - 1, d)]; 0 if all rows are equal.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, a value is NaN or infinite, or `rtol` is outside [0, 1).
    """
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be at least 0 and below 1, got {rtol!r}")
    spectrum = _centred_squares(x)
    return int((spectrum > max(rtol, len(spectrum) * np.finfo(np.float64).eps) * spectrum[0]).sum())


def participation_ratio(x: Embeddings) -> float:
    """Return (sum_k v_k)^2 / sum_k v_k^2, where v are the variances along the principal directions.

    Rows are used as given; neither their scale nor their mean matters. k equal variances give k.

    Source: Gao et al. 2017, bioRxiv 214262.

    Args:
        x: (n, d) real tensor or array, n >= 2.

    Returns:
        A number in [1, min(n - 1, d)]; 0 if all rows are equal.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, or a value is NaN or infinite.
    """
    spectrum = _centred_squares(x)
    return float(spectrum.sum() ** 2 / (spectrum**2).sum()) if spectrum[0] else 0.0


def effective_rank(x: Embeddings) -> float:
    """Return exp(-sum_k p_k log p_k), where p are the singular values of the (n, d) matrix over their sum.

    Rows are used as given and not centred; the scale of `x` does not matter. RankMe is this for the projector's raw
    outputs on 25,600 training images.

    Source: Roy & Vetterli 2007, EUSIPCO; Garrido et al. 2023, arXiv 2210.02885, eq. 1, without its epsilon of 1e-7.

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


def centred_effective_rank(x: Embeddings) -> float:
    """Return the effective rank after the mean of the rows is subtracted.

    The mean takes one direction, often with the largest singular value by far; without it, what is left is the spread
    of the embeddings. Neither the scale nor the mean of `x` matters.

    Args:
        x: (n, d) real tensor or array, n >= 2.

    Returns:
        A number in [1, min(n - 1, d)]; 0 if all rows are equal.

    Raises:
        ValueError: if the shape is not (n, d) with n >= 2, or a value is NaN or infinite.
    """
    centred = _centred(x)
    return effective_rank(centred) if centred.any() else 0.0


def _centred(x: Embeddings) -> NDArray[np.float64]:
    """Subtract the mean of the rows and scale to a largest absolute value of 1; all zeros if the rows are equal."""
    values = matrix(x)
    largest = np.abs(values).max()
    if largest == 0:
        return values
    scaled = values / largest
    centred = scaled - scaled.mean(axis=0)
    spread = np.abs(centred).max()
    equal_but_for_rounding = spread <= len(values) * np.finfo(np.float64).eps
    return np.asarray(0 * centred if equal_but_for_rounding else centred / spread, np.float64)


def _centred_squares(x: Embeddings) -> NDArray[np.float64]:
    """Return the squared singular values of the centred and scaled rows, largest first."""
    centred = _centred(x)
    return np.asarray(np.linalg.svd(centred.T @ centred, compute_uv=False), np.float64)


def _matrix_singular_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the singular values, from the eigenvalues of the Gram matrix (faster) unless squaring loses small ones."""
    tall = values if values.shape[0] >= values.shape[1] else values.T
    squares = np.linalg.eigvalsh(tall.T @ tall)
    well_conditioned = squares[0] > 1e-8 * squares[-1]
    return np.asarray(np.sqrt(squares) if well_conditioned else np.linalg.svd(values, compute_uv=False), np.float64)
