"""The smallest effect that a study finds with a given probability, before it is run."""

import math
from dataclasses import dataclass

from scipy import optimize, stats


@dataclass(frozen=True)
class Design:
    """A balanced study of one contrast.

    Attributes:
        weights: the sum of the squared weights of the cells in the contrast.
        cells: complete cells over which the spread is pooled.
        seeds: seeds of each cell.
        spread: standard deviation of the noise, in the unit of the effect.
        images: variance of the contrast over test images, in that unit squared.
    """

    weights: float
    cells: int
    seeds: int
    spread: float
    images: float = 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of the contrast."""
        return math.sqrt(self.weights * self.spread**2 / self.seeds + self.images)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of its estimate, as in `contrasts.Estimate`."""
        residual = (self.cells - 1) * (self.seeds - 1)
        seeds = self.weights * self.spread**2 / self.seeds
        return residual * (1 + self.images / seeds) ** 2


def power(design: Design, effect: float, alpha: float = 0.05, family: int = 1) -> float:
    """Return the probability that one contrast's lower end is above 0.

    Args:
        design: the study.
        effect: the true effect.
        alpha: two-sided level of the family.
        family: hypotheses that Holm's method has not rejected yet: all of them at its first step, one at its last.
    """
    critical = stats.t.isf(alpha / family / 2, design.degrees)
    return float(stats.nct.sf(critical, design.degrees, effect / design.standard_error))


def power_of_no_effect(design: Design, smallest: float, alpha: float = 0.05, family: int = 1) -> float:
    """Return the probability that a claim of no effect is supported if there is none.

    It counts the spread as known to the degrees of freedom of its quantile, which is exact for many degrees.
    """
    margin = smallest / design.standard_error - stats.t.isf(alpha / family / 4, design.degrees)
    return max(0.0, float(2 * stats.t.cdf(margin, design.degrees) - 1))


def smallest_effect(design: Design, wanted: float = 0.8, alpha: float = 0.05, family: int = 1) -> float:
    """Return the smallest effect that is found with the probability `wanted`; the arguments are those of `power`."""
    most = 50 * design.standard_error * stats.t.isf(alpha / family / 2, design.degrees)
    return float(optimize.brentq(lambda effect: power(design, effect, alpha, family) - wanted, 0, most))
