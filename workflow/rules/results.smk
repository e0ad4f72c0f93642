rule collect:
    """Gather every run's measurements into one tidy table."""
    input:
        asks_for("collect"),
    output:
        writes("collect", experiment.config.name),
    log:
        log_of("collect"),
    benchmark:
        benchmark_of("collect")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} collect {params.experiment}"


rule judge:
    """Judge the claims by the settings of the study."""
    input:
        asks_for("judge"),
    output:
        writes("judge", experiment.config.name),
    log:
        log_of("judge"),
    benchmark:
        benchmark_of("judge")
    conda:
        "../../envs/environment.yaml"
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} judge {params.experiment}"


if stages_of("theory", experiment.config):

    rule theory:
        """Check the theorems numerically, without data or runs."""
        input:
            asks_for("theory"),
        output:
            writes("theory", experiment.config.name),
        log:
            log_of("theory"),
        benchmark:
            benchmark_of("theory")
        conda:
            "../../envs/environment.yaml"
        resources:
            **job_resources,
        params:
            experiment=layout.root,
        shell:
            "dhel-kcl --log {log} theory {params.experiment}"
