"""Jobs end with the scheduler that started them; those started by hand have none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from workspace import TINY, run

HERE = str(Path("/proc/self/ns/pid").readlink())

JOB = """
import signal, sys, time
from dhel_kcl.jobs import running as orphans
from dhel_kcl.jobs.running import end_when_orphaned
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orphans.GRACE_SECONDS = 1
end_when_orphaned()
print("ready", flush=True)
time.sleep(600)
"""
# A shell of its own between the scheduler and the job, which the shell does not become.
SCHEDULER = """
import subprocess, sys, time
from dhel_kcl.jobs.running import announce_scheduler, stop_jobs_on_signals
if sys.argv[1] != "by hand":
    announce_scheduler()
stop_jobs_on_signals()
job = subprocess.Popen(["bash", "-c", '"$@"; true', "bash", *sys.argv[2:]])
try:
    job.wait()
except KeyboardInterrupt:
    print("interrupted", job.wait(), flush=True)
"""


def start(how: str, *job: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCHEDULER, how, *(job or (sys.executable, "-c", JOB))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def started(scheduler: subprocess.Popen[str]) -> psutil.Process:
    assert scheduler.stdout is not None
    assert scheduler.stdout.readline() == "ready\n"
    return psutil.Process(scheduler.pid).children(recursive=True)[-1]


def end(*processes: psutil.Process) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=300)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def job_of_a_dead_scheduler(namespace: str, *arguments: str) -> subprocess.Popen[str]:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    environment = os.environ | {"DHEL_KCL_ENDS_WITH": f"{namespace}={dead.pid}"}
    command = [sys.executable, "-c", JOB, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_job_ends_with_a_scheduler_that_is_killed_whatever_shell_is_between_them(reaped: bool) -> None:
    with start("by the workflow") as scheduler:
        job = started(scheduler)
        os.kill(scheduler.pid, signal.SIGKILL)
        if reaped:
            scheduler.wait()
        assert end(job)


def test_a_job_started_when_the_scheduler_was_already_dead_ends_at_once() -> None:
    job = job_of_a_dead_scheduler(HERE)
    _, said = job.communicate(timeout=300)
    assert job.returncode == -signal.SIGTERM
    assert said == "the process that started this one is gone; stopping\n"


def test_a_job_that_does_not_end_on_sigterm_is_killed_after_a_while() -> None:
    job = job_of_a_dead_scheduler(HERE, "deaf")
    job.communicate(timeout=300)
    assert job.returncode == -signal.SIGKILL


def test_a_job_ends_also_when_nobody_reads_what_it_says() -> None:
    job = job_of_a_dead_scheduler(HERE)
    assert job.stderr is not None
    job.stderr.close()
    assert job.wait(timeout=300) == -signal.SIGTERM


@pytest.mark.parametrize("namespace", ["pid:[1]", ""])
def test_a_job_in_a_container_where_its_scheduler_has_no_number_watches_nothing(namespace: str) -> None:
    with job_of_a_dead_scheduler(namespace) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        assert psutil.Process(job.pid).num_threads() == 1, "the thread that would watch is not there"
        job.kill()


def test_a_job_started_by_hand_outlives_what_started_it() -> None:
    with start("by hand") as starter:
        job = started(starter)
        starter.kill()
        starter.wait()
        time.sleep(2)
        assert job.is_running()
        assert job.status() != psutil.STATUS_ZOMBIE
        job.kill()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_at_the_scheduler_act_as_ctrl_c_on_it_and_its_jobs(told: signal.Signals) -> None:
    with start("by the workflow") as scheduler:
        job = started(scheduler)
        scheduler.send_signal(told)
        if told is signal.SIGHUP:  # the shell and the system both send it
            scheduler.send_signal(told)
        assert scheduler.stdout is not None
        assert scheduler.stdout.readline().startswith("interrupted")
        assert end(job)


def test_under_nohup_a_terminal_that_closes_stops_nothing() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        scheduler = start("by the workflow")
    finally:
        signal.signal(signal.SIGHUP, previous)
    with scheduler:
        job = started(scheduler)
        scheduler.send_signal(signal.SIGHUP)
        job.send_signal(signal.SIGHUP)
        time.sleep(2)
        assert scheduler.poll() is None
        assert job.is_running()
        scheduler.terminate()


@pytest.mark.parametrize("killed", ["scheduler", "launcher"])
def test_the_processes_of_one_run_end_with_the_scheduler_and_with_their_launcher(killed: str, workspace: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["compute"]["gpus_per_run"] = 2
    values["datasets"][0]["epochs"] = 1000
    (workspace / "two.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for arguments in (["configure", "two.yaml"], ["data", "results/tiny", "digits", "train"]):
        assert run("dhel-kcl", *arguments, cwd=workspace).returncode == 0
    program, run_id = str(Path(sys.executable).parent / "dhel-kcl"), "digits-dhel-temperature0.3-bs128-seed0"
    log = workspace / "results" / "tiny" / "runs" / run_id / "training_log.csv"
    how = "by the workflow" if killed == "scheduler" else "by hand"
    with start(how, program, "pretrain", str(workspace / "results" / "tiny"), run_id) as scheduler:
        while not log.exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        training = psutil.Process(scheduler.pid).children(recursive=True)
        launcher = next(process for process in training if "torch.distributed.run" in process.cmdline())
        workers = launcher.children()
        assert len(workers) == 2
        os.kill(scheduler.pid if killed == "scheduler" else launcher.pid, signal.SIGKILL)
        assert end(launcher, *workers)
