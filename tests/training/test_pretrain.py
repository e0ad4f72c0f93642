"""Pretraining: the protocol, and that neither interruption nor the machine's schedule changes a bit."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import train_digits
from train_digits import EPOCHS, RUN

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ComputeConfig, EncoderConfig, MonitorConfig
from dhel_kcl.experiment.grid import ExperimentConfig, Run
from dhel_kcl.losses import DHEL, build_loss
from dhel_kcl.training.encoder import build_encoder, load_encoder
from dhel_kcl.training.optimizer import build_optimizer
from dhel_kcl.training.outcome import read_outcome
from dhel_kcl.training.pretrain import pretrain, train_step

COMPUTE = ComputeConfig(device="cpu", threads=1, tensorboard=False)
STEPS = EPOCHS * (1437 // 128)
SMALL = EncoderConfig(width=0.0625, embedding_dim=16)


@pytest.fixture(scope="module")
def run(tiny_config: ExperimentConfig) -> Run:
    return tiny_config.run(RUN)


@pytest.fixture(scope="module")
def uninterrupted(run: Run, digits_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    pretrain(run, COMPUTE, digits_beton, "settings", folder)
    return folder


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("encoder.safetensors", "training_log.csv", "outcome.json")]


def views(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    view1 = torch.rand(count, 3, 8, 8, generator=generator)
    return view1, (view1 + 0.05 * torch.rand(count, 3, 8, 8, generator=generator)).clamp(0, 1)


class TestStep:
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
    def test_every_loss_decreases_on_a_fixed_batch(self, run: Run, loss: dict[str, float | str]) -> None:
        encoder = build_encoder(SMALL, seed=0).train()
        optimizer = build_optimizer(encoder, run.dataset.optimizer, 0.05)
        steps = [train_step(encoder, build_loss(loss), optimizer, *views(32)).tolist() for _ in range(12)]
        assert steps[-1][0] < steps[0][0]
        for total, alignment, energy, gradient_norm in steps:
            assert total == pytest.approx(alignment + energy, abs=1e-4)
            assert gradient_norm > 0

    def test_it_reports_the_gradient_that_it_descends(self, run: Run) -> None:
        encoder = build_encoder(SMALL, seed=0).train()
        loss, optimizer = DHEL(0.3), build_optimizer(encoder, run.dataset.optimizer, 1e-3)
        _, z = build_encoder(SMALL, seed=0).train()(torch.cat(views(16)))
        reported = train_step(encoder, loss, optimizer, *views(16))
        assert float(reported[0]) == pytest.approx(float(loss(*z.detach().chunk(2))), rel=1e-6)
        gradients = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        assert float(reported[3]) == pytest.approx(float(gradients.norm()), rel=1e-5)

    def test_bfloat16_reaches_the_encoder_only(self, run: Run) -> None:
        encoder = build_encoder(SMALL, seed=0).train()
        optimizer = build_optimizer(encoder, run.dataset.optimizer, 0.05)
        half = train_step(encoder, DHEL(0.3), optimizer, *views(32), dtype=torch.bfloat16)
        encoder = build_encoder(SMALL, seed=0).train()
        optimizer = build_optimizer(encoder, run.dataset.optimizer, 0.05)
        single = train_step(encoder, DHEL(0.3), optimizer, *views(32))
        assert half.dtype == torch.float32
        assert not torch.equal(half, single)
        torch.testing.assert_close(half[0], single[0], rtol=0.02, atol=0)
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}

    def test_what_is_not_finite_is_returned_and_not_raised(self, run: Run) -> None:
        encoder = build_encoder(SMALL, seed=0).train()
        optimizer = build_optimizer(encoder, run.dataset.optimizer, 0.05)
        view1, view2 = views(8)
        view1[3] = torch.nan
        assert not train_step(encoder, DHEL(0.3), optimizer, view1, view2).isfinite().all()


class TestRun:
    def test_the_log_has_a_row_for_each_epoch_and_no_clock(self, run: Run, uninterrupted: Path) -> None:
        log = pd.read_csv(uninterrupted / "training_log.csv")
        measured = ["epoch", "step", "loss", "alignment", "energy", "gradient_norm", "learning_rate"]
        assert list(log) == [*measured, "knn_top1", "effective_rank_h", "effective_rank_z"]
        assert list(log["epoch"]) == list(range(1, run.dataset.epochs + 1))
        assert log["loss"].iloc[-1] < log["loss"].iloc[0]
        throughput = pd.read_csv(uninterrupted / "throughput.csv")
        assert (throughput["images_per_second"] > 0).all()
        assert throughput["waiting_for_data"].between(0, 1).all()

    def test_the_outcome_says_what_it_ran_on(self, run: Run, uninterrupted: Path) -> None:
        outcome = json.loads((uninterrupted / "outcome.json").read_text(encoding="utf-8"))
        steps = run.dataset.epochs * (1437 // 128)
        assert outcome == {
            **{"status": "finished", "step": steps},
            **{"device": "cpu", "dtype": "float32", "processes": 1},
        }

    def test_checkpoints_reading_and_workers_do_not_change_the_result(
        self, run: Run, digits_beton: Path, uninterrupted: Path, tmp_path: Path
    ) -> None:
        settings = {"checkpoint_every_steps": 2, "log_every_steps": 3, "loader_workers": 2, "tensorboard": True}
        checkpoints = pretrain(run, COMPUTE.model_copy(update=settings), digits_beton, "settings", tmp_path)
        assert written(tmp_path) == written(uninterrupted)
        checkpoints.discard()
        assert not (tmp_path / "checkpoints").exists()

    def test_watching_does_not_change_the_weights(
        self, run: Run, digits_beton: Path, uninterrupted: Path, tmp_path: Path
    ) -> None:
        pretrain(run, COMPUTE, digits_beton, "settings", tmp_path, MonitorConfig(every_epochs=2, images=300))
        assert written(tmp_path)[0] == written(uninterrupted)[0]
        log = pd.read_csv(tmp_path / "training_log.csv")
        for column in ("knn_top1", "effective_rank_h", "effective_rank_z"):
            assert log[column].isna().tolist() == [True, False]

    def test_another_seed_differs_in_initialisation_order_and_views(
        self, run: Run, digits_beton: Path, uninterrupted: Path, tmp_path: Path
    ) -> None:
        other = run.model_copy(update={"seed": 1})
        pretrain(other, COMPUTE, digits_beton, "settings", tmp_path / "other")
        assert written(tmp_path / "other") != written(uninterrupted)
        first, second = (build_encoder(SMALL, seed).backbone.conv1.weight for seed in (0, 1))
        assert not torch.equal(first, second)

    def test_compilation_changes_rounding_only(
        self, run: Run, digits_beton: Path, uninterrupted: Path, tmp_path: Path
    ) -> None:
        short = run.model_copy(update={"learning_rate": 1e-4})
        losses = []
        for compiled in (False, True):
            folder = tmp_path / str(compiled)
            pretrain(short, COMPUTE.model_copy(update={"compile": compiled}), digits_beton, "settings", folder)
            losses.append(pd.read_csv(folder / "training_log.csv")["loss"])
            assert load_encoder(run.dataset.encoder, folder / "encoder.safetensors")
        assert losses[0].to_list() == pytest.approx(losses[1].to_list(), rel=1e-4)

    def test_a_run_that_diverges_is_recorded_as_such(
        self, run: Run, digits_beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hot = run.model_copy(update={"learning_rate": 1e30})
        pretrain(hot, COMPUTE.model_copy(update={"checkpoint_every_steps": 1}), digits_beton, "settings", tmp_path)
        outcome = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
        assert outcome["status"] == "diverged"
        assert outcome["epoch"] == 1
        assert outcome["weights_of_step"] == outcome["step"] - 1, "the last checkpoint before"
        assert outcome["terms"].keys() == {"loss", "alignment", "energy", "gradient_norm"}
        assert {"nan", "inf"} & set(map(str, outcome["terms"].values()))
        said = " ".join(capsys.readouterr().err.split())
        assert f"{run.id}: diverged in epoch 1 at step {outcome['step']}: loss" in said
        encoder = load_encoder(run.dataset.encoder, tmp_path / "encoder.safetensors")
        assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())
        assert list((tmp_path / "checkpoints").rglob("step-*.pt")), "to be looked at"

    def test_a_run_that_diverges_before_any_checkpoint_keeps_its_initial_weights(
        self, run: Run, digits_beton: Path, tmp_path: Path
    ) -> None:
        pretrain(run.model_copy(update={"learning_rate": 1e30}), COMPUTE, digits_beton, "settings", tmp_path)
        kept = load_encoder(run.dataset.encoder, tmp_path / "encoder.safetensors").state_dict()
        for name, tensor in build_encoder(run.dataset.encoder, run.seed).state_dict().items():
            assert torch.equal(kept[name], tensor), name

    def test_weights_that_are_not_finite_after_the_last_step_are_a_divergence(
        self, run: Run, digits_beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def step(encoder: Any, *others: Any, **options: Any) -> torch.Tensor:
            terms = train_step(encoder, *others, **options)
            steps.append(1)
            if len(steps) == run.dataset.epochs * (1437 // 128):
                encoder.backbone.bn1.running_var.fill_(torch.inf)
            return terms

        steps: list[int] = []
        monkeypatch.setattr("dhel_kcl.training.pretrain.train_step", step)
        pretrain(run, COMPUTE.model_copy(update={"checkpoint_every_steps": 5}), digits_beton, "settings", tmp_path)
        outcome = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
        assert (outcome["status"], outcome["step"], outcome["weights_of_step"]) == ("diverged", 22, 20)
        assert outcome["terms"] == {"weights": "nan"}
        assert read_outcome(tmp_path / "outcome.json").diverged
        assert load_encoder(run.dataset.encoder, tmp_path / "encoder.safetensors")

    def test_cuda_without_a_gpu_is_refused(self, run: Run, digits_beton: Path, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        with pytest.raises(InputError, match=r"compute\.device: cuda is requested but torch sees no GPU"):
            pretrain(run, ComputeConfig(device="cuda"), digits_beton, "settings", tmp_path)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_equal_seeds_give_equal_bytes_on_a_gpu(self, run: Run, digits_beton: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            pretrain(run, ComputeConfig(device="cuda", tensorboard=False), digits_beton, "settings", tmp_path / name)
        assert written(tmp_path / "one") == written(tmp_path / "two")
        assert json.loads(written(tmp_path / "one")[2])["dtype"] in ("bfloat16", "float32")

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_step_on_a_gpu_never_waits_for_it(self, run: Run) -> None:
        encoder = build_encoder(SMALL, seed=0).cuda().train()
        optimizer = build_optimizer(encoder, run.dataset.optimizer, 0.05)
        view1, view2 = (view.cuda() for view in views(32))
        for name in ("dhel", "ntxent"):
            train_step(encoder, build_loss({"name": name, "temperature": 0.3}), optimizer, view1, view2)
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(encoder, DHEL(0.3), optimizer, view1, view2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def start(beton: Path, folder: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, train_digits.__file__, str(beton), str(folder), *settings]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(beton: Path, folder: Path, *settings: str) -> str:
    with start(beton, folder, *settings) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def await_next_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    before = set(folder.rglob("step-*.pt"))
    while set(folder.rglob("step-*.pt")) <= before:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)


def everything(folder: Path) -> dict[str, Any]:
    """The results and the last checkpoint: weights, optimiser, schedule, loader and log; the clock left out."""
    last = max((folder / "checkpoints").rglob("step-*.pt"))
    state = torch.load(last, weights_only=True)
    assert [epoch["epoch"] for epoch in state.pop("throughput")] == list(range(1, EPOCHS + 1))
    return {"results": written(folder), "step": last.name.rpartition("-")[0], "state": to_bytes(state)}


def to_bytes(value: Any) -> Any:
    """The same structure with the bytes of each tensor in its place."""
    match value:
        case torch.Tensor():
            return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
        case dict():
            return {key: to_bytes(item) for key, item in value.items()}
        case list() | tuple():
            return [to_bytes(item) for item in value]
    return value


@pytest.fixture(scope="module")
def whole(digits_beton: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    finish(digits_beton, folder)
    return everything(folder)


class TestInterruption:
    def test_a_run_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(
        self, digits_beton: Path, whole: dict[str, Any], tmp_path: Path
    ) -> None:
        delays = random.Random(0)
        for _ in range(4):
            with start(digits_beton, tmp_path) as process:
                await_next_checkpoint(tmp_path, process)
                time.sleep(delays.uniform(0, 0.12))
                process.kill()
        assert not (tmp_path / "encoder.safetensors").exists()
        assert "resuming after step" in finish(digits_beton, tmp_path, "loader_workers=2")
        assert everything(tmp_path) == whole

    def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(
        self, digits_beton: Path, whole: dict[str, Any], tmp_path: Path
    ) -> None:
        with start(digits_beton, tmp_path) as process:
            await_next_checkpoint(tmp_path, process)
            await_next_checkpoint(tmp_path, process)
            process.kill()
        newest = max((tmp_path / "checkpoints").rglob("step-*.pt"))
        newest.write_bytes(newest.read_bytes()[:5000])
        said = finish(digits_beton, tmp_path)
        assert f"{newest}: damaged" in said
        assert everything(tmp_path) == whole

    @pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_run_asked_to_stop_does_so_after_a_step_and_loses_nothing(
        self, asked: signal.Signals, digits_beton: Path, whole: dict[str, Any], tmp_path: Path
    ) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and asked is signal.SIGINT:
            pytest.skip("interrupts are ignored in processes started from here")
        with start(digits_beton, tmp_path, "checkpoint_every_steps=5") as process:
            await_next_checkpoint(tmp_path, process)
            process.send_signal(asked)
            if asked is signal.SIGHUP:  # from a terminal that closes; then the scheduler and the shell say so as well
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGHUP)
            _, said = process.communicate(timeout=300)
        assert process.returncode == 1
        stopped = said.rpartition("stopped after step ")[2]
        assert f"of {STEPS} as asked; the same command continues from there" in stopped
        assert f"resuming after step {stopped.split()[0]} of {STEPS}" in finish(digits_beton, tmp_path)
        assert everything(tmp_path) == whole

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda state: state.pop("optimizer"), "state is not what it should be"),
            (lambda state: state.update(other=1), "state is not what it should be"),
            (lambda state: state.pop("throughput"), "throughput: an epoch is not a row"),
            (lambda state: state["encoder"].pop("backbone.conv1.weight"), r"state\.encoder is not"),
            (
                lambda state: state["encoder"].update({"projector.0.bias": torch.zeros(32, dtype=torch.int64)}),
                r"state\.encoder\.projector\.0\.bias is not",
            ),
            (
                lambda state: state["encoder"].update({"projector.0.bias": torch.full((32,), torch.nan)}),
                r"state\.encoder\.projector\.0\.bias is not",
            ),
            (lambda state: state["optimizer"]["state"].pop(0), r"state\.optimizer\.state is not"),
            (lambda state: state["schedule"].update(last_epoch=3), "its schedule is not at step"),
            (lambda state: state["loader"].update(batch=1), "its loader is not at step"),
            (lambda state: state["log"].update(step=10**6), "log: step 1000000 is not one of"),
            (lambda state: state["log"].update(epochs=[]), "log: it does not have a row for each"),
            (lambda state: state["log"].update(rows=torch.zeros(0)), "log: its rows are not finite numbers"),
        ],
    )
    def test_a_checkpoint_with_other_parts_than_a_run_has_is_named_instead_of_used(
        self, run: Run, digits_beton: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
    ) -> None:
        settings = COMPUTE.model_copy(update={"checkpoint_every_steps": 17, "checkpoints_kept": 1})
        checkpoints = pretrain(run, settings, digits_beton, "settings", tmp_path)
        state = checkpoints.newest()
        assert state is not None
        change(state)
        checkpoints.discard()
        checkpoints.save(17, state)
        (path,) = checkpoints.paths()
        with pytest.raises(InputError, match=rf"{path}: not a checkpoint of this run: {said}.*; delete it") as caught:
            pretrain(run, settings, digits_beton, "settings", tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_finished_run_whose_files_are_lost_is_written_again_without_training(
        self, run: Run, digits_beton: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pretrain(run, COMPUTE, digits_beton, "settings", tmp_path)
        (tmp_path / "encoder.safetensors").unlink()
        monkeypatch.delattr("dhel_kcl.training.pretrain.train_step")
        pretrain(run, COMPUTE, digits_beton, "settings", tmp_path)
        assert written(tmp_path) == written(uninterrupted)

    def test_other_settings_do_not_resume(
        self, run: Run, digits_beton: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with start(digits_beton, tmp_path) as process:
            await_next_checkpoint(tmp_path, process)
            process.kill()
        pretrain(run, COMPUTE, digits_beton, "other settings", tmp_path)
        assert "other settings, code or images; they are not used" in capsys.readouterr().err
        assert written(tmp_path) == written(uninterrupted)

    def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_one_line(
        self, run: Run, digits_beton: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "checkpoints").write_text("a file where the folder should be", encoding="utf-8")
        settings = COMPUTE.model_copy(update={"checkpoint_every_steps": 1})
        with pytest.raises(InputError, match=r"checkpoints/.*: cannot be written"):
            pretrain(run, settings, digits_beton, "settings", tmp_path)
