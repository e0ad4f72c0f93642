"""The experiment that the rules share; every path and digest comes from the package."""

import gc
import json
import os
import shutil
import sys
import tempfile

from snakemake.cli import get_argument_parser
from snakemake.io import Mtime

from dhel_kcl import declarations, stages
from dhel_kcl.config import load_combined
from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.layout import Layout
from dhel_kcl.orphans import announce_scheduler, stop_jobs_on_signals
from dhel_kcl.repair import RunningMark, marks, repair_after_crash
from dhel_kcl.staleness import explain, stale_jobs

# Planning thousands of jobs allocates millions of objects that all stay; to look for garbage among them costs a tenth of
# the time. `onstart` switches the collection on again.
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

# Options with which Snakemake runs no job: it offers no other way to know when it reads this file.
WITHOUT_JOBS = """
    archive cleanup_metadata cleanup_shadow conda_cleanup_envs conda_create_envs_only container_cleanup_images
    containerize d3dag dag delete_all_output delete_temp_output detailed_summary export_cwl filegraph
    generate_unit_tests lint list_changes list_conda_envs list_input_changes list_params_changes list_rules
    list_target_rules list_untracked print_compilation report reporter rulegraph summary touch unlock
""".split()


def runs_jobs():
    """Whether this call runs jobs, or would without --dry-run."""
    options = vars(get_argument_parser().parse_known_args()[0])
    return all(options.get(name) in (None, False) for name in WITHOUT_JOBS)


try:
    experiment = load_combined(
        workflow.configfiles or [Path("config/config.yaml")],
        workflow.config_settings.config,
        sys.argv if workflow.is_main_process else (),
    )
    targets = declarations.scripts(stages.SCRIPTS)
    layout = Layout(Path("results") / experiment.name)
    # Not each job of a cluster; and the parser takes a while.
    if workflow.is_main_process and marks(layout) and runs_jobs():
        if any(Path(".snakemake/locks").glob("*.lock")):
            console.print(
                f"{layout.root}: a workflow runs, or did not end by itself: then call snakemake --unlock, and the "
                "next call checks the files"
            )
        else:
            repair_after_crash(layout, dry_run=workflow.output_settings.dryrun)
except InputError as error:
    raise WorkflowError(str(error)) from None


times_in_dry_run = {}


def note_time(file, nanoseconds):
    """Have Snakemake plan as if a file had a time: a dry run changes nothing."""
    seconds, rest = divmod(nanoseconds, 10**9)
    times_in_dry_run[os.path.relpath(file)] = Mtime(local=seconds + 1e-9 * rest)


# What is stale follows from the manifests, not from Snakemake's records. Jobs of a cluster are told what to do.
stale = {}
if workflow.is_main_process:
    keep_times = [note_time] if workflow.output_settings.dryrun else []
    stale = stale_jobs(experiment, layout, targets, *keep_times)
for line in explain(stale, stages.expected_manifests(experiment, layout, targets)):
    console.print(line)

running = RunningMark(layout.running)
resolved_config = json.dumps(experiment.model_dump(mode="json"))  # ASCII

# As a constant: Snakemake would evaluate its own default of tmpdir for each of thousands of jobs when it plans them. Each
# process that runs a job reads this file again, so it is that machine's folder.
job_resources = {
    "mem_mb": experiment.compute.memory_mb,
    "runtime": experiment.compute.runtime_minutes,
    "tmpdir": tempfile.gettempdir(),
}


def force_if_stale(*of_rule, name=None):
    """An input function that gives no file, and has its job forced if it is stale: only jobs that are asked for are."""

    def force(wildcards):
        if (
            times_in_dry_run
        ):  # here Snakemake has somewhere to keep them, and has not looked yet
            workflow.iocache.mtime.update(times_in_dry_run)
            times_in_dry_run.clear()
        subject = name or "-".join(map(str, wildcards))
        for stage in of_rule:
            if stage == "audit":
                manifest = layout.audit
            elif stage in stages.RUN_STAGES:
                manifest = layout.run_manifest(stage, subject)
            else:
                manifest = layout.manifest(stage, subject)
            if manifest in stale:
                workflow.dag.forcefiles.add(str(manifest))
        return []

    return force


def dataset_of(run):
    return experiment.run(run).dataset


def pretrain_beton(run):
    dataset = dataset_of(run)
    return layout.beton(dataset.name, dataset.data.pretrain_split)


def data_manifests(run):
    dataset = dataset_of(run)
    return [
        layout.manifest("data", f"{dataset.name}-{split}")
        for split in dataset.data.splits
    ]


def probe_betons(run):
    dataset = dataset_of(run)
    return [layout.beton(dataset.name, split) for split in ("train", "test")]


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
