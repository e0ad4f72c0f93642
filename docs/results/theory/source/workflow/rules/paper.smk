for target in targets.values():

    rule:
        name:
            target.name
        input:
            asks_for("render", target.name),
        output:
            products=report_products(target),
            manifest=STAGES["render"].manifest(layout, target.name),
        log:
            log_of("render", target.name),
        benchmark:
            benchmark_of("render", target.name)
        conda:
            "../../envs/environment.yaml"
        params:
            experiment=layout.root,
            target=target.name,
            caption=target.caption,
        shell:
            "dhel-kcl --log {log} render {params.experiment} {params.target}"


rule figures:
    """Draw every figure."""
    input:
        [layout.products(name) for name in targets if targets[name].is_figure],


rule tables:
    """Write every table."""
    input:
        [layout.products(name) for name in targets if not targets[name].is_figure],


rule explorer:
    """Write an HTML page that works offline, to filter the runs and inspect each of them."""
    input:
        asks_for("explorer"),
    output:
        report(
            layout.explorer,
            caption="../report/caption.rst",
            category="Explorer",
            labels={"name": "explorer", "format": "html"},
        ),
        manifest=STAGES["explorer"].manifest(layout, experiment.config.name),
    log:
        log_of("explorer"),
    benchmark:
        benchmark_of("explorer")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
        caption="Every run on one page that works without a network: its accuracies, effective rank, spectrum and training "
        "loss, with the manifest of its pretraining. Its links to manifests work from the experiment's folder only.",
    shell:
        "dhel-kcl --log {log} explorer {params.experiment}"


rule report:
    """Write a self-contained HTML page with every figure, table and setting."""
    input:
        asks_for("report"),
    output:
        writes("report", experiment.config.name),
    log:
        log_of("report"),
    benchmark:
        benchmark_of("report")
    conda:
        "../../envs/environment.yaml"
    threads: compute.threads
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} report {params.experiment}"
