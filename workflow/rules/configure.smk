rule configure:
    output:
        config=layout.config,
        manifest=layout.manifest("configure"),
    log:
        layout.log("configure"),
    benchmark:
        layout.benchmark("configure")
    conda:
        "../../envs/environment.yaml"
    params:
        experiment=layout.root,
        values=experiment.model_dump_json(),
        digest=stages.job_digest(experiment, "configure"),
    shell:
        "printf '%s' {params.values:q} | dhel-kcl configure - --output {params.experiment} > {log} 2>&1"
