rule analyse:
    """Alignment, uniformity, rank and spectrum of the features."""
    input:
        force_if_stale("analyse"),
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
    shell:
        "dhel-kcl --log {log} analyse {params.experiment} {wildcards.run}"
