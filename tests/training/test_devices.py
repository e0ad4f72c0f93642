"""Jobs on one machine get GPUs of their own. The devices here are only names: no GPU is needed to share them out."""

import fcntl
import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from workspace import TINY, run

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.training import devices
from dhel_kcl.training.devices import claim_gpus, prepare_device, training_dtype

CPU = torch.device("cpu")
CUDA = ComputeConfig(device="cuda")

DEVICES = "3,5,GPU-a"

JOB = """
import os, sys, time
from pathlib import Path
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.training import devices
devices.POLL_SECONDS = 0.02
devices.claim_gpus(ComputeConfig(device="cuda", runs_per_gpu=int(sys.argv[4])), int(sys.argv[2]), Path(sys.argv[1]))
# The claim outlives this program: the next one, which it becomes, has the device.
os.execv(sys.executable, [sys.executable, "-c", sys.argv[3]])
"""
WORK = "import os, time; t = time.time(); time.sleep(0.3); print(os.environ['CUDA_VISIBLE_DEVICES'], t, time.time())"


@dataclass(frozen=True)
class Use:
    """Devices that a job had, whether to itself or with others, and when."""

    devices: frozenset[str]
    runs_per_gpu: int
    began: float
    ended: float

    def meets(self, other: "Use") -> bool:
        return bool(self.devices & other.devices) and self.began < other.ended and other.began < self.ended


def use(folder: Path, count: int, runs_per_gpu: int, seconds: float) -> Use:
    """One job in this process: claim devices and have them for a while."""
    os.environ["CUDA_VISIBLE_DEVICES"] = DEVICES
    devices.POLL_SECONDS = 0.01
    claim_gpus(ComputeConfig(device="cuda", runs_per_gpu=runs_per_gpu), count, folder)
    began = time.monotonic()
    time.sleep(seconds)
    return Use(frozenset(os.environ["CUDA_VISIBLE_DEVICES"].split(",")), runs_per_gpu, began, time.monotonic())


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


def start(folder: Path, count: int, visible: str, runs_per_gpu: int = 1, work: str = WORK) -> subprocess.Popen[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible}
    command = [sys.executable, "-c", JOB, str(folder), str(count), work, str(runs_per_gpu)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(job: subprocess.Popen[str]) -> tuple[set[str], float, float]:
    """The devices of a job, when it began to use them and when it ended."""
    output, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    devices, began, ended = output.split()
    return set(devices.split(",")), float(began), float(ended)


def test_jobs_that_run_at_the_same_time_have_different_devices(tmp_path: Path) -> None:
    jobs = [start(tmp_path, count, "3,5,GPU-a") for count in (1, 2, 1, 2, 1)]
    used = [finish(job) for job in jobs]
    assert sorted(len(claimed) for claimed, _, _ in used) == [1, 1, 1, 2, 2]
    assert set().union(*(claimed for claimed, _, _ in used)) <= {"3", "5", "GPU-a"}
    for number, (claimed, began, ended) in enumerate(used):
        for others, other_began, other_ended in used[:number]:
            assert not claimed & others or began >= other_ended or other_began >= ended


def test_twenty_jobs_that_want_devices_whole_or_in_part_are_all_served_and_never_collide(tmp_path: Path) -> None:
    chance = random.Random(0)
    kinds = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 4)]  # devices, and how many jobs share each
    wanted = [(*kind, chance.uniform(0.05, 0.4)) for kind in chance.sample(kinds * 4, k=20)]
    context = multiprocessing.get_context("forkserver")  # which imports torch once for all of them
    context.set_forkserver_preload(["dhel_kcl.training.devices"])
    with context.Pool(20, maxtasksperchild=1) as pool:  # a claim lasts as long as its process
        uses = pool.starmap(use, [(tmp_path, *each) for each in wanted], chunksize=1)
    assert [(len(each.devices), each.runs_per_gpu) for each in uses] == [each[:2] for each in wanted]
    assert set().union(*(each.devices for each in uses)) == set(DEVICES.split(","))
    for one, other in itertools.combinations(uses, 2):
        assert not one.meets(other) or min(one.runs_per_gpu, other.runs_per_gpu) > 1
    for each in uses:
        at_its_start = [other for other in uses if other.began <= each.began < other.ended and other.meets(each)]
        assert len(at_its_start) <= max(other.runs_per_gpu for other in at_its_start)


def test_as_many_jobs_share_a_device_as_the_configuration_says_and_the_next_waits_for_one_of_them(
    tmp_path: Path,
) -> None:
    hold = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    holders = [start(tmp_path, 1, "0,1", runs_per_gpu=2, work=hold) for _ in range(4)]
    assert sorted(holder.stdout.readline() for holder in holders if holder.stdout) == ["0\n", "0\n", "1\n", "1\n"]
    late = start(tmp_path, 1, "0,1", runs_per_gpu=2)
    assert late.stderr is not None
    assert late.stderr.readline().startswith("waiting for 1 of the GPUs 0, 1")
    holders[0].communicate(timeout=300)
    assert finish(late)[0] <= {"0", "1"}
    for holder in holders[1:]:
        holder.communicate(timeout=300)


def test_a_job_that_wants_a_whole_device_waits_for_those_that_share_it_and_they_for_it(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 1, "0", runs_per_gpu) for runs_per_gpu in (3, 1, 3, 1, 3)]
    used = [finish(job) for job in jobs]
    for alone in (1, 3):
        for other in {0, 1, 2, 3, 4} - {alone}:
            assert used[alone][1] >= used[other][2] or used[other][1] >= used[alone][2]


def test_a_run_on_several_devices_shares_none_of_them() -> None:
    with pytest.raises(ValueError, match="runs_per_gpu: a run on several GPUs has them to itself"):
        ComputeConfig(gpus_per_run=2, runs_per_gpu=2)


def test_a_killed_job_gives_its_device_back(tmp_path: Path) -> None:
    job = start(tmp_path, 1, "0")
    while not (tmp_path / "0.lock").exists():
        assert job.poll() is None
    job.kill()
    job.wait()
    output, said = start(tmp_path, 1, "0").communicate(timeout=300)
    assert output.split()[0] == "0", said


def test_a_claim_outlives_two_programs_and_a_shell_and_ends_with_the_last(tmp_path: Path) -> None:
    again = f"import os, sys; os.execvp('bash', ['bash', '-c', '\"$@\"; true', 'bash', sys.executable, '-c', {WORK!r}])"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    command = [sys.executable, "-c", JOB, str(tmp_path), "1", again, "1"]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)]
    jobs += [start(tmp_path, 1, "0") for _ in range(2)]
    used = sorted(finish(job)[1:] for job in jobs)
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(used))


def test_a_launcher_s_choice_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    claim_gpus(CUDA, folder=tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not list(tmp_path.iterdir())


def test_jobs_of_slurm_that_number_their_devices_alike_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for job in ("7", "8"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        claim_gpus(CUDA)
    user = os.geteuid()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"dhel-kcl-gpus-{job}-{user}" for job in ("7", "8")]


def test_a_stage_claims_before_ffcv_can_initialise_cuda(tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text(
        TINY.read_text(encoding="utf-8").replace("device: cpu", "device: cuda"), encoding="utf-8"
    )
    claim = "def claim(compute, count=1): print('claimed', count, 'ffcv' in sys.modules); sys.exit(0)"
    for command in ("pretrain", "features", "augmented-probe", "corruptions"):
        program = f"""
import sys
from dhel_kcl import cli
from dhel_kcl.training import devices
{claim}
devices.claim_gpus = claim
sys.argv[1:] = ["configure", "gpu.yaml"]
try: cli.main()
except SystemExit: pass
sys.argv[1:] = ["{command}", "results/tiny", "digits-dhel-temperature0.3-bs128-seed0"]
cli.main()
"""
        outcome = run("python", "-c", program, cwd=tmp_path)
        assert outcome.stdout.splitlines()[-1] == "claimed 1 False", outcome.stderr


def test_a_cpu_job_claims_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    claim_gpus(ComputeConfig(device="cpu"), 2, tmp_path)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        claim_gpus(ComputeConfig(device="auto"), 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_devices_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match=r"compute\.gpus_per_run: 3 requested, but this machine shows 2"):
        claim_gpus(CUDA, 3, tmp_path)


def test_a_folder_that_cannot_hold_locks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"file.*: cannot be locked"):
        claim_gpus(CUDA, folder=tmp_path / "file")


@pytest.mark.parametrize("runs_per_gpu", [1, 2])
def test_a_part_of_a_gpu_whose_name_has_slashes_is_locked_like_any_other(
    runs_per_gpu: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = ("MIG-GPU-5f2e/1/0", "MIG-GPU-5f2e/2/0")
    claimed = []
    for _ in parts:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(parts))
        claim_gpus(ComputeConfig(device="cuda", runs_per_gpu=runs_per_gpu), folder=tmp_path)
        claimed.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert claimed == list(parts)
    assert all(path.is_file() for path in tmp_path.iterdir())


def test_a_device_that_is_named_twice_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0")
    with pytest.raises(InputError, match="2 requested, but this machine shows 1"):
        claim_gpus(CUDA, 2, tmp_path)


def a_link(lock: Path) -> None:
    (lock.parent / "target").write_text("mine", encoding="utf-8")
    lock.symlink_to(lock.parent / "target")


def a_link_to_nothing(lock: Path) -> None:
    lock.symlink_to(lock.parent / "nowhere")


def a_pipe(lock: Path) -> None:
    os.mkfifo(lock)


def a_folder(lock: Path) -> None:
    lock.mkdir()


@pytest.mark.parametrize("made", [a_link, a_link_to_nothing, a_pipe, a_folder])
def test_a_lock_that_is_no_file_of_this_user_is_refused_in_one_line(
    made: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    made(tmp_path / "0.lock")
    with pytest.raises(InputError, match="remove it, or set TMPDIR to another folder") as caught:
        claim_gpus(CUDA, folder=tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/0.lock: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_of_locks_that_somebody_else_may_have_made_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"dhel-kcl-gpus-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="must be a folder, not a link, that belongs to you"):
        claim_gpus(CUDA)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_job_that_waits_says_for_what_and_now_and_then_that_it_still_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    # Each poll is 25 seconds later; after ten of them the other job ends.
    now, other = 0.0, os.open(tmp_path / "1.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += 25.0
        if now == 250.0:
            os.close(other)

    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    claim_gpus(CUDA, 2, tmp_path)
    waits = f"waiting for 2 of the GPUs 0, 1, which other jobs hold ({tmp_path})"
    assert capsys.readouterr().err.splitlines() == [waits, *[f"still {waits}"] * 3]


def test_names_of_devices_and_jobs_may_be_any_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a\udcff")
    monkeypatch.setenv("SLURM_JOB_ID", "b\udcff")
    claim_gpus(CUDA)
    assert [path.name for path in tmp_path.rglob("*.lock")] == ["a%FF.lock"]
    assert [path.name for path in tmp_path.iterdir()] == [f"dhel-kcl-gpus-b%FF-{os.geteuid()}"]


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_what_the_configuration_says(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(backend, "allow_tf32", backend.allow_tf32)
    prepare_device(ComputeConfig(device="cpu", tf32=tf32))
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


def test_a_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert training_dtype(ComputeConfig(), CPU) == torch.float32
    assert training_dtype(ComputeConfig(precision="bfloat16"), CPU) == torch.bfloat16
