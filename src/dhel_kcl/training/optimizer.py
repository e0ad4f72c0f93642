"""Optimiser and learning rate schedule of pretraining."""

import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dhel_kcl.experiment.config import OptimizerConfig


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor of a linear warm-up to 1 over `warmup_steps`, then a half cosine to 0 at `total_steps`.

    Args:
        step: steps already taken, in [0, total_steps].
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up, in [0, total_steps).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def build_optimizer(encoder: nn.Module, config: OptimizerConfig, learning_rate: float) -> Optimizer:
    """Build SGD or timm's LARS, without weight decay on batch normalisation, as in the public training code."""
    normalisation = {
        id(parameter)
        for module in encoder.modules()
        if isinstance(module, _BatchNorm)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in normalisation], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) in normalisation], "weight_decay": 0.0},
    ]
    if config.name == "lars":
        from timm.optim.lars import Lars  # imported here because timm takes seconds to import

        return Lars(groups, lr=learning_rate, momentum=config.momentum)
    return SGD(groups, lr=learning_rate, momentum=config.momentum)


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, total_steps: int) -> LambdaLR:
    """Build the warm-up and cosine schedule over `total_steps`; call `step` after each step of the optimiser."""
    warmup_steps = min(round(config.warmup_fraction * total_steps), total_steps - 1)
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, total_steps, warmup_steps))
