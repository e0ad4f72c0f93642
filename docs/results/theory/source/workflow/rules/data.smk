rule data:
    """Write one split of a data set as an FFCV beton with a checksum sidecar; download it first if needed."""
    input:
        asks_for("data"),
    output:
        writes("data", "{dataset}/{split}"),
    log:
        log_of("data", "{dataset}/{split}"),
    benchmark:
        benchmark_of("data", "{dataset}/{split}")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} data {params.experiment} {wildcards.dataset} {wildcards.split}"
