rule augmented_probe:
    """Linear evaluation by SGD on augmented images, the encoder frozen."""
    input:
        force_if_stale("augmented_probe"),
        encoder=layout.encoder("{run}"),
        outcome=layout.outcome("{run}"),
        betons=lambda wildcards: probe_betons(wildcards.run),
    output:
        accuracies=layout.augmented_probe("{run}"),
        manifest=layout.run_manifest("augmented_probe", "{run}"),
    log:
        layout.log("augmented_probe", "{run}"),
    benchmark:
        layout.benchmark("augmented_probe", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
        gpu=min(1, experiment.compute.gpus_per_run),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} augmented-probe {params.experiment} {wildcards.run}"
