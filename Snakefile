from snakemake.utils import min_version

min_version("9.27")

# Loaded only when no --configfile names an experiment: Snakemake would merge the two, grid by grid.
if "name" not in config:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/configure.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/paper.smk"


wildcard_constraints:
    run=(
        "|".join(map(re.escape, experiment.runs))
        if len(experiment.runs) < 100
        else r"[a-z0-9_.+-]+"
    ),
    dataset="|".join(dataset.name for dataset in experiment.datasets),
    split="pretrain|train|test",


localrules:
    all,
    figures,
    tables,
    configure,


rule all:
    default_target: True
    input:
        layout.report,
        layout.audit,
