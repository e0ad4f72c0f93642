from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

# Built from envs/dhel-kcl.def; jobs run in it under --sdm apptainer.
if Path("dhel-kcl.sif").exists():

    container: "dhel-kcl.sif"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/provenance.smk"


wildcard_constraints:
    run="[^/]+",
    dataset="[^/-]+",
    split="pretrain|train|test",


localrules:
    all,
    figures,
    tables,


# This is not a rule, because jobs that depend on a rule's output would no longer be checked for changed parameters.
onstart:
    gc.enable()
    shell(
        "printf '%s' {resolved_config:q} | dhel-kcl configure - --output {layout.root}"
    )
    running.set()
    stop_jobs_on_signals()


onsuccess:
    running.clear()


onerror:
    running.clear()


rule all:
    default_target: True
    input:
        layout.explorer,
        layout.report,
        layout.audit,
