"""The workflow on a real Slurm: one node with two GPUs that are only names, so the runs themselves use the CPU."""

import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from slurm_cluster import Cluster, missing, slurm, wait_until
from workspace import TINY, make_workspace, run, snakemake

from dhel_kcl.jobs.layout import Layout

MISSING = missing()
pytestmark = [
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm can be started: {MISSING}"),
]

LAYOUT = Layout(Path("results/tiny"))
RUNS = ["digits-dhel-temperature0.3-bs128-seed0", "digits-dhel-temperature0.3-bs256-seed0"]
PROFILE = ["--workflow-profile", "workflow/profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue"]
QUICK = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_left_to_the_next_test(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the tiny experiment, long enough to be interrupted, that ask Slurm for a GPU each."""
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["losses"] = values["losses"][:1]
    values["datasets"][0]["epochs"] = 12
    values["evaluation"] = {"regularisation_c": [0.1]}
    values["compute"] |= {"gpus_per_run": 1, "keep_features": False}  # as in the paper's grid
    path = tmp_path_factory.mktemp("config") / "slurm.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The same experiment without Slurm, up to its results."""
    folder = make_workspace(tmp_path_factory.mktemp("local"))
    arguments = ["--cores", "2", "--resources", "gpu=2", "--configfile", str(config)]
    outcome = run("snakemake", str(LAYOUT.results), *arguments, cwd=folder)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    return folder


@pytest.fixture
def untrained(local: Path, tmp_path: Path) -> Path:
    """The local workspace before its first run was trained."""
    folder = tmp_path / "copy"
    shutil.copytree(local, folder, symlinks=True)
    shutil.rmtree(folder / LAYOUT.run(RUNS[0]))
    (folder / LAYOUT.log("pretrain", RUNS[0])).unlink()
    return folder


def start(cluster: Cluster, folder: Path, config: Path, *arguments: str) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).parent / "snakemake")
    command = [program, *arguments, *PROFILE, *QUICK, "--configfile", str(config)]
    with (folder / "snakemake.out").open("a", encoding="utf-8") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=cluster.environment,
            stdout=output,
            stderr=output,
            text=True,
            # A shell that runs the tests in the background has them, and all that they start, ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def finish(running: subprocess.Popen[str], folder: Path) -> None:
    assert running.wait(timeout=900) == 0, (folder / "snakemake.out").read_text(encoding="utf-8")[-5000:]


def trains(folder: Path, epoch: int, running: subprocess.Popen[str]) -> bool:
    """Whether the first run has finished this epoch."""
    assert running.poll() is None, (folder / "snakemake.out").read_text(encoding="utf-8")[-5000:]
    log = folder / LAYOUT.log("pretrain", RUNS[0])
    return log.exists() and f"epoch {epoch}/12" in log.read_text(encoding="utf-8")


def measured(folder: Path) -> pd.DataFrame:
    """The results, without how long the training took."""
    table = pd.read_parquet(folder / LAYOUT.results)
    return table[~table["metric"].isin(["images_per_second", "waiting_for_data"])].reset_index(drop=True)


def test_the_workflow_gives_the_same_results_on_slurm_and_each_job_gets_what_its_rule_asks_for(
    cluster: Cluster, config: Path, local: Path, tmp_path: Path
) -> None:
    folder = make_workspace(tmp_path)
    before = set(cluster.jobs())
    finish(start(cluster, folder, config, str(LAYOUT.results), str(LAYOUT.theory)), folder)
    for file in (LAYOUT.encoder, LAYOUT.evaluation, LAYOUT.representation, LAYOUT.training_log):
        for run_id in RUNS:
            assert (folder / file(run_id)).read_bytes() == (local / file(run_id)).read_bytes(), file(run_id)
    pd.testing.assert_frame_equal(measured(folder), measured(local))
    assert not list((folder / LAYOUT.root).rglob(LAYOUT.features("").name))

    jobs = {number: job for number, job in cluster.jobs().items() if number not in before}
    rules = {number: job["comment"].split("_")[1] for number, job in jobs.items()}
    twice = ["data", "pretrain", "measure"]
    assert sorted(rules.values()) == sorted([*twice, *twice, "collect", "theory"])
    assert {job["state"] for job in jobs.values()} == {"COMPLETED"}
    for number, job in jobs.items():
        uses_gpu = rules[number] in ("pretrain", "measure")
        assert job["tres-per-job"] == ("gres:gpu:1" if uses_gpu else "N/A"), job
        assert job["partition"] == ("gpu" if uses_gpu else "cpu"), job
        assert job["timelimit"] == "1:00:00", job
    given = [task for task in cluster.tasks() if task[0] in jobs]
    assert {job for job, _, _, _ in given} == set(jobs)
    for job, devices, _, _ in given:
        assert devices in (("0", "1") if jobs[job]["partition"] == "gpu" else ("none",))

    kept = {path: path.stat().st_mtime_ns for path in (folder / LAYOUT.root / "runs").glob("*/*.*")}
    outcome = snakemake(cwd=folder, config=config)  # without Slurm: figures, tables, report and audit
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    assert (folder / LAYOUT.audit).exists(), "every number leads back to what the jobs of Slurm made"
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_jobs_that_run_at_the_same_time_have_different_gpus_and_claim_those_that_slurm_gave(
    cluster: Cluster, tmp_path: Path
) -> None:
    claim = tmp_path / "claim.py"
    claim.write_text(
        """
import os, time
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.training.devices import claim_gpus
given = os.environ["CUDA_VISIBLE_DEVICES"]
claim_gpus(ComputeConfig(device="cuda"))
time.sleep(1)
print(given, os.environ["CUDA_VISIBLE_DEVICES"])
""",
        encoding="utf-8",
    )
    options = ["--parsable", "--gpus=1", "--cpus-per-task=1", f"--output={tmp_path}/%j.out"]
    wrapped = f"srun --gpus=1 {sys.executable} {claim}"
    jobs = [cluster.command("sbatch", *options, "--wrap", wrapped).strip() for _ in range(5)]
    wait_until(lambda: not cluster.queue(), 300, f"the end of the jobs {jobs}")
    used = [task for task in cluster.tasks() if task[0] in jobs]
    assert len(used) == 5
    for job, devices, _, _ in used:
        assert (tmp_path / f"{job}.out").read_text(encoding="utf-8").split() == [devices, devices]
    assert {devices for _, devices, _, _ in used} == {"0", "1"}
    overlapping = [(a, b) for a, b in itertools.combinations(used, 2) if a[2] < b[3] and b[2] < a[3]]
    assert overlapping, "two GPUs are used at once"
    assert all(a[1] != b[1] for a, b in overlapping)


def test_ctrl_c_cancels_the_jobs_and_the_next_call_ends_with_the_same_bytes(
    cluster: Cluster, config: Path, local: Path, untrained: Path
) -> None:
    encoder = LAYOUT.encoder(RUNS[0])
    running = start(cluster, untrained, config, str(encoder))
    wait_until(lambda: trains(untrained, 1, running), 300, "the first epoch")
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=300) != 0
    wait_until(lambda: not cluster.queue(), 300, "an empty queue")
    wait_until(lambda: not cluster.processes("dhel-kcl"), 300, "the end of the job's processes")
    assert not (untrained / encoder).exists()
    finish(start(cluster, untrained, config, str(encoder)), untrained)
    assert "resuming after step" in (untrained / LAYOUT.log("pretrain", RUNS[0])).read_text(encoding="utf-8")
    assert (untrained / encoder).read_bytes() == (local / encoder).read_bytes()


def test_a_run_that_slurm_stops_as_at_the_time_limit_is_submitted_again_and_goes_on(
    cluster: Cluster, config: Path, local: Path, untrained: Path
) -> None:
    encoder = LAYOUT.encoder(RUNS[0])
    running = start(cluster, untrained, config, str(encoder))
    wait_until(lambda: trains(untrained, 1, running), 300, "the first epoch")
    (job,) = cluster.queue()
    cluster.command("scancel", "--signal=TERM", job)  # what its steps get when the time is over
    finish(running, untrained)
    assert cluster.jobs()[job]["state"] == "FAILED"
    assert "resuming after step" in (untrained / LAYOUT.log("pretrain", RUNS[0])).read_text(encoding="utf-8")
    assert (untrained / encoder).read_bytes() == (local / encoder).read_bytes()
