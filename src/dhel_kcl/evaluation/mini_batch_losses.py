"""The loss of a trained run on its test images, seen in mini-batches of different sizes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dhel_kcl.losses.build import build_loss
from dhel_kcl.seeding import derive_seed
from dhel_kcl.theory.batch_size import growth

BATCH_SIZES = (16, 64, 256, 1024, 4096)
"""Numbers of pairs in a mini-batch; those above the number of test images are left out."""

FEWEST_BATCHES = 4
"""How many mini-batches of each size are drawn at least; the images are partitioned again until there are as many."""


def mini_batch_losses(view1: Tensor, view2: Tensor, loss: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate the mean loss over all mini-batches of M out of N pairs, for each M of `BATCH_SIZES` up to N.

    The mini-batches are those of random partitions of the pairs, without the N mod M pairs that are left over. They
    depend on N and M only, so that all runs are measured on the same ones. The loss is computed in float64. The paper's
    theory (Koromilas et al. 2024, arXiv 2405.18045) predicts that the mean does not depend on M for KCL, whereas that
    of the InfoNCE family and DHEL grows with M.

    Args:
        view1: (N, d) floating-point projections of one view of each image, of any non-zero norm.
        view2: (N, d) projections of the other views.
        loss: configuration for `build_loss`.

    Returns:
        Lists of one length, empty if N < 16: `x`, the sizes M; `value`, the mean over the mini-batches;
        `standard_error`, their standard deviation (ddof 1) over the root of their number, which is conservative,
        because the mini-batches of a partition have no image in common; and `growth`, see `dhel_kcl.theory.growth`,
        or None if it is not known for the loss.

    Raises:
        ValueError: the loss is NaN or infinite, or refuses the views.
    """
    evaluate = build_loss(loss)
    view1, view2 = view1.double(), view2.double()
    sizes = [size for size in BATCH_SIZES if size <= len(view1)]
    means, errors = [], []
    for size in sizes:
        with torch.no_grad():
            losses = np.array([evaluate(view1[batch], view2[batch]).item() for batch in _batches(len(view1), size)])
        if not np.isfinite(losses).all():
            raise ValueError(f"the loss of mini-batches of {size} pairs is NaN or infinite")
        means.append(float(losses.mean()))
        errors.append(float(losses.std(ddof=1) / np.sqrt(len(losses))))
    return {
        "x": [float(size) for size in sizes],
        "value": means,
        "standard_error": errors,
        "growth": _growth(loss, sizes),
    }


def _growth(loss: Mapping[str, Any], sizes: list[int]) -> list[float] | None:
    try:
        return [growth(loss, size) for size in sizes]
    except ValueError:
        return None


def _batches(pairs: int, size: int) -> list[Tensor]:
    """Draw the indices of the mini-batches of one size."""
    generator = np.random.default_rng(derive_seed(0, "mini_batch_losses", size))
    batches: list[Tensor] = []
    while len(batches) < FEWEST_BATCHES:
        drawn = torch.from_numpy(generator.permutation(pairs))
        batches += [batch for batch in drawn.split(size) if len(batch) == size]
    return batches
