"""The stages of an experiment: what each depends on, and hence when its results are out of date."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ExperimentConfig
from dhel_kcl.files import sha256_file, sha256_json
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import source_digest

MODULES = {
    "configure": "dhel_kcl.experiment.config",
    "data": "dhel_kcl.data.beton",
    "pretrain": "dhel_kcl.training.pretrain",
    "features": "dhel_kcl.evaluation.features",
    "evaluate": "dhel_kcl.evaluation.evaluate",
    "augmented_probe": "dhel_kcl.evaluation.augmented_probe",
    "corruptions": "dhel_kcl.evaluation.corruptions",
    "analyse": "dhel_kcl.evaluation.analyse",
    "collect": "dhel_kcl.results.collect",
    "theory": "dhel_kcl.results.theory",
    "render": "dhel_kcl.paper.render",
    "explorer": "dhel_kcl.paper.explorer",
    "report": "dhel_kcl.paper.report",
    "crate": "dhel_kcl.provenance.crate",
    "audit": "dhel_kcl.provenance.audit",
}
"""The module that a stage runs."""

RUN_STAGES = ("pretrain", "features", "evaluate", "augmented_probe", "corruptions", "analyse")
"""Stages that each run goes through, in order; `run_stages` gives those of an experiment."""

FEATURE_STAGES = ("features", "evaluate", "analyse")
"""The stages that compute and measure a run's features; one job does all three if the features are not kept."""

SCRIPTS = Path("paper_figures")
"""The folder of the figure and table scripts; each is a target of its name."""

_SOURCES_OF = {"data": "dhel_kcl.data.sources"}


def run_stages(config: ExperimentConfig) -> tuple[str, ...]:
    """The stages that each run of an experiment goes through."""
    asked = {"augmented_probe": config.evaluation.augmented_images, "corruptions": config.evaluation.corruptions}
    return tuple(stage for stage in RUN_STAGES if asked.get(stage, True))


def settings(config: ExperimentConfig, stage: str, subject: str = "") -> Any:
    """The part of the configuration that a job's outputs depend on, as JSON values.

    Args:
        config: the experiment.
        stage: a key of `MODULES`.
        subject: the run for a stage of `RUN_STAGES`, ``dataset/split`` for ``data``, else ignored.

    Raises:
        InputError: the experiment has no such run or data set.
    """
    if stage == "data":
        dataset = config.dataset(subject.partition("/")[0])
        return dataset.model_dump(mode="json", include={"data"})
    if stage in RUN_STAGES:
        run, compute = config.run(subject), config.compute
        threads, device = compute.threads, {"device": compute.device, "tf32": compute.tf32}
        match stage:
            case "pretrain":
                values = run.model_dump(mode="json")
                for key in ("protocol", "probe"):  # resolved, or of no account here
                    values["dataset"].pop(key)
                values["dataset"]["optimizer"].pop("learning_rate")
                arithmetic = compute.model_dump(include={"precision", "compile", "gpus_per_run"})
                return {**values, "monitor": config.monitor.model_dump(), "threads": threads, **device, **arithmetic}
            case "features":
                views = run.dataset.model_dump(mode="json", include={"augmentation", "image_size"})
                return {**views, "seed": run.seed, "threads": threads, **device}
            case "evaluate":
                values = config.evaluation.model_dump(mode="json", exclude={"augmented_images", "corruptions"})
                return {**values, "threads": threads, "seed": run.seed}
            case "augmented_probe":
                probe = run.dataset.model_dump(mode="json", include={"probe", "image_size"})
                return {**probe, "seed": run.seed, "threads": threads, **device}
            case "corruptions":
                return {"image_size": run.dataset.image_size, "seed": run.seed, "threads": threads, **device}
            case "analyse":
                return {**config.analysis.model_dump(mode="json"), "threads": threads}
    if stage == "collect":
        return {"runs": list(config.runs), "stages": list(run_stages(config))}
    if stage == "explorer":
        return {"stages": list(run_stages(config))}
    if stage == "theory":
        return config.theory.model_dump(mode="json")
    return config.model_dump(mode="json") if stage in ("configure", "report", "crate") else {}


def plugins(config: ExperimentConfig, stage: str, subject: str = "") -> tuple[str, ...]:
    """Modules that a job imports because the configuration names what they define.

    Raises:
        InputError: the experiment has no such run or data set.
    """
    if stage == "data":
        return (declarations.kinds()[config.dataset(subject.partition("/")[0]).data.kind].module,)
    if stage == "pretrain":
        loss = config.run(subject).loss
        named = [declarations.losses()[str(loss["name"])]]
        named += [declarations.kernels()[str(loss["kernel"])]] if "kernel" in loss else []
        return tuple(each.module for each in named)
    return ()


@functools.cache
def code_digest(stage: str, *plugged_in: str) -> str:
    """Digest of the source code that a stage runs, and of the modules in `plugged_in`, one job's `plugins`."""
    modules = {MODULES[stage], _SOURCES_OF.get(stage, MODULES[stage]), *plugged_in}
    return sha256_json([*sorted(source_digest(module) for module in modules), *_declared(stage)])[:16]


def _declared(stage: str) -> list[Any]:
    """What a stage depends on besides modules: files, and what the losses and data sets declare."""
    match stage:
        case "report":
            return [sha256_file(_template(name)) for name in ("report.html", "stage_graph.svg")]
        case "collect":
            return [declarations.hyperparameters()]
        case "crate":
            return [sha256_file(path) for path in workflow_files()]
        case "render" | "explorer":
            titles = {name: kind.title for name, kind in declarations.kinds().items()}
            templates = [sha256_file(_template("explorer.html"))] if stage == "explorer" else []
            return [declarations.hyperparameters(), declarations.loss_titles(), titles, *templates]
    return []


def _template(name: str) -> Path:
    return Path(__file__).parents[1] / "paper" / f"{name}.j2"


def script_digest(script: Path) -> str:
    """Digest of a figure or table script, what the scripts share, and the modules behind them."""
    shared = sorted(path for path in script.parent.glob("*.py") if not path.name.startswith(("fig_", "table_")))
    modules = [
        code_digest("render"),
        source_digest("dhel_kcl.results.robustness"),
        source_digest("dhel_kcl.results.statistics"),
    ]
    return sha256_json([*modules, *(sha256_file(path) for path in [script, *shared])])[:16]


def current_code(config: ExperimentConfig, targets: Mapping[str, declarations.Script], stage: str, subject: str) -> str:
    """Digest of the source code that a job would run now; its manifest records the one that it ran.

    Raises:
        InputError: the experiment has no such run or data set.
    """
    if stage == "render":
        return script_digest(targets[subject].path)
    return code_digest(stage, *plugins(config, stage, subject))


def job_digest(config: ExperimentConfig, stage: str, subject: str = "") -> str:
    """Digest of everything but the input files that a job's outputs depend on: settings and source code."""
    code = code_digest(stage, *plugins(config, stage, subject))
    return sha256_json([settings(config, stage, subject), code])[:16]


def expected_manifests(config: ExperimentConfig, layout: Layout, targets: Iterable[str]) -> dict[Path, tuple[str, str]]:
    """Every manifest that a complete experiment with these figures and tables has, with its stage and subject."""
    expected = {layout.manifest("configure"): ("configure", config.name)}
    for dataset in config.datasets:
        for split in dataset.data.splits:
            expected[layout.manifest("data", f"{dataset.name}-{split}")] = ("data", f"{dataset.name}/{split}")
    for run in config.runs:
        for stage in run_stages(config):
            expected[layout.run_manifest(stage, run)] = (stage, run)
    expected[layout.manifest("collect")] = ("collect", config.name)
    expected[layout.manifest("theory")] = ("theory", config.name)
    for target in targets:
        expected[layout.manifest("render", target)] = ("render", target)
    expected[layout.manifest("explorer")] = ("explorer", config.name)
    expected[layout.manifest("report")] = ("report", config.name)
    expected[layout.manifest("crate")] = ("crate", config.name)
    return expected


def workflow_files() -> list[Path]:
    """What defines the workflow: the rules, their environment, and the figure and table scripts.

    Raises:
        InputError: they are not in the current folder.
    """
    if not (main := Path("Snakefile")).exists():
        raise InputError(f"{main}: missing; run this in the root of the repository")
    patterns = (
        "workflow/rules/*.smk",
        "workflow/report/*.rst",
        "envs/environment*",
        "envs/lock.txt",
        f"{SCRIPTS}/*.py",
    )
    return [main, *(path for each in patterns for path in sorted(Path().glob(each)) if path.is_file())]


def pretraining_manifests(config: ExperimentConfig, layout: Layout) -> dict[str, Path]:
    """The manifest of each run's pretraining, which the explorer shows."""
    return {run: layout.run_manifest("pretrain", run) for run in config.runs}


def reported_manifests(config: ExperimentConfig, layout: Layout, targets: Iterable[str]) -> list[Path]:
    """The manifests that the report summarises: of every job before it, but for the writing of the configuration."""
    jobs = expected_manifests(config, layout, targets)
    return [path for path, (stage, _) in jobs.items() if stage not in ("configure", "report", "crate")]


def crated_manifests(config: ExperimentConfig, layout: Layout, targets: Iterable[str]) -> list[Path]:
    """The manifests that the crate describes: of every job before it."""
    jobs = expected_manifests(config, layout, targets)
    return [path for path, (stage, _) in jobs.items() if stage != "crate"]
