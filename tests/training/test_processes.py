"""Several processes train as one would with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import train_digits
import yaml
from distributed import launch
from torch import Tensor
from workspace import TINY, run

from dhel_kcl.experiment.config import EncoderConfig, OptimizerConfig
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.losses import build_loss
from dhel_kcl.training.encoder import Encoder, build_encoder
from dhel_kcl.training.optimizer import build_optimizer
from dhel_kcl.training.pretrain import train_step
from dhel_kcl.training.processes import Processes, synchronise_batch_norm

CPU = torch.device("cpu")
SMALL = EncoderConfig(width=0.0625, embedding_dim=16)
LOSSES = (
    {"name": "ntxent", "temperature": 0.3},
    {"name": "dhel", "temperature": 0.3},
    {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0},
)
STEPS, BATCH_SIZE = 4, 12


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [*launcher, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
    )


def train(rank: int, processes: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """A few steps of each loss in float64 on this process's share of the same batches."""
    place = Processes(rank, rank, processes)
    terms = []
    for loss in LOSSES:
        encoder: Encoder = build_encoder(SMALL, seed=0).double().train()
        synchronise_batch_norm(encoder, place, CPU)
        optimizer = build_optimizer(encoder, OptimizerConfig(learning_rate=0.1), 0.1)
        parallel = place.data_parallel(encoder, CPU)
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            views = torch.rand(2, BATCH_SIZE, 3, 8, 8, generator=generator, dtype=torch.float64)
            view1, view2 = views[:, rank::processes]
            terms.append(train_step(parallel, build_loss(loss), optimizer, view1, view2, world_size=processes))
    return terms, encoder.state_dict()


@pytest.mark.parametrize("processes", [2, 3])
def test_losses_gradients_weights_and_statistics_are_those_of_one_process(processes: int, tmp_path: Path) -> None:
    expected_terms, expected_state = train(0, 1)
    for terms, state in launch(train, processes, tmp_path):
        torch.testing.assert_close(terms, expected_terms, rtol=1e-8, atol=1e-8)
        assert state.keys() == expected_state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected_state[name], rtol=1e-8, atol=1e-8, msg=name)


def test_a_run_under_torchrun_has_the_loss_curve_of_one_process(digits_beton: Path, tmp_path: Path) -> None:
    program = train_digits.__file__
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        # A tiny rate: a larger one multiplies the rounding of float32 sums from step to step. The test above, in
        # float64, shows that the updates agree.
        outcome = torchrun(program, str(digits_beton), str(folder), "learning_rate=0.000001", processes=processes)
        assert outcome.returncode == 0, outcome.stderr
        curves.append(pd.read_csv(folder / "training_log.csv")[["loss", "alignment", "energy", "learning_rate"]])
    pd.testing.assert_frame_equal(curves[0], curves[1], rtol=1e-5, atol=1e-5)
    assert outcome.stderr.count("epoch 1/4") == 1, "one process speaks for all"


def test_the_command_starts_itself_once_for_each_device_and_the_first_process_writes_the_manifest(
    workspace: Path,
) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["compute"]["gpus_per_run"] = 2
    (workspace / "two.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    layout, run_id = Layout(Path("results/tiny")), "digits-dhel-temperature0.3-bs128-seed0"
    for arguments in (
        ["configure", "two.yaml"],
        ["data", str(layout.root), "digits", "train"],
        ["--log", "pretrain.log", "pretrain", str(layout.root), run_id],
    ):
        outcome = run("dhel-kcl", *arguments, cwd=workspace)
        assert outcome.returncode == 0, outcome.stderr
    assert json.loads((workspace / layout.outcome(run_id)).read_text(encoding="utf-8"))["processes"] == 2
    manifest = load_manifest(workspace / layout.run_manifest("pretrain", run_id))
    assert manifest.settings["gpus_per_run"] == 2
    assert "epoch 2/2" in (workspace / "pretrain.log").read_text(encoding="utf-8")
    assert "epoch" not in (workspace / "pretrain.process1.log").read_text(encoding="utf-8")
