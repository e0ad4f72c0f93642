"""Runs that train in two processes, as torchrun and the command start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import train_digits
import yaml
from workspace import TINY, run

from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest


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


def test_a_run_under_torchrun_has_the_loss_curve_of_one_process(digits_beton: Path, tmp_path: Path) -> None:
    program = train_digits.__file__
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        # A tiny rate: a larger one multiplies the rounding of float32 sums from step to step. `test_processes.py`, in
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
