rule features:
    """Compute the features of the frozen encoder."""
    input:
        force_if_stale("features"),
        encoder=layout.encoder("{run}"),
        outcome=layout.outcome("{run}"),
        betons=lambda wildcards: probe_betons(wildcards.run),
    output:
        features=layout.features("{run}"),
        manifest=layout.run_manifest("features", "{run}"),
    log:
        layout.log("features", "{run}"),
    benchmark:
        layout.benchmark("features", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
        gpu=min(1, experiment.compute.gpus_per_run),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} features {params.experiment} {wildcards.run}"
