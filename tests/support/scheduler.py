"""A scheduler of jobs as the workflow is one, and what becomes of its processes."""

import subprocess
import sys

import psutil

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


def start_scheduler(how: str, *job: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCHEDULER, how, *job]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def have_ended(*processes: psutil.Process) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=300)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
