"""The mean of a loss over all mini-batches of a population of positive pairs, and points that minimise it.

No batch is formed. A batch is a row of a matrix of zeros and ones, and a product with that matrix gives the sum over
its members for every anchor at once.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from dhel_kcl.losses.build import build_loss
from dhel_kcl.losses.kcl import KCL
from dhel_kcl.losses.kernels import Gaussian, GaussianRiesz, Kernel

Array = NDArray[np.float64]
MeanLoss = Callable[[Array], tuple[float, Array]]


class Minimiser(NamedTuple):
    """The end of a descent: the mean loss, and the (2, n, d) views with unit rows that give it."""

    value: float
    views: Array


def mean_over_batches(loss_config: Mapping[str, Any], n: int, m: int) -> MeanLoss:
    """Return the mean of a loss over all batches of m out of n pairs, as a function of the pairs.

    It is the expected loss of a mini-batch drawn without replacement, and for m = n the loss of the whole population.
    A softmax loss has a logarithm for each anchor and batch. The energy of KCL needs only how often each two pairs
    share a batch.

    Args:
        loss_config: a configuration for `dhel_kcl.losses.build_loss`.
        n: number of pairs in the population.
        m: number of pairs in a batch, 2 <= m <= n.

    Returns:
        A function that maps (2, n, d) float64 views with unit rows to the mean and its gradient, as if the rows were
        free. Memory is O(n d + n C(n, m)).

    Raises:
        ValueError: the configuration is invalid, or m is not in 2 .. n.
    """
    loss = build_loss(loss_config)
    if not 2 <= m <= n:
        raise ValueError(f"batches of a population of {n} pairs have 2 to {n} pairs, got {m}")
    members = np.array(list(itertools.combinations(range(n), m)))
    batches = np.zeros((len(members), n))
    np.put_along_axis(batches, members, 1, axis=1)
    if isinstance(loss, KCL):
        gamma = loss.gamma * (loss.kernel.reference_energy_weight if loss.reference_weighting else 1)
        return _kernel_mean(loss.kernel, gamma, batches, m)
    return _softmax_mean(loss_config, batches, m)


def _kernel_mean(kernel: Kernel, gamma: float, batches: Array, m: int) -> MeanLoss:
    n = batches.shape[1]
    of_positives = Gaussian(2.0) if isinstance(kernel, GaussianRiesz) else kernel
    together = batches.T @ batches
    np.fill_diagonal(together, 0)
    weights = gamma * together / (len(batches) * m * (m - 1))

    def mean(views: Array) -> tuple[float, Array]:
        """Return the mean over the batches; each pair is in equally many, so the alignment is that of all pairs."""
        apart = views[0] - views[1]
        value, slope = _radial(of_positives, (apart**2).sum(axis=1))
        loss, pull = -2 * value.mean(), -4 / n * slope[:, None] * apart
        gradient = np.stack((pull, -pull))
        for x, gradient_of_x in zip(views, gradient, strict=True):
            squared_distance = np.maximum(2 - 2 * x @ x.T, 0)
            np.fill_diagonal(squared_distance, 1)  # has no weight, and keeps a Riesz kernel finite
            value, slope = _radial(kernel, squared_distance)
            loss += (weights * value).sum()
            gradient_of_x -= 4 * (weights * slope) @ x
        return float(loss), gradient

    return mean


def _radial(kernel: Kernel, squared_distance: Array) -> tuple[Array, Array]:
    """Return a kernel and its derivative with respect to the squared distance."""
    r2 = torch.from_numpy(squared_distance)
    value = kernel.radial(r2)
    return value.numpy(), kernel.slope(r2, value.clone()).numpy()


def _softmax_mean(config: Mapping[str, Any], batches: Array, m: int) -> MeanLoss:
    sharpness, n = 1 / float(config["temperature"]), batches.shape[1]
    candidates, weights = _candidates(config, n)
    batches = np.tile(batches, 2)  # of both views
    weights = batches * weights / (len(batches) * m)

    def mean(views: Array) -> tuple[float, Array]:
        """Return the mean over the batches; exponents are taken less their largest possible value."""
        z = views.reshape(2 * n, -1)
        exponentials = candidates * np.exp((z @ z.T - 1) * sharpness)
        totals = batches @ exponentials.T
        energy = (weights * np.log(totals)).sum() + sharpness * weights.sum()
        flow = (weights / totals).T @ batches * exponentials
        positives = views[::-1] * (sharpness / n)
        gradient = sharpness * ((flow + flow.T) @ z).reshape(views.shape) - positives
        return float(energy - (views[0] * positives[0]).sum()), gradient

    return mean


def _candidates(config: Mapping[str, Any], n: int) -> tuple[Array, Array]:
    """Return which rows of (u; v) each row's logarithm sums over, (2n, 2n), and the weight of that logarithm, (2n,)."""
    every, others, none = np.ones((n, n)), 1 - np.eye(n), np.zeros((n, n))
    within, across, first, second = {
        "infonce": (none, every, 0.5, 0.5) if config.get("symmetric", True) else (none, every, 1.0, 0.0),
        "ntxent": (others, every, 0.5, 0.5),
        "dcl": (others, others, 0.5, 0.5),
        "dhel": (others, none, 1.0, float(config.get("both_views", True))),
    }[config["name"]]
    return np.block([[within, across], [across, within]]), np.repeat([first, second], n)


def descend(loss: MeanLoss, start: Array, max_iterations: int) -> Minimiser:
    """Minimise a loss over the directions of free pairs by L-BFGS.

    Args:
        loss: maps (2, n, d) views with unit rows to a number and its gradient.
        start: (2, n, d) float64 without zero rows.
        max_iterations: limit of L-BFGS, which otherwise stops where rounding hides further progress.
    """

    def objective(point: Array) -> tuple[float, Array]:
        """Return the loss and its gradient with respect to rows of any norm."""
        free = point.reshape(start.shape)
        norm = np.linalg.norm(free, axis=-1, keepdims=True)
        unit = free / norm
        value, gradient = loss(unit)
        tangent = gradient - (gradient * unit).sum(axis=-1, keepdims=True) * unit
        return value, (tangent / norm).ravel()

    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    end = found.x.reshape(start.shape)
    return Minimiser(float(found.fun), end / np.linalg.norm(end, axis=-1, keepdims=True))
