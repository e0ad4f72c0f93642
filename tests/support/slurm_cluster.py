"""Start a real Slurm cluster of one node with two fake GPUs (device nodes without a device), in its own folder."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "sinfo", "scontrol")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/begin
TaskEpilog={folder}/end
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""
# Records job, step, devices and time at the start and the end of each task.
RECORD = """#!/bin/sh
echo {event} $SLURM_JOB_ID "${{SLURM_STEP_ID:-batch}}" "${{CUDA_VISIBLE_DEVICES:-none}}" $(date +%s.%N) >>{folder}/tasks
"""
# Snakemake's executor hides SLURM_CONF from the srun within a job.
SRUN = """#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


def missing() -> str:
    """Return what this machine lacks to start the cluster, or an empty string."""
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, slurmctld, slurmd, slurm-client, munge)"
    if os.geteuid() != 0:
        return "the daemons start jobs as their owners, so the tests need root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_device(Path(folder) / "gpu0")
        except OSError as error:
            return f"mknod is not permitted here ({error.strerror})"
    return ""


class Cluster:
    """The running cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }

    def command(self, *arguments: str) -> str:
        """Run a client of Slurm and return its output."""
        done = subprocess.run(arguments, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def queue(self) -> list[str]:
        """Return the waiting and running jobs."""
        return self.command("squeue", "--noheader", "--format=%i").split()

    def clear(self) -> None:
        """Cancel everything that was submitted, and kill every Snakemake process that would submit more."""
        for process in self.processes("snakemake"):
            process.kill()
        if _said(self, "squeue", "--noheader"):
            _said(self, "scancel", "--user=root", "--signal=KILL", "--full")
            _said(self, "scancel", "--user=root")
            wait_until(lambda: not _said(self, "squeue", "--noheader"), 60, "an empty queue")

    def jobs(self) -> dict[str, dict[str, str]]:
        """Return every job so far by its number; the comment is Snakemake's name for the job."""
        keys = ("comment", "state", "partition", "tres-per-job", "timelimit")
        columns = ",".join(f"{key}:|" for key in ("jobid", *keys))
        said = self.command("squeue", "--states=all", "--noheader", f"--Format={columns}")
        rows = (line.strip().split("|") for line in said.splitlines())
        return {number: dict(zip(keys, values, strict=False)) for number, *values in rows}

    def tasks(self) -> list[tuple[str, str, float, float]]:
        """Return job, devices, begin and end of every finished task, except the scripts that start tasks."""
        begun: dict[tuple[str, str], tuple[str, float]] = {}
        finished = []
        for line in (self.folder / "tasks").read_text(encoding="utf-8").splitlines():
            event, job, step, devices, now = line.split()
            if event == "begin":
                begun[job, step] = devices, float(now)
            elif step != "batch":
                devices, begin = begun[job, step]
                finished.append((job, devices, begin, float(now)))
        return finished

    def processes(self, text: str = "") -> list[psutil.Process]:
        """Return the live processes of this cluster, daemons and jobs, with this text in their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if process.name() == "slurmstepd":  # its title overwrites its environment
                    mine = any(file.path.startswith(str(self.folder)) for file in process.open_files())
                if mine and text in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:  # it has ended, or is another user's
                continue
        return found


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition, and fail if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@contextmanager
def slurm() -> Iterator[Cluster]:
    """Start the cluster; leave no file and no process of it at the end."""
    # Not under pytest's folder: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # required by munged
    cluster = Cluster(folder)
    try:
        _configure(folder)
        munge = ["--socket={}/munge.socket", "--key-file={}/munge.key", "--log-file={}/munged.log"]
        munge += ["--pid-file={}/munged.pid", "--seed-file={}/munged.seed"]
        try:
            _start(cluster, "munged", "--foreground", *(option.format(folder) for option in munge))
            wait_until((folder / "munge.socket").exists, 30, "the socket of munged")
            _start(cluster, "slurmctld", "-D")
            _start(cluster, "slurmd", "-D")
            state = ("sinfo", "--noheader", "--format=%T")
            wait_until(lambda: set(_said(cluster, *state).split()) == {"idle"}, 60, "an idle node")
        except AssertionError as error:
            said = (
                f"{log}:\n{log.read_text(encoding='utf-8')[-1500:]}"
                for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")])
            )
            raise AssertionError("\n".join([str(error), *said])) from None
        yield cluster
    finally:
        try:
            _stop(cluster)
        finally:
            shutil.rmtree(folder)


def _configure(folder: Path) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for number in (0, 1):
        _make_device(folder / f"gpu{number}")
    scripts = {name: RECORD.format(event=name, folder=folder) for name in ("begin", "end")}
    scripts["bin/srun"] = SRUN.format(folder=folder, srun=shutil.which("srun"))
    for name, text in scripts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "tasks").touch()
    host = socket.gethostname().split(".")[0]
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-1]\n", encoding="utf-8")
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=_free_ports(2)), encoding="utf-8")


def _make_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # like /dev/null


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(cluster: Cluster, program: str, *arguments: str) -> None:
    with (cluster.folder / f"{program}.out").open("w", encoding="utf-8") as output:
        subprocess.Popen([program, *arguments], env=cluster.environment, stdout=output, stderr=output)


def _said(cluster: Cluster, *command: str) -> str:
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False).stdout


def _stop(cluster: Cluster) -> None:
    """Stop the jobs, then the daemons; kill by pid whatever does not exit by itself."""
    try:
        cluster.clear()
    finally:
        left = cluster.processes()
        for process in left:
            process.terminate()
        _, alive = psutil.wait_procs(left, timeout=60)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=60)
    assert not cluster.processes(), "processes of the cluster are left"
