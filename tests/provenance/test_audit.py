"""The audit passes on what the workflow made; `test_tampering.py` has what it fails on."""

import platform
from pathlib import Path

import pandas as pd
from workspace import FINISHED
from workspace import run as run_program

from dhel_kcl.files import read_json, sha256_file
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest

LAYOUT = Layout(Path("results/tiny"))
RUN = "digits-dhel-temperature0.3-bs128-seed0"


def audit(folder: Path) -> tuple[int, str]:
    outcome = run_program("dhel-kcl", "audit", "results/tiny", cwd=folder)
    return outcome.returncode, outcome.stdout + outcome.stderr


def test_an_untouched_experiment_passes_and_the_counts_are_kept(copy_of_finished: Path) -> None:
    status, said = audit(copy_of_finished)
    assert status == 0, said
    assert "audit passed" in said
    assert f"its own sha256 is {sha256_file(copy_of_finished / LAYOUT.audit)}" in said
    counts = read_json(copy_of_finished / LAYOUT.audit)
    assert counts["measurements"] == len(pd.read_parquet(copy_of_finished / LAYOUT.results))
    assert counts["manifests"] == 3 + 4 * 6 + 3 + len(FINISHED) + 2


def test_a_manifest_says_what_a_reader_needs_to_repeat_the_job(finished: Path) -> None:
    manifest = load_manifest(finished / LAYOUT.run_manifest("pretrain", RUN))
    assert manifest.command[0] == "dhel-kcl"
    assert manifest.command[-3:] == ["pretrain", "results/tiny", RUN]
    assert manifest.settings["loss"] == {"name": "dhel", "temperature": 0.3}
    assert manifest.settings["batch_size"] == 128
    assert set(manifest.seeds) == {"run", "initialisation", "order", "augmentation"}
    assert {"python", "torch", "ffcv", "numpy", "snakemake"} <= set(manifest.packages)
    assert {"cpu", "cores", "memory_gib", "system"} <= set(manifest.hardware)
    assert manifest.host == platform.node()
    assert manifest.seconds > 0
