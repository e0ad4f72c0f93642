"""Closed-form theory of contrastive losses: minimisers, minima, and the limit of large batches.

Also the mean of a loss over all mini-batches of a population, and laws of known deviation from the uniform one. The
stage `theory` checks each of these results against the losses and metrics themselves.
"""

from dhel_kcl.theory.asymptotics import asymptote
from dhel_kcl.theory.batch_size import growth
from dhel_kcl.theory.configurations import cross_polytope, simplex
from dhel_kcl.theory.laws import Deviation, deviation
from dhel_kcl.theory.limits import limit_functional
from dhel_kcl.theory.minima import minimum
from dhel_kcl.theory.population import mean_over_batches

__all__ = [
    "Deviation",
    "asymptote",
    "cross_polytope",
    "deviation",
    "growth",
    "limit_functional",
    "mean_over_batches",
    "minimum",
    "simplex",
]
