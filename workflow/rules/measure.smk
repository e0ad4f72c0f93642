# A job for each of these stages would hand the features on in a file that is then discarded; and planning, and a cluster's
# queue, have two jobs fewer for each run.
rule measure:
    """Compute the features of the frozen encoder, evaluate and analyse them, and discard them."""
    input:
        encoder=layout.encoder("{run}"),
        outcome=layout.outcome("{run}"),
        betons=lambda wildcards: probe_betons(wildcards.run),
    output:
        features=temp(layout.features("{run}")),
        evaluation=layout.evaluation("{run}"),
        classifier=layout.classifier("{run}"),
        representation=layout.representation("{run}"),
        manifests=[
            layout.run_manifest(stage, "{run}") for stage in stages.FEATURE_STAGES
        ],
    log:
        layout.log("measure", "{run}"),
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
        digests=lambda wildcards: [
            stages.job_digest(experiment, stage, wildcards.run)
            for stage in stages.FEATURE_STAGES
        ],
    shell:
        "dhel-kcl --log {log} measure {params.experiment} {wildcards.run}"
