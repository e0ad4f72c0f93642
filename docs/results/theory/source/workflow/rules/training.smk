rule pretrain:
    """Pretrain one run; a restarted job resumes from its last checkpoint."""
    input:
        asks_for("pretrain"),
    output:
        writes("pretrain", "{run}"),
    log:
        log_of("pretrain", "{run}"),
    benchmark:
        benchmark_of("pretrain", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads * max(1, gpus("pretrain"))
    resources:
        **job_resources | {"mem_mb": compute.memory_mb * max(1, gpus("pretrain"))},
        gpu=gpus("pretrain"),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} pretrain {params.experiment} {wildcards.run}"
