"""Jobs end with the scheduler that started them; those started by hand have none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from scheduler import have_ended, start_scheduler

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
COMMAND = (sys.executable, "-c", JOB)


def started(scheduler: subprocess.Popen[str]) -> psutil.Process:
    assert scheduler.stdout is not None
    assert scheduler.stdout.readline() == "ready\n"
    return psutil.Process(scheduler.pid).children(recursive=True)[-1]


def job_of_a_dead_scheduler(namespace: str, *arguments: str) -> subprocess.Popen[str]:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    environment = os.environ | {"DHEL_KCL_ENDS_WITH": f"{namespace}={dead.pid}"}
    command = [sys.executable, "-c", JOB, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_job_ends_with_a_scheduler_that_is_killed_whatever_shell_is_between_them(reaped: bool) -> None:
    with start_scheduler("by the workflow", *COMMAND) as scheduler:
        job = started(scheduler)
        os.kill(scheduler.pid, signal.SIGKILL)
        if reaped:
            scheduler.wait()
        assert have_ended(job)


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
    with start_scheduler("by hand", *COMMAND) as starter:
        job = started(starter)
        starter.kill()
        starter.wait()
        time.sleep(2)
        assert job.is_running()
        assert job.status() != psutil.STATUS_ZOMBIE
        job.kill()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_at_the_scheduler_act_as_ctrl_c_on_it_and_its_jobs(told: signal.Signals) -> None:
    with start_scheduler("by the workflow", *COMMAND) as scheduler:
        job = started(scheduler)
        scheduler.send_signal(told)
        if told is signal.SIGHUP:  # the shell and the system both send it
            scheduler.send_signal(told)
        assert scheduler.stdout is not None
        assert scheduler.stdout.readline().startswith("interrupted")
        assert have_ended(job)


def test_under_nohup_a_terminal_that_closes_stops_nothing() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        scheduler = start_scheduler("by the workflow", *COMMAND)
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
