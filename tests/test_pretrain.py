"""Pretraining: the protocol, and that interruption changes nothing."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from dhel_kcl.config import ComputeConfig, ExperimentConfig, OptimizerConfig, Run
from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.sources import open_source
from dhel_kcl.errors import InputError
from dhel_kcl.losses import build_loss
from dhel_kcl.models import build_encoder
from dhel_kcl.pretrain import build_optimizer, learning_rate_factor, pretrain, train_step

COMPUTE = ComputeConfig(device="cpu", threads=1)


@pytest.fixture(scope="module")
def run(tiny_config: ExperimentConfig) -> Run:
    return tiny_config.run("digits-dhel-temperature0.3-bs256-seed0")


@pytest.fixture(scope="module")
def beton(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.beton"
    write_beton(open_source(run.dataset.data, "train"), path)
    return path


@pytest.fixture(scope="module")
def uninterrupted(run: Run, beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    pretrain(run, COMPUTE, beton, "settings", folder)
    return folder


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("encoder.safetensors", "training_log.csv")]


def test_warm_up_is_linear_and_the_rest_a_half_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert learning_rate_factor(0, 100, 0) == 1.0


def test_weight_decay_spares_batch_normalisation_only(run: Run) -> None:
    encoder = build_encoder(run.dataset.encoder, seed=0)
    optimizer = build_optimizer(encoder, OptimizerConfig(learning_rate=0.1, weight_decay=1e-3), 0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            module = encoder.get_submodule(name.rpartition(".")[0])
            assert (id(parameter) in decayed) != ("BatchNorm" in type(module).__name__), name


def test_lars_comes_from_timm(run: Run) -> None:
    encoder = build_encoder(run.dataset.encoder, seed=0)
    optimizer = build_optimizer(encoder, OptimizerConfig(name="lars", learning_rate=0.1), 0.1)
    assert type(optimizer).__module__.startswith("timm.")


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "infonce", "temperature": 0.2},
        {"name": "ntxent", "temperature": 0.2},
        {"name": "dcl", "temperature": 0.2},
        {"name": "dhel", "temperature": 0.2},
        {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0},
        {"name": "kcl", "kernel": "log", "t": 2.0, "gamma": 16.0},
        {"name": "kcl", "kernel": "imq", "c": 1.0, "gamma": 16.0},
    ],
    ids=lambda loss: "-".join(str(value) for value in loss.values()),
)
def test_every_loss_decreases_on_a_fixed_batch(run: Run, loss: dict[str, float | str]) -> None:
    encoder = build_encoder(run.dataset.encoder, seed=0)
    optimizer = build_optimizer(encoder, run.dataset.optimizer, 0.05)
    generator = torch.Generator().manual_seed(0)
    view1 = torch.rand(32, 3, 8, 8, generator=generator)
    view2 = (view1 + 0.05 * torch.rand(32, 3, 8, 8, generator=generator)).clamp(0, 1)
    rows = [train_step(encoder, build_loss(loss), optimizer, view1, view2) for _ in range(12)]
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert row["loss"] == pytest.approx(row["alignment"] + row["energy"], abs=1e-4)


def test_the_log_has_a_row_for_each_epoch_and_no_clock(run: Run, uninterrupted: Path) -> None:
    log = pd.read_csv(uninterrupted / "training_log.csv")
    assert list(log) == ["epoch", "step", "loss", "alignment", "energy", "learning_rate"]
    assert list(log["epoch"]) == list(range(1, run.dataset.epochs + 1))
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    throughput = pd.read_csv(uninterrupted / "throughput.csv")
    assert (throughput["images_per_second"] > 0).all()


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(
    run: Run, beton: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    pretrain(run, COMPUTE, beton, "settings", tmp_path / "same")
    assert _bytes(tmp_path / "same") == _bytes(uninterrupted)
    pretrain(run.model_copy(update={"seed": 1}), COMPUTE, beton, "settings", tmp_path / "other")
    assert _bytes(tmp_path / "other") != _bytes(uninterrupted)


def _interrupt_after_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    from dhel_kcl.pretrain import Checkpoint

    save = Checkpoint.save

    def save_then_stop(self: Checkpoint) -> None:
        save(self)
        if self.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", save_then_stop)


def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(
    run: Run, beton: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _interrupt_after_epoch(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            pretrain(run, COMPUTE, beton, "settings", tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    pretrain(run, COMPUTE, beton, "settings", tmp_path)
    assert _bytes(tmp_path) == _bytes(uninterrupted)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("damage", ["other settings", "truncated"])
def test_a_checkpoint_that_cannot_be_used_is_said_and_not_used(
    damage: str,
    run: Run,
    beton: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        _interrupt_after_epoch(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            pretrain(run, COMPUTE, beton, "other" if damage == "other settings" else "settings", tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    pretrain(run, COMPUTE, beton, "settings", tmp_path)
    assert "starting from epoch 0" in capsys.readouterr().err.replace("\n", " ")
    assert _bytes(tmp_path) == _bytes(uninterrupted)


def test_divergence_stops_the_run_and_names_the_remedy(run: Run, beton: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged in epoch 1 at step .* lower optimizer\.learning_rate"):
        pretrain(run.model_copy(update={"learning_rate": 1e30}), COMPUTE, beton, "settings", tmp_path)
    assert not (tmp_path / "encoder.safetensors").exists()


def test_cuda_without_a_gpu_is_refused(run: Run, beton: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"compute\.device: cuda is asked for but torch sees no GPU"):
        pretrain(run, ComputeConfig(device="cuda"), beton, "settings", tmp_path)
