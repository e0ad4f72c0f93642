"""The experiment that the rules share; every path and digest comes from the package."""

import gc
import json
import shutil
import tempfile

from dhel_kcl import declarations

from dhel_kcl.jobs import stages
from dhel_kcl.experiment.config import load_combined
from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.orphans import announce_scheduler, stop_jobs_on_signals
from dhel_kcl.provenance.repair import RunningMark, repair_after_crash
from dhel_kcl.provenance.staleness import explain, stale_jobs

# Planning thousands of jobs allocates millions of objects that all stay; to look for garbage among them costs a tenth of
# the time. `onstart` switches the collection on again.
gc.disable()

if shutil.which("dhel-kcl") is None:
    raise WorkflowError(
        "dhel-kcl is not on the PATH; activate the environment: source .venv/bin/activate"
    )

announce_scheduler()

try:
    experiment = load_combined(
        workflow.configfiles or [Path("config/config.yaml")],
        workflow.config_settings.config_args,
    )
    targets = declarations.scripts(stages.SCRIPTS)
    layout = Layout(Path("results") / experiment.name)
    if workflow.is_main_process:
        # Also if no job will run, which Snakemake does not say before it looks at the files.
        repair_after_crash(layout, dry_run=workflow.output_settings.dryrun)
except InputError as error:
    raise WorkflowError(str(error)) from None

# What is stale follows from the manifests, not from Snakemake's records. Jobs of a cluster are told what to do.
stale = stale_jobs(experiment, layout, targets) if workflow.is_main_process else {}
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
