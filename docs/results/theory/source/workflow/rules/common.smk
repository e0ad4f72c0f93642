"""The experiment that all rules share; every path and digest comes from the package."""

import gc
import json
import os
import shutil
import tempfile

from snakemake.io import Mtime

from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_combined
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.running import (
    RunningMark,
    announce_scheduler,
    stop_jobs_on_signals,
)
from dhel_kcl.jobs.stages import STAGES, stages_of
from dhel_kcl.provenance.repair import repair_after_crash
from dhel_kcl.provenance.staleness import explain, stale_jobs

# Planning thousands of jobs allocates millions of objects that all stay alive. Searching them for garbage costs a tenth
# of the time. `onstart` turns garbage collection back on.
gc.disable()

if set("{}") & set(str(Path.cwd())):
    raise WorkflowError(
        f"{Path.cwd()}: has {{ or }} in its path, which Snakemake takes for wildcards; move the clone to another folder"
    )

if shutil.which("dhel-kcl") is None:
    raise WorkflowError(
        "dhel-kcl is not on the PATH; activate the environment: source .venv/bin/activate"
    )

announce_scheduler()

try:
    combined = load_combined(
        workflow.configfiles or [Path("config/config.yaml")],
        workflow.config_settings.config_args,
    )
    layout = Layout(Path("results") / combined.name)
    experiment, compute = Experiment(combined, layout), combined.compute
    targets = experiment.targets
    if workflow.is_main_process:
        # Done even if no job will run: Snakemake only knows that after it has looked at the files.
        repair_after_crash(layout, dry_run=workflow.output_settings.dryrun)
except InputError as error:
    raise WorkflowError(str(error)) from None

times_in_dry_run = {}


def note_time(file, nanoseconds):
    """Note a modification time for Snakemake to plan with; a dry run does not change the file itself."""
    seconds, rest = divmod(nanoseconds, 10**9)
    times_in_dry_run[os.path.relpath(file)] = Mtime(local=seconds + 1e-9 * rest)


# Staleness follows from the manifests, not from Snakemake's records. Only the main process decides it, not cluster jobs.
stale = {}
if workflow.is_main_process:
    setting = [note_time] if workflow.output_settings.dryrun else []
    stale = stale_jobs(experiment, *setting)
for line in explain(stale, experiment):
    console.print(line)

running = RunningMark(layout.running)
resolved_config = json.dumps(experiment.config.model_dump(mode="json"))  # ASCII

# tmpdir is a constant, because Snakemake would evaluate its own default for each of thousands of jobs while planning.
# Each process that runs a job reads this file again, so the folder is that of its own machine.
job_resources = {
    "mem_mb": compute.memory_mb,
    "runtime": compute.runtime_minutes,
    "tmpdir": tempfile.gettempdir(),
}


def subject_of(stage, wildcards):
    """Return a job's subject from the wildcards: run for rules of runs, dataset and split for rules of splits."""
    if stage.each == "experiment":
        return experiment.config.name
    return "/".join(map(str, wildcards))


def asks_for(rule, subject=None):
    """Return an input function that lists the inputs of a rule's jobs and forces the jobs that are stale.

    Snakemake calls it only for jobs that are needed.
    """

    def files(wildcards):
        if times_in_dry_run:
            # Snakemake's cache of times exists by now, and has not been read yet.
            workflow.iocache.mtime.update(times_in_dry_run)
            times_in_dry_run.clear()
        jobs = [
            Job(experiment, stage, subject or subject_of(stage, wildcards))
            for stage in stages_of(rule, experiment.config)
        ]
        if any(job.manifest in stale for job in jobs):
            workflow.dag.forcefiles.add(str(jobs[-1].manifest))
        written = {path for job in jobs for path in job.writes.values()}
        asked = dict.fromkeys(path for job in jobs for path in job.asks_for)
        after = dict.fromkeys(path for job in jobs for path in job.comes_after)
        return [*(path for path in asked if path not in written), *map(ancient, after)]

    return files


def force_audit_if_stale(wildcards):
    """Return no input file, but force the audit if it is stale."""
    if layout.audit in stale:
        workflow.dag.forcefiles.add(str(layout.audit))
    return []


def writes(rule, subject):
    """Return the files that a rule's jobs write, the manifest last; a subject may have wildcards.

    For a rule that runs several stages, return only the last manifest. Snakemake deletes the outputs it knows of before
    a job starts and after it fails, but `measure` keeps those that are still valid.
    """
    stages = stages_of(rule, experiment.config)
    files = stages[0].writes(layout, subject).values() if len(stages) == 1 else []
    return [*files, stages[-1].manifest(layout, subject)]


def log_of(rule, subject=""):
    return layout.log(*stages_of(rule, experiment.config)[0].rule_label(subject))


def benchmark_of(rule, subject=""):
    return layout.benchmark(*stages_of(rule, experiment.config)[0].rule_label(subject))


def gpus(rule):
    stages = stages_of(rule, experiment.config)
    return max(stage.gpus(compute) for stage in stages if stage.gpus is not None)


def in_report(path, category):
    return report(
        path,
        caption="../report/caption.rst",
        category=category,
        labels={"name": path.stem, "format": path.suffix.removeprefix(".")},
    )


def report_products(target):
    category = "Figures" if target.is_figure else "Tables"
    return [in_report(path, category) for path in layout.products(target.name)]
