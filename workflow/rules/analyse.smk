rule analyse:
    """Alignment, uniformity, rank and spectrum of the features."""
    input:
        features=layout.features("{run}"),
    output:
        representation=layout.representation("{run}"),
        manifest=layout.run_manifest("analyse", "{run}"),
    log:
        layout.log("analyse", "{run}"),
    benchmark:
        layout.benchmark("analyse", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
        digest=lambda wildcards: stages.job_digest(experiment, "analyse", wildcards.run),
    shell:
        "dhel-kcl --log {log} analyse {params.experiment} {wildcards.run}"
