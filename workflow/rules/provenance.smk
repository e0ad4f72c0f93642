def force_audit_if_stale(wildcards):
    """An input function that gives no file, and has the audit done again if it is stale."""
    if layout.audit in stale:
        workflow.dag.forcefiles.add(str(layout.audit))
    return []


rule audit:
    """Trace every number back to its checkpoint, beton and configuration, hashing every file again."""
    input:
        force_audit_if_stale,
        report=layout.report,
        manifest=STAGES["report"].manifest(layout, config.name),
    output:
        audit=layout.audit,
    log:
        layout.log("audit"),
    benchmark:
        layout.benchmark("audit")
    conda:
        "../../envs/environment.yaml"
    threads: config.compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} audit {params.experiment}"
