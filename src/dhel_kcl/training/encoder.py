"""Backbone and projector.

The backbone is torchvision's ResNet with two more options: the CIFAR stem and a width factor. The projector is that of
the public SimCLR code that the paper names: Linear - BatchNorm - ReLU - Linear - BatchNorm without bias.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import EncoderConfig
from dhel_kcl.seeding import derive_seed
from dhel_kcl.training.tensor_files import difference, kinds, read_tensors, write_tensors

_ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


_SIMD_WIDTH = 8
"""How many numbers an AVX2 register holds."""


def _every_second_pixel(shortcut: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    """Take the pixels that a 1x1 convolution of stride 2 reads, so that it needs no stride.

    With fewer input channels than `_SIMD_WIDTH`, on processors with AVX2 but without AVX-512, oneDNN 3.13 writes the
    gradient of the strided convolution beyond the end of its memory, and the process crashes.
    """
    return arguments[0][:, :, ::2, ::2]


class _Backbone(ResNet):  # type: ignore[misc]
    """torchvision's ResNet without its classifier and with all channel counts multiplied by `width`."""

    def __init__(self, config: EncoderConfig) -> None:
        block, layers = _ARCHITECTURES[config.backbone]
        self._width = config.width
        super().__init__(block, layers)
        channels = round(64 * config.width)
        if config.stem == "cifar":
            self.conv1 = nn.Conv2d(3, channels, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(channels)
        self.output_dim = config.feature_dim
        self.fc = nn.Identity()

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> Any:
        if planes == 64:
            self.inplanes = round(64 * self._width)
        layer = super()._make_layer(block, round(planes * self._width), blocks, stride, dilate)
        shortcut = layer[0].downsample
        if shortcut is not None and shortcut[0].stride != (1, 1) and shortcut[0].in_channels < _SIMD_WIDTH:
            shortcut[0].stride = (1, 1)
            shortcut[0].register_forward_pre_hook(_every_second_pixel)
        return layer


class Encoder(nn.Module):
    """Backbone followed by projector.

    Called on images ``(B, 3, S, S)``, float in [0, 1], it returns the backbone's features ``h`` ``(B, output_dim)`` and
    the projections before normalisation ``z`` ``(B, embedding_dim)``.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone = _Backbone(config)
        dim = self.backbone.output_dim
        last = nn.BatchNorm1d(config.embedding_dim)
        last.bias.requires_grad_(False)
        self.projector = nn.Sequential(
            nn.Linear(dim, dim),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, config.embedding_dim, bias=False),
            last,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(h, z)``."""
        h = self.backbone(images)
        return h, self.projector(h)


def build_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """Build an encoder whose initial weights depend only on `seed`, on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initialisation"))
        return Encoder(config).to(memory_format=torch.channels_last)


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write the weights atomically; equal weights give equal bytes."""
    write_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()})


def load_encoder(config: EncoderConfig, path: Path) -> Encoder:
    """Read weights written by `save_encoder`.

    Raises:
        InputError: the file is missing or damaged, or its tensors are not finite or differ from the encoder's in name,
            shape or dtype.
    """
    encoder = build_encoder(config, seed=0)
    weights, _ = read_tensors(path, "no trained encoder; run its pretraining first", "pretrain again")
    if problem := difference(weights, kinds(encoder.state_dict())):
        raise InputError(
            f"{path}: does not match the configured architecture, or is damaged: it {problem}; "
            "delete it and pretrain again"
        )
    encoder.load_state_dict(weights)
    return encoder
