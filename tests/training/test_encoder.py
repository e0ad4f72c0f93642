"""The encoder is torchvision's ResNet with a CIFAR stem, a width and the protocol's projector."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import EncoderConfig
from dhel_kcl.metrics import rank
from dhel_kcl.training.encoder import Encoder, build_encoder, load_encoder, save_encoder
from dhel_kcl.training.tensor_files import write_tensors

SMALL = EncoderConfig(width=0.0625, embedding_dim=16)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_full_width_with_the_imagenet_stem_is_torchvisions_network(backbone: str) -> None:
    config = EncoderConfig.model_validate({"backbone": backbone, "stem": "imagenet"})
    ours = build_encoder(config, seed=0).backbone.state_dict()
    theirs = torchvision.models.get_model(backbone).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }


def test_the_cifar_stem_keeps_the_resolution() -> None:
    backbone = build_encoder(EncoderConfig(), seed=0).backbone
    assert (backbone.conv1.kernel_size, backbone.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(backbone.maxpool, nn.Identity)


@pytest.mark.parametrize(("width", "dim"), [(1.0, 512), (0.25, 128), (0.0625, 32)])
def test_width_scales_every_channel(width: float, dim: int) -> None:
    encoder = build_encoder(EncoderConfig(width=width, embedding_dim=16), seed=0)
    h, z = encoder(torch.rand(2, 3, 8, 8))
    assert h.shape == (2, dim)
    assert z.shape == (2, 16)


def test_the_projector_ends_in_a_normalisation_whose_bias_is_not_trained() -> None:
    projector = build_encoder(SMALL, seed=0).projector
    assert [type(layer).__name__ for layer in projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert not projector[4].bias.requires_grad
    assert projector[3].bias is None


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_encoder(SMALL, seed=3).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build_encoder(SMALL, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "building a model must not disturb the global generator"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_encoder(SMALL, seed=4).state_dict()
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_convolutions_start_at_the_scale_of_he_initialisation() -> None:
    for module in build_encoder(EncoderConfig(), seed=0).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_a_narrow_encoder_computes_what_strided_convolutions_do() -> None:
    narrow = build_encoder(SMALL, seed=0).double().eval()
    reference = build_encoder(SMALL, seed=0).double().eval()
    for module in reference.modules():
        if isinstance(module, nn.Conv2d) and module._forward_pre_hooks:
            module._forward_pre_hooks.clear()
            module.stride = (2, 2)
    assert [module.stride for module in narrow.modules() if isinstance(module, nn.Conv2d)] != [
        module.stride for module in reference.modules() if isinstance(module, nn.Conv2d)
    ]
    images = torch.rand(4, 3, 7, 8, dtype=torch.float64)
    for ours, theirs in zip(narrow(images), reference(images), strict=True):
        torch.testing.assert_close(ours, theirs)


NARROW_TRAINING = """
import torch
from dhel_kcl.experiment.config import EncoderConfig
from dhel_kcl.training.encoder import build_encoder

torch.set_num_threads(1)
encoder = build_encoder(EncoderConfig(width=0.0625, embedding_dim=16), seed=0)
for _ in range(30):
    images = torch.rand(256, 3, 8, 8).to(memory_format=torch.channels_last)
    encoder(images)[1].square().sum().backward()
print("survived")
"""


def test_a_narrow_encoder_trains_on_a_processor_whose_registers_are_wider_than_its_channels() -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", NARROW_TRAINING]
    ran = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert (ran.returncode, ran.stdout) == (0, "survived\n"), ran.stderr


def test_weights_round_trip_with_equal_bytes(tmp_path: Path) -> None:
    encoder = build_encoder(SMALL, seed=0)
    save_encoder(encoder, tmp_path / "a.safetensors")
    loaded = load_encoder(SMALL, tmp_path / "a.safetensors")
    save_encoder(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("backbone.conv1.weight"), "lacks backbone.conv1.weight"),
        (lambda weights: weights.update(other=torch.zeros(1)), "holds other too"),
        (
            lambda weights: weights.update({"projector.0.bias": torch.zeros(32, dtype=torch.int64)}),
            "projector.0.bias is int64 instead of float32",
        ),
        (
            lambda weights: weights.update({"projector.0.bias": torch.full((32,), torch.nan)}),
            "projector.0.bias holds NaN or infinity",
        ),
    ],
    ids=["lacking", "other", "whole numbers", "NaN"],
)
def test_weights_that_are_not_exactly_the_encoders_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    weights = dict(build_encoder(SMALL, seed=0).state_dict())
    change(weights)
    write_tensors(tmp_path / "encoder.safetensors", {name: tensor.contiguous() for name, tensor in weights.items()})
    with pytest.raises(InputError, match=rf"encoder\.safetensors: .*: it {said}; delete it and pretrain again"):
        load_encoder(SMALL, tmp_path / "encoder.safetensors")


def test_missing_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(InputError, match="run its pretraining first"):
        load_encoder(SMALL, path)
    save_encoder(build_encoder(SMALL, seed=0), path)
    with pytest.raises(InputError, match="does not match the configured architecture"):
        load_encoder(EncoderConfig(width=0.125, embedding_dim=16), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        load_encoder(SMALL, path)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("width", [0.0625, 0.3, 1.0])
def test_the_configuration_knows_the_dimension_of_the_features(backbone: str, width: float) -> None:
    config = EncoderConfig(backbone=backbone, width=width, embedding_dim=16)
    with torch.device("meta"):
        h, z = Encoder(config).eval()(torch.zeros(2, 3, 32, 32))
    assert (h.shape[1], z.shape[1]) == (config.feature_dim, 16)


def test_a_narrow_projector_caps_the_rank_of_z() -> None:
    config = EncoderConfig(width=0.01, embedding_dim=16)
    assert config.feature_dim == 5
    assert config.warning is not None
    encoder = build_encoder(config, seed=0).eval()
    with torch.no_grad():
        z = encoder.projector(torch.randn(100, 5, generator=torch.Generator().manual_seed(0)))
    assert rank(z.double(), rtol=1e-10) <= 5
