rule pretrain:
    """Pretrain one run; a restarted job continues from its last checkpoint."""
    input:
        force_if_stale("pretrain"),
        beton=lambda wildcards: pretrain_beton(wildcards.run),
        # Not read here: their jobs check what later stages need of the images, before hours of training are spent.
        checked=lambda wildcards: [
            ancient(path) for path in data_manifests(wildcards.run)
        ],
    output:
        encoder=layout.encoder("{run}"),
        outcome=layout.outcome("{run}"),
        training_log=layout.training_log("{run}"),
        throughput=layout.throughput("{run}"),
        manifest=layout.run_manifest("pretrain", "{run}"),
    log:
        layout.log("pretrain", "{run}"),
    benchmark:
        layout.benchmark("pretrain", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads * max(1, experiment.compute.gpus_per_run)
    resources:
        **job_resources
        | {
            "mem_mb": experiment.compute.memory_mb
            * max(1, experiment.compute.gpus_per_run)
        },
        gpu=experiment.compute.gpus_per_run,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} pretrain {params.experiment} {wildcards.run}"
