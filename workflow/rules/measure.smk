# Not a job for each of these stages: the features would wait on the disk until the others ran, and planning, and a cluster's
# queue, would have two jobs more for each run. Not temp(): Snakemake keeps such files of jobs that it was asked for.
rule measure:
    """Compute the features of the frozen encoder, evaluate and analyse them, and discard them."""
    input:
        force_if_stale(*stages.FEATURE_STAGES),
        encoder=layout.encoder("{run}"),
        outcome=layout.outcome("{run}"),
        betons=lambda wildcards: probe_betons(wildcards.run),
    output:
        evaluation=layout.evaluation("{run}"),
        classifier=layout.classifier("{run}"),
        representation=layout.representation("{run}"),
        manifests=[
            layout.run_manifest(stage, "{run}") for stage in stages.FEATURE_STAGES
        ],
    log:
        features=layout.log("features", "{run}"),
        evaluate=layout.log("evaluate", "{run}"),
        analyse=layout.log("analyse", "{run}"),
    benchmark:
        layout.benchmark("measure", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
        gpu=min(1, experiment.compute.gpus_per_run),
    params:
        experiment=layout.root,
        features=str(layout.features("{run}")),
    shell:
        """
        trap 'rm -f {params.features}' EXIT
        dhel-kcl --log {log.features} features {params.experiment} {wildcards.run}
        dhel-kcl --log {log.evaluate} evaluate {params.experiment} {wildcards.run}
        dhel-kcl --log {log.analyse} analyse {params.experiment} {wildcards.run}
        """
