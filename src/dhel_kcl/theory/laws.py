"""Laws on the sphere whose deviation from the uniform law is known in closed form, to test measures of uniformity.

- ``sub_sphere``: uniform on the unit sphere of the first `parameter` coordinates.
- ``point``: a share `parameter` of the points is at one point, the rest is uniform on the whole sphere.
- ``antipodes``: a share `parameter` is at two opposite points, half at each, the rest is uniform.

Let I(k) be the law of the cosine of two independent uniform points on the sphere of R^k. In R^d the cosine of two
points has the law I(k) for ``sub_sphere``, and a mixture of I(d) with a share parameter^2 at 1, or equally at 1 and -1,
for the others: one uniform point makes the cosine ideal.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from dhel_kcl.theory.asymptotics import log_mean_exp_cosine

Law = Literal["sub_sphere", "point", "antipodes"]
LAWS: tuple[Law, ...] = get_args(Law)


class Deviation(NamedTuple):
    """Exact values of the two measures.

    Attributes:
        wasserstein: W1 distance between the law of the cosine of two points and I(d), in [0, 1].
        uniformity: log E exp(-2 |x - y|^2), at most 0.
    """

    wasserstein: float
    uniformity: float


def deviation(law: Law, d: int, parameter: float) -> Deviation:
    """Return the exact deviation of a law in R^d from the uniform law.

    The W1 distance is E|X| under I(k) less E|X| under I(d) for ``sub_sphere``, because both are symmetric and |X| is
    larger under I(k) in the stochastic order; parameter^2 for ``point``; and parameter^2 (1 - E|X| under I(d)) for
    ``antipodes``.

    Args:
        law: one of `LAWS`.
        d: dimension, at least 2.
        parameter: a whole number from 2 to d for ``sub_sphere``, and a share in [0, 1] for the others.

    Raises:
        ValueError: there is no such law.
    """
    _check(law, d, parameter)
    ideal = math.exp(_log_mean_gaussian(d))
    if law == "sub_sphere":
        k = int(parameter)
        return Deviation(_mean_absolute_cosine(k) - _mean_absolute_cosine(d), _log_mean_gaussian(k))
    share = parameter**2
    if law == "point":
        return Deviation(share, math.log(share + (1 - share) * ideal))
    collapsed = (1 + math.exp(-8)) / 2
    return Deviation(share * (1 - _mean_absolute_cosine(d)), math.log(share * collapsed + (1 - share) * ideal))


def sample(law: Law, d: int, parameter: float, n: int, seed: int) -> NDArray[np.float64]:
    """Return n random points of a law in R^d; the shares are met exactly, up to the rounding of counts.

    Returns:
        (n, d) with unit rows.

    Raises:
        ValueError: there is no such law.
    """
    _check(law, d, parameter)
    points = np.random.default_rng(seed).standard_normal((n, d))
    if law == "sub_sphere":
        points[:, int(parameter) :] = 0
    else:
        collapsed = round(parameter * n)
        points[:collapsed] = np.eye(d)[0]
        if law == "antipodes":
            points[: collapsed // 2] *= -1
    unit: NDArray[np.float64] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return unit


def _check(law: Law, d: int, parameter: float) -> None:
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}; there are {', '.join(LAWS)}")
    if d < 2:
        raise ValueError(f"a law on the sphere needs d >= 2 dimensions, got {d}")
    if law == "sub_sphere" and not (2 <= parameter <= d and parameter == int(parameter)):
        raise ValueError(f"a sub-sphere of R^{d} has from 2 to {d} dimensions, got {parameter!r}")
    if law != "sub_sphere" and not 0 <= parameter <= 1:
        raise ValueError(f"a share lies in [0, 1], got {parameter!r}")


def _mean_absolute_cosine(k: int) -> float:
    return math.exp(gammaln(k / 2) - gammaln((k + 1) / 2)) / math.sqrt(math.pi)


def _log_mean_gaussian(k: int) -> float:
    """Return log E exp(-2 |x - y|^2) for x and y uniform on the sphere of R^k."""
    return log_mean_exp_cosine(4, k) - 4
