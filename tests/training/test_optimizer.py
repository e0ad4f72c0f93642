"""Optimiser and learning rate are the protocol's."""

import pytest
import torch

from dhel_kcl.experiment.config import EncoderConfig, OptimizerConfig
from dhel_kcl.training.encoder import Encoder, build_encoder
from dhel_kcl.training.optimizer import build_optimizer, build_schedule, warmup_cosine


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(EncoderConfig(width=0.0625, embedding_dim=16), seed=0)


def test_warm_up_is_linear_and_the_rest_a_half_cosine() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert warmup_cosine(0, 100, 0) == 1.0


def test_the_schedule_multiplies_the_written_learning_rate(encoder: Encoder) -> None:
    config = OptimizerConfig(learning_rate=0.4, warmup_fraction=0.1)
    optimizer = build_optimizer(encoder, config, 0.4)
    schedule = build_schedule(optimizer, config, total_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.4 * warmup_cosine(step, 20, 2) for step in range(20)])
    assert max(rates) == pytest.approx(0.4)


@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
def test_a_warm_up_of_nearly_the_whole_run_leaves_one_step_to_the_cosine(encoder: Encoder, total_steps: int) -> None:
    config = OptimizerConfig(learning_rate=0.4, warmup_fraction=0.999)
    optimizer = build_optimizer(encoder, config, 0.4)
    schedule = build_schedule(optimizer, config, total_steps)
    for _ in range(total_steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 0.4
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_weight_decay_spares_batch_normalisation_only(encoder: Encoder) -> None:
    optimizer = build_optimizer(encoder, OptimizerConfig(learning_rate=0.1, weight_decay=1e-3), 0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            module = encoder.get_submodule(name.rpartition(".")[0])
            assert (id(parameter) in decayed) != ("BatchNorm" in type(module).__name__), name


def test_lars_comes_from_timm(encoder: Encoder) -> None:
    optimizer = build_optimizer(encoder, OptimizerConfig(name="lars", learning_rate=0.1), 0.1)
    assert type(optimizer).__module__.startswith("timm.")
    assert isinstance(optimizer, torch.optim.Optimizer)
