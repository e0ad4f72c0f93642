rule theory:
    """Check the theorems numerically; needs neither data nor runs."""
    input:
        force_if_stale("theory"),
    output:
        parquet=layout.theory,
        csv=layout.theory.with_suffix(".csv"),
        manifest=layout.manifest("theory"),
    log:
        layout.log("theory"),
    benchmark:
        layout.benchmark("theory")
    conda:
        "../../envs/environment.yaml"
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} theory {params.experiment}"
