"""Interrupted in every way at random times, again and again, the workflow ends with the bytes of one that was not.

`DHEL_KCL_INTERRUPTIONS` says how many times in all; the default takes some minutes.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from scheduler import have_ended, start_scheduler
from workspace import TINY, make_workspace, run

from dhel_kcl.files import TEMPORARY
from dhel_kcl.jobs.layout import Layout

LAYOUT = Layout(Path("results/tiny"))
ROUNDS = int(os.environ.get("DHEL_KCL_INTERRUPTIONS", "20"))
TARGETS = ("fig_batch_size", "table_linear_accuracy", "table_theory")
COMMAND = ("snakemake", "--cores", "2", "--configfile", "small.yaml")
PATIENCE = 120
"""Seconds, on a machine that does much else; a job ends within about two."""


def small_workspace(folder: Path, keep_features: bool) -> Path:
    """A clone with three targets and an experiment of two runs, which write a checkpoint every second step."""
    folder.mkdir(exist_ok=True)
    make_workspace(folder, TARGETS)
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["losses"] = values["losses"][:1]
    values["evaluation"] = {"regularisation_c": [1.0]}
    del values["monitor"]
    values["compute"] |= {"checkpoint_every_steps": 2, "keep_features": keep_features}
    (folder / "small.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def results(folder: Path) -> dict[str, bytes | pd.DataFrame]:
    """Everything that two workflows must agree on: all but clocks."""
    root = folder / LAYOUT.root
    patterns = ("data/**/*.beton*", "runs/*/*", "figures/*", "tables/*", "theory.*")
    files = [path for pattern in patterns for path in root.glob(pattern) if path.is_file()]
    clocks = ("throughput.csv", ".manifest.json", ".damaged", ".pdf")  # a PDF holds the time it was made
    timeless = [path for path in files if not path.name.endswith(clocks) and not path.name.startswith(TEMPORARY)]
    table = pd.read_parquet(root / "results.parquet")
    table = table[~table["metric"].isin(["images_per_second", "waiting_for_data"])].reset_index(drop=True)
    return {str(path.relative_to(root)): path.read_bytes() for path in timeless} | {"results": table.to_csv()}


def processes(folder: Path) -> list[psutil.Process]:
    """The scheduler, its jobs and the shells between them: they run in the workspace."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill_everything(folder: Path) -> None:
    while alive := processes(folder):
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=0.1)


Interruption = Callable[[subprocess.Popen[bytes], Path, random.Random], None]


def kill_the_scheduler(scheduler: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> None:
    scheduler.kill()


def kill_a_job(scheduler: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> None:
    jobs = [process for process in processes(folder) if process.pid != scheduler.pid]
    if jobs:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            chance.choice(jobs).kill()
        time.sleep(chance.uniform(0, 5))  # Snakemake goes on with the others
    scheduler.send_signal(signal.SIGTERM)


def press_ctrl_c(scheduler: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> None:
    os.killpg(scheduler.pid, signal.SIGINT)


def terminate_the_scheduler(scheduler: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> None:
    scheduler.terminate()


def lose_power(scheduler: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> None:
    """Of the files written last, some are cut off and some end in zeros, whatever Snakemake takes them for.

    The next workflow looks for such files because this one was at work. Where none was, `dhel-kcl repair` and the audit
    find them.
    """
    while not (at_work := list((folder / LAYOUT.running).glob("*"))) and scheduler.poll() is None:
        time.sleep(0.05)
    kill_everything(folder)
    if not at_work or not list((folder / LAYOUT.running).glob("*")):  # it ended, or had not yet begun
        return
    places = (folder / LAYOUT.root, folder / ".snakemake" / "metadata")
    written = [path for place in places for path in place.rglob("*") if path.is_file() and path.stat().st_size]
    written.sort(key=lambda path: path.stat().st_mtime)
    for path in chance.sample(written[-12:], k=min(4, len(written))):
        content, times = path.read_bytes(), path.stat()
        kept = content[: chance.randrange(len(content))]
        path.write_bytes(kept + bytes(len(content) - len(kept)) * chance.randrange(2))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # which the loss of content does not change


INTERRUPTIONS: tuple[Interruption, ...] = (
    kill_the_scheduler,
    kill_a_job,
    press_ctrl_c,
    terminate_the_scheduler,
    lose_power,
)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The workflow as a terminal starts it: in a process group of its own, which hears Ctrl-C."""
    program = str(Path(sys.executable).parent / COMMAND[0])
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [program, *COMMAND[1:]],
            cwd=folder,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def unlock_if_asked(folder: Path) -> None:
    if any((folder / ".snakemake" / "locks").glob("*")):
        outcome = run(*COMMAND, "--unlock", cwd=folder)
        assert outcome.returncode == 0, outcome.stderr


def manifests(folder: Path) -> int:
    """How many jobs have ended."""
    places = os.walk(folder / LAYOUT.root)  # goes on where a job has removed a folder meanwhile
    return sum("manifest" in f"{Path(place).name}/{name}" for place, _, names in places for name in names)


def interrupt(folder: Path, interruption: Interruption, chance: random.Random) -> None:
    """Start the workflow, let it end up to three jobs and go on for a moment, and interrupt it."""
    scheduler = start(folder)
    enough = manifests(folder) + chance.randrange(4)
    while manifests(folder) < enough and scheduler.poll() is None:
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 5))
    if scheduler.poll() is not None:
        assert scheduler.returncode == 0, (folder / "said.txt").read_text(encoding="utf-8")[-3000:]
        return
    interruption(scheduler, folder, chance)
    scheduler.wait(timeout=PATIENCE)


def finish(folder: Path) -> None:
    unlock_if_asked(folder)
    outcome = run(*COMMAND, cwd=folder)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]


@pytest.mark.parametrize("keep_features", [True, False], ids=["features kept", "features discarded"])
def test_the_results_are_those_of_a_workflow_that_nobody_interrupted(keep_features: bool, tmp_path: Path) -> None:
    uninterrupted = small_workspace(tmp_path / "uninterrupted", keep_features)
    finish(uninterrupted)
    expected = results(uninterrupted)
    folder, chance = small_workspace(tmp_path / "interrupted", keep_features), random.Random(int(keep_features))
    kinds = [kind for _ in range(0, ROUNDS, len(INTERRUPTIONS)) for kind in chance.sample(INTERRUPTIONS, k=5)]
    for number, interruption in enumerate(kinds[: (ROUNDS + 1) // 2]):
        print(f"{time.strftime('%X')} round {number}: {interruption.__name__}, {manifests(folder)} jobs done")
        interrupt(folder, interruption, chance)
        _, left = psutil.wait_procs(processes(folder), timeout=PATIENCE)
        assert not processes(folder), f"round {number}: {interruption.__name__} left {left}"
        unlock_if_asked(folder)
        if (folder / LAYOUT.report).exists():  # all but done: one run, the tables and what follows once more
            shutil.rmtree(chance.choice(sorted((folder / LAYOUT.root / "runs").iterdir())))
    finish(folder)
    assert results(folder) == expected
    audited = run("dhel-kcl", "audit", str(LAYOUT.root), cwd=folder)
    assert audited.returncode == 0, audited.stderr


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
    with start_scheduler(how, program, "pretrain", str(workspace / "results" / "tiny"), run_id) as scheduler:
        while not log.exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        training = psutil.Process(scheduler.pid).children(recursive=True)
        launcher = next(process for process in training if "torch.distributed.run" in process.cmdline())
        workers = launcher.children()
        assert len(workers) == 2
        os.kill(scheduler.pid if killed == "scheduler" else launcher.pid, signal.SIGKILL)
        assert have_ended(launcher, *workers)
