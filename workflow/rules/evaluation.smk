if compute.keep_features:

    rule features:
        """Compute the features of the frozen encoder."""
        input:
            asks_for("features"),
        output:
            writes("features", "{run}"),
        log:
            log_of("features", "{run}"),
        benchmark:
            benchmark_of("features", "{run}")
        conda:
            "../../envs/environment.yaml"
        threads: compute.threads
        resources:
            **job_resources,
            gpu=gpus("features"),
        params:
            experiment=layout.root,
        shell:
            "dhel-kcl --log {log} features {params.experiment} {wildcards.run}"

    rule evaluate:
        """Measure linear-probe and k-nearest-neighbour accuracy of frozen features."""
        input:
            asks_for("evaluate"),
        output:
            writes("evaluate", "{run}"),
        log:
            log_of("evaluate", "{run}"),
        benchmark:
            benchmark_of("evaluate", "{run}")
        conda:
            "../../envs/environment.yaml"
        threads: compute.threads
        resources:
            **job_resources,
        params:
            experiment=layout.root,
        shell:
            "dhel-kcl --log {log} evaluate {params.experiment} {wildcards.run}"

    rule analyse:
        """Measure alignment, uniformity, rank and spectrum of the features."""
        input:
            asks_for("analyse"),
        output:
            writes("analyse", "{run}"),
        log:
            log_of("analyse", "{run}"),
        benchmark:
            benchmark_of("analyse", "{run}")
        conda:
            "../../envs/environment.yaml"
        threads: compute.threads
        resources:
            **job_resources,
        params:
            experiment=layout.root,
        shell:
            "dhel-kcl --log {log} analyse {params.experiment} {wildcards.run}"

else:

    # Not a job for each of these stages: the features would wait on the disk until the others ran, and planning, and a cluster's
    # queue, would have two jobs more for each run. Not temp(): Snakemake keeps such files of jobs that it was asked for.
    rule measure:
        """Compute the features of the frozen encoder, evaluate and analyse them, and discard them."""
        input:
            asks_for("features"),
            analysed=force_if_stale("evaluate", "analyse"),
        output:
            [
                path
                for name in FEATURE_STAGES
                for path in writes(name, "{run}")
                if path != layout.features("{run}")
            ],
        log:
            features=log_of("features", "{run}"),
            evaluate=log_of("evaluate", "{run}"),
            analyse=log_of("analyse", "{run}"),
        benchmark:
            layout.benchmark("measure", "{run}")
        conda:
            "../../envs/environment.yaml"
        threads: compute.threads
        resources:
            **job_resources,
            gpu=gpus("features"),
        params:
            experiment=layout.root,
            features=str(layout.features("{run}")),
        shell:
            """
            trap 'rm -f {params.features}' EXIT
            dhel-kcl --log {log.features} features {params.experiment} {wildcards.run}
            dhel-kcl --log {log.evaluate} evaluate {params.experiment} {wildcards.run}
            dhel-kcl --log {log.analyse} analyse {params.experiment} {wildcards.run}
            """


rule augmented_probe:
    """Evaluate a linear probe trained by SGD on augmented images, the encoder frozen."""
    input:
        asks_for("augmented_probe"),
    output:
        writes("augmented_probe", "{run}"),
    log:
        log_of("augmented_probe", "{run}"),
    benchmark:
        benchmark_of("augmented_probe", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
        gpu=gpus("augmented_probe"),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} augmented-probe {params.experiment} {wildcards.run}"


rule corruptions:
    """Measure the accuracy of the linear classifier on corrupted test images, the encoder frozen."""
    input:
        asks_for("corruptions"),
    output:
        writes("corruptions", "{run}"),
    log:
        log_of("corruptions", "{run}"),
    benchmark:
        benchmark_of("corruptions", "{run}")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
        gpu=gpus("corruptions"),
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} corruptions {params.experiment} {wildcards.run}"
