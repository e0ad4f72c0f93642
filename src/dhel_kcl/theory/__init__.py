"""Closed-form theory of contrastive losses: minimisers, minima, and the limit of large batches.

The stage `theory` checks each of these results against the losses themselves.
"""

from dhel_kcl.theory.asymptotics import asymptote, growth
from dhel_kcl.theory.configurations import cross_polytope, simplex
from dhel_kcl.theory.minima import minimum

__all__ = ["asymptote", "cross_polytope", "growth", "minimum", "simplex"]
