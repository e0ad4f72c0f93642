rule measure:
    """Compute, evaluate and analyse one run's features in one process; only missing or stale stages run."""
    input:
        asks_for("measure"),
    output:
        writes("measure", "{run}"),
    log:
        log_of("measure", "{run}"),
    benchmark:
        benchmark_of("measure", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
        gpu=gpus("measure"),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} measure {params.experiment} {wildcards.run}"
