# Of each run's job only the manifest, its last file, which stands for the others: to name thousands of those again would
# slow planning.
rule collect:
    """Gather every measurement of the runs into one tidy table."""
    input:
        force_if_stale("collect"),
        betons=[
            layout.beton(dataset.name, dataset.data.pretrain_split)
            for dataset in experiment.datasets
        ],
        manifests=[
            layout.run_manifest(stage, run)
            for run in experiment.runs
            for stage in stages.run_stages(experiment)
        ],
        data_manifests=[
            layout.manifest("data", f"{dataset.name}-{split}")
            for dataset in experiment.datasets
            for split in dataset.data.splits
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
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} collect {params.experiment}"


for target in targets.values():

    rule:
        name:
            target.name
        input:
            force_if_stale("render", name=target.name),
            tables=[layout.table(name) for name in target.tables],
            data=target.data,
        output:
            products=report_products(target),
            manifest=layout.manifest("render", target.name),
        log:
            layout.log("render", target.name),
        benchmark:
            layout.benchmark("render", target.name)
        conda:
            "../../envs/environment.yaml"
        params:
            experiment=layout.root,
            target=target.name,
            caption=target.caption,
        shell:
            "dhel-kcl --log {log} render {params.experiment} {params.target}"


rule figures:
    """Every figure."""
    input:
        [layout.products(name) for name in targets if targets[name].is_figure],


rule tables:
    """Every table."""
    input:
        [layout.products(name) for name in targets if not targets[name].is_figure],


# The explorer and the report read the manifests of runs too; naming thousands of them again would only slow planning,
# as the results depend on them. Those of figures and tables are named: one that is drawn again has the same bytes, by
# which Snakemake would take the report for up to date.
rule explorer:
    """One page that works offline, to filter the runs and look into each of them."""
    input:
        force_if_stale("explorer"),
        results=layout.results,
    output:
        explorer=report(
            layout.explorer,
            caption="../report/caption.rst",
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
        **job_resources,
    params:
        experiment=layout.root,
        caption="Every run on one page that works without a network: its accuracies, effective rank, spectrum and training "
        "loss, with the manifest of its pretraining. Its links to manifests work from the experiment's folder only.",
    shell:
        "dhel-kcl --log {log} explorer {params.experiment}"


rule report:
    """One self-contained page with every figure, table and setting."""
    input:
        force_if_stale("report"),
        results=layout.results,
        theory=layout.theory,
        explorer=layout.explorer,
        products=[layout.products(name) for name in targets],
        manifests=[
            *[layout.manifest(name) for name in ("theory", "collect", "explorer")],
            *[layout.manifest("render", name) for name in targets],
        ],
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
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} report {params.experiment}"


rule crate:
    """Make the folder an RO-Crate, from the manifests, and list the software of the environment."""
    input:
        force_if_stale("crate"),
        report=layout.report,
        manifest=layout.manifest("report"),
    output:
        crate=layout.crate,
        sbom=layout.sbom,
        # Not removed before the job, which reads in it what the last one copied into source/. That folder is no output:
        # Snakemake would remove it with whatever a user keeps there.
        manifest=update(layout.manifest("crate")),
    log:
        layout.log("crate"),
    benchmark:
        layout.benchmark("crate")
    conda:
        "../../envs/environment.yaml"
    resources:
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} crate {params.experiment}"


rule audit:
    """Trace every number back to its checkpoint, beton and configuration, hashing every file again."""
    input:
        force_if_stale("audit"),
        report=layout.report,
        crate=layout.crate,
        sbom=layout.sbom,
        manifest=layout.manifest("crate"),
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
        **job_resources,
    params:
        experiment=layout.root,
    shell:
        "dhel-kcl --log {log} audit {params.experiment}"
