rule data:
    """Write one split of a data set as an FFCV beton with a checksum sidecar."""
    input:
        force_if_stale("data"),
        class_list=lambda wildcards: experiment.dataset(
            wildcards.dataset
        ).data.class_list
        or [],
    output:
        beton=layout.beton("{dataset}", "{split}"),
        sidecar=f"{layout.beton('{dataset}', '{split}')}.json",
        manifest=layout.manifest("data", "{dataset}-{split}"),
    log:
        layout.log("data", "{dataset}-{split}"),
    benchmark:
        layout.benchmark("data", "{dataset}-{split}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} data {params.experiment} {wildcards.dataset} {wildcards.split}"
