rule collect:
    """Gather every measurement of the runs into one tidy table."""
    input:
        betons=[
            layout.beton(dataset.name, dataset.data.pretrain_split)
            for dataset in experiment.datasets
        ],
        measurements=[
            file
            for run in experiment.runs
            for file in layout.measurements(run, stages.run_stages(experiment))
        ],
    output:
        parquet=layout.results,
        csv=layout.results.with_suffix(".csv"),
        manifest=layout.manifest("collect"),
    log:
        layout.log("collect"),
    benchmark:
        layout.benchmark("collect")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        mem_mb=experiment.compute.memory_mb,
        runtime=experiment.compute.runtime_minutes,
    params:
        experiment=layout.root,
        digest=stages.job_digest(experiment, "collect"),
    shell:
        "dhel-kcl --log {log} collect {params.experiment}"


for target in stages.TARGETS:

    rule:
        name:
            target
        input:
            results=stages.source_table(layout, target),
            data=stages.DATA_OF.get(target, []),
        output:
            products=report_products(target),
            manifest=layout.manifest("render", target),
        log:
            layout.log("render", target),
        benchmark:
            layout.benchmark("render", target)
        conda:
            "../../envs/environment.yaml"
        params:
            experiment=layout.root,
            target=target,
            digest=stages.script_digest(Path("paper_figures") / f"{target}.py"),
        shell:
            "dhel-kcl --log {log} render {params.experiment} {params.target}"


rule figures:
    """Every figure."""
    input:
        [layout.products(target) for target in stages.FIGURES],


rule tables:
    """Every table."""
    input:
        [layout.products(target) for target in stages.TABLES],


rule explorer:
    """One page that works offline, to filter the runs and look into each of them."""
    input:
        results=layout.results,
        manifests=list(stages.pretraining_manifests(experiment, layout).values()),
        style="paper_figures/style.py",
    output:
        explorer=report(
            layout.explorer,
            caption="../report/explorer.rst",
            category="Explorer",
            labels={"name": "explorer", "format": "html"},
        ),
        manifest=layout.manifest("explorer"),
    log:
        layout.log("explorer"),
    benchmark:
        layout.benchmark("explorer")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        mem_mb=experiment.compute.memory_mb,
        runtime=experiment.compute.runtime_minutes,
    params:
        experiment=layout.root,
        digest=stages.job_digest(experiment, "explorer"),
    shell:
        "dhel-kcl --log {log} explorer {params.experiment}"


rule report:
    """One self-contained page with every figure, table and setting."""
    input:
        results=layout.results,
        theory=layout.theory,
        explorer=layout.explorer,
        products=[layout.products(target) for target in stages.TARGETS],
        captions=[f"workflow/report/{target}.rst" for target in stages.TARGETS],
        manifests=stages.reported_manifests(experiment, layout),
    output:
        report=layout.report,
        manifest=layout.manifest("report"),
    log:
        layout.log("report"),
    benchmark:
        layout.benchmark("report")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        mem_mb=experiment.compute.memory_mb,
        runtime=experiment.compute.runtime_minutes,
    params:
        experiment=layout.root,
        digest=stages.job_digest(experiment, "report"),
    shell:
        "dhel-kcl --log {log} report {params.experiment}"


rule audit:
    """Trace every number back to its checkpoint, beton and configuration, hashing every file again."""
    input:
        report=layout.report,
    output:
        audit=layout.audit,
    log:
        layout.log("audit"),
    benchmark:
        layout.benchmark("audit")
    conda:
        "../../envs/environment.yaml"
    threads: experiment.compute.threads
    resources:
        mem_mb=experiment.compute.memory_mb,
        runtime=experiment.compute.runtime_minutes,
    params:
        experiment=layout.root,
        digest=stages.job_digest(experiment, "audit"),
    shell:
        "dhel-kcl --log {log} audit {params.experiment}"
