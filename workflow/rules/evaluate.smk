rule evaluate:
    """Linear evaluation and k-nearest-neighbour accuracy of frozen features."""
    input:
        force_if_stale("evaluate"),
        features=layout.features("{run}"),
    output:
        evaluation=layout.evaluation("{run}"),
        classifier=layout.classifier("{run}"),
        manifest=layout.run_manifest("evaluate", "{run}"),
    log:
        layout.log("evaluate", "{run}"),
    benchmark:
        layout.benchmark("evaluate", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} evaluate {params.experiment} {wildcards.run}"
