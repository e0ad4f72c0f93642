"""Contrastive losses on pairs of views: InfoNCE, NT-Xent, DCL, DHEL and KCL with its kernels.

Every loss is called as ``loss(z1, z2)`` on (M, d) projections of any norm; ``loss.terms(z1, z2)`` gives its alignment
and energy.
"""

from dhel_kcl.losses.build import build_loss
from dhel_kcl.losses.dcl import DCL
from dhel_kcl.losses.dhel import DHEL
from dhel_kcl.losses.infonce import InfoNCE
from dhel_kcl.losses.kcl import KCL
from dhel_kcl.losses.kernels import IMQ, Gaussian, GaussianRiesz, Kernel, Log, Riesz
from dhel_kcl.losses.ntxent import NTXent
from dhel_kcl.losses.pair_loss import PairLoss, Terms
from dhel_kcl.losses.streaming.unit_views import deferred_checks

__all__ = [
    "DCL",
    "DHEL",
    "IMQ",
    "KCL",
    "Gaussian",
    "GaussianRiesz",
    "InfoNCE",
    "Kernel",
    "Log",
    "NTXent",
    "PairLoss",
    "Riesz",
    "Terms",
    "build_loss",
    "deferred_checks",
]
