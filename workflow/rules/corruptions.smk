rule corruptions:
    """Accuracy of the linear classifier on corrupted test images, the encoder frozen."""
    input:
        force_if_stale("corruptions"),
        encoder=layout.encoder("{run}"),
        outcome=layout.outcome("{run}"),
        classifier=layout.classifier("{run}"),
        beton=lambda wildcards: layout.beton(dataset_of(wildcards.run).name, "test"),
    output:
        accuracies=layout.corruptions("{run}"),
        manifest=layout.run_manifest("corruptions", "{run}"),
    log:
        layout.log("corruptions", "{run}"),
    benchmark:
        layout.benchmark("corruptions", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
        gpu=min(1, experiment.compute.gpus_per_run),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} corruptions {params.experiment} {wildcards.run}"
