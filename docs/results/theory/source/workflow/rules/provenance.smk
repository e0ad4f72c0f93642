rule audit:
    """Trace every number back to its checkpoint, beton and configuration, and rehash every file."""
    input:
        force_audit_if_stale,
        report=layout.report,
        manifest=STAGES["report"].manifest(layout, experiment.config.name),
    output:
        audit=layout.audit,
    log:
        layout.log("audit"),
    benchmark:
        layout.benchmark("audit")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} audit {params.experiment}"
