"""Implementations of every loss by dhel_kcl, its peers and plain formulas, under one interface.

The plain and public formulas are written here from the definitions in the paper; the libraries come from the extra
`benchmark`. Each implementation takes two (M, d) batches of projections of any norm and returns the scalar loss.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, pdist

from dhel_kcl.losses import DCL, DHEL, IMQ, KCL, Gaussian, InfoNCE, Log, NTXent

Loss = Callable[[Tensor, Tensor], Tensor]
Radial = Callable[[Tensor], Tensor]

OURS = "dhel-kcl"
PLAIN = "plain autograd"
COMPILED = "torch.compile"
PUBLIC = "public formula"
LIGHTLY = "lightly"
METRIC_LEARNING = "pytorch-metric-learning"
ORDER = [OURS, PLAIN, COMPILED, PUBLIC, LIGHTLY, METRIC_LEARNING]

TEMPERATURE = 0.5
DHEL_TEMPERATURE = 0.3
GAMMA = 16.0
KERNEL_T = 2.0
KERNEL_C = 1.0


def gaussian(squared_distance: Tensor) -> Tensor:
    """Return the Gaussian kernel exp(-t r^2)."""
    return (-KERNEL_T * squared_distance).exp()


def log(squared_distance: Tensor) -> Tensor:
    """Return the logarithmic kernel -log(1 + t r^2)."""
    return -(1 + KERNEL_T * squared_distance).log()


def imq(squared_distance: Tensor) -> Tensor:
    """Return the inverse multiquadric kernel c / sqrt(c^2 + r^2)."""
    return KERNEL_C / (KERNEL_C**2 + squared_distance).sqrt()


def plain_infonce(z1: Tensor, z2: Tensor) -> Tensor:
    """Compute symmetric InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) from the Gram matrix."""
    logits = normalize(z1) @ normalize(z2).T / TEMPERATURE
    return ((logits.logsumexp(0) + logits.logsumexp(1)) / 2 - logits.diagonal()).mean()


def plain_ntxent(z1: Tensor, z2: Tensor) -> Tensor:
    """Compute NT-Xent (Chen et al. 2020, arXiv 2002.05709) from the Gram matrix of both views."""
    z = normalize(torch.cat((z1, z2)))
    logits = z @ z.T / TEMPERATURE
    positives = logits.diagonal(len(z1))
    return _without_diagonal(logits).logsumexp(1).mean() - positives.mean()


def plain_dcl(z1: Tensor, z2: Tensor) -> Tensor:
    """Compute DCL (Yeh et al. 2022, arXiv 2110.06848) from the Gram matrix of both views."""
    z = normalize(torch.cat((z1, z2)))
    logits = z @ z.T / TEMPERATURE
    positives = logits.diagonal(len(z1))
    same_image = torch.eye(len(z1), dtype=torch.bool, device=z.device).repeat(2, 2)
    return logits.masked_fill(same_image, -torch.inf).logsumexp(1).mean() - positives.mean()


def plain_dhel(z1: Tensor, z2: Tensor) -> Tensor:
    """Compute DHEL (Koromilas et al. 2024, arXiv 2405.18045) from the Gram matrix of each view."""
    u, v = normalize(z1), normalize(z2)
    energy = sum(_without_diagonal(x @ x.T / DHEL_TEMPERATURE).logsumexp(1) for x in (u, v))
    return (energy - (u * v).sum(1) / DHEL_TEMPERATURE).mean()


def plain_kcl(kernel: Radial) -> Loss:
    """Build KCL (Koromilas et al. 2024, arXiv 2405.18045) from the Gram matrix of each view."""

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        u, v = normalize(z1), normalize(z2)
        pairs = len(u) * (len(u) - 1)
        energies = [(kernel(2 - 2 * x @ x.T).sum() - kernel(2 - 2 * (x * x).sum(1)).sum()) / pairs for x in (u, v)]
        return -2 * kernel(2 - 2 * (u * v).sum(1)).mean() + GAMMA * (energies[0] + energies[1])

    return loss


def public_dhel(z1: Tensor, z2: Tensor) -> Tensor:
    """Compute DHEL like the paper's repository: exponentials, sums, a product, then the logarithm."""
    u, v = normalize(z1), normalize(z2)
    repulsions = []
    for x in (u, v):
        weights = (x @ x.T / DHEL_TEMPERATURE).exp()
        repulsions.append(weights.sum(1) - weights.diagonal())
    attraction = ((u * v).sum(1) / DHEL_TEMPERATURE).exp()
    return -(attraction / (repulsions[0] * repulsions[1])).log().mean()


def public_kcl(kernel: Radial) -> Loss:
    """Build KCL like the paper's repository: kernels of the condensed vector of pairwise distances.

    The energy has the weight of the definition. The repository halves it for the log kernel, which takes the same time.
    """

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        u, v = normalize(z1), normalize(z2)
        energy = kernel(pdist(u).square()).mean() + kernel(pdist(v).square()).mean()
        return -2 * kernel((u - v).square().sum(1)).mean() + GAMMA * energy

    return loss


def _without_diagonal(logits: Tensor) -> Tensor:
    return logits.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)


def _compiled(loss: Loss) -> Callable[[], Loss]:
    def build() -> Loss:
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        return torch.compile(loss, dynamic=True)

    return build


def _lightly(name: str) -> Loss:
    import lightly.loss

    loss: Loss = getattr(lightly.loss, name)(temperature=TEMPERATURE)
    return loss


def _metric_learning_ntxent() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    loss: Loss = SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))
    return loss


def _metric_learning_infonce() -> Loss:
    """Average both directions of the one-way loss: the library's NT-Xent with the other view as reference set."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    one_way = SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE), symmetric=False)
    return lambda z1, z2: (one_way(z1, z2) + one_way(z2, z1)) / 2


def _kcl(ours: Callable[[], Loss], kernel: Radial) -> dict[str, Callable[[], Loss]]:
    return {
        OURS: ours,
        PLAIN: lambda: plain_kcl(kernel),
        COMPILED: _compiled(plain_kcl(kernel)),
        PUBLIC: lambda: public_kcl(kernel),
    }


BUILDERS: dict[str, dict[str, Callable[[], Loss]]] = {
    "infonce": {
        OURS: lambda: InfoNCE(TEMPERATURE),
        PLAIN: lambda: plain_infonce,
        COMPILED: _compiled(plain_infonce),
        METRIC_LEARNING: _metric_learning_infonce,
    },
    "ntxent": {
        OURS: lambda: NTXent(TEMPERATURE),
        PLAIN: lambda: plain_ntxent,
        COMPILED: _compiled(plain_ntxent),
        LIGHTLY: lambda: _lightly("NTXentLoss"),
        METRIC_LEARNING: _metric_learning_ntxent,
    },
    "dcl": {
        OURS: lambda: DCL(TEMPERATURE),
        PLAIN: lambda: plain_dcl,
        COMPILED: _compiled(plain_dcl),
        LIGHTLY: lambda: _lightly("DCLLoss"),
    },
    "dhel": {
        OURS: lambda: DHEL(DHEL_TEMPERATURE),
        PLAIN: lambda: plain_dhel,
        COMPILED: _compiled(plain_dhel),
        PUBLIC: lambda: public_dhel,
    },
    "kcl_gaussian": _kcl(lambda: KCL(Gaussian(KERNEL_T), GAMMA), gaussian),
    "kcl_log": _kcl(lambda: KCL(Log(KERNEL_T), GAMMA), log),
    "kcl_imq": _kcl(lambda: KCL(IMQ(KERNEL_C), GAMMA), imq),
}
"""Builders of each loss's implementations, all with the same hyperparameters."""
