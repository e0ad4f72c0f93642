"""The table of stages: what each one reads, writes and depends on, in order from the configuration to the report.

Rules, commands, manifests, staleness, repair, audit, trace and crate are derived from these rows. To add a stage, write
a module with a function ``run(job)`` (see `dhel_kcl.jobs.job`), a row here and a rule in ``workflow/rules``; a row with
``rule="measure"`` needs no rule of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dhel_kcl import declarations
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout, sidecar_path

Files = dict[str, Path]
"""Paths by the names that a manifest uses for them."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the table.

    A job of the stage is about a *subject*: the experiment's name, ``dataset/split``, a run's id, or a figure or table.

    Attributes:
        name: name of the stage, its command, and its rule.
        each: the kind of subject; there is one job for each subject of that kind.
        module: the module whose function ``run`` carries out a job.
        help: the first line of ``dhel-kcl NAME --help``.
        writes: the files that a job writes.
        reads: the files that a job reads.
        depends: the settings that a job depends on, as JSON values.
        gathers: manifests that are the inputs of the rule in place of the run files that the job reads.
        after: manifests of jobs that must run first although this job reads none of their files.
        measured: names of the written files whose measurements `collect` gathers.
        plugins: modules that a job uses because the configuration names something they define.
        declared: further values that belong to the digest of its code, as JSON values.
        rule: the rule that runs the stage, if one process runs several stages of a run; None if it has its own rule.
        asked: whether a configuration includes the stage.
        gpus: how many GPUs a job uses, if the experiment uses any; None if the stage never does.
    """

    name: str
    each: Literal["experiment", "split", "run", "target"]
    module: str
    help: str
    writes: Callable[[Layout, str], Files]
    reads: Callable[[Experiment, str], Files] = lambda experiment, subject: {}
    depends: Callable[[Experiment, str], Any] = lambda experiment, subject: {}
    gathers: Callable[[Experiment, str], Iterable[Path]] = lambda experiment, subject: ()
    after: Callable[[Experiment, str], Iterable[Path]] = lambda experiment, subject: ()
    measured: tuple[str, ...] = ()
    plugins: Callable[[Experiment, str], tuple[str, ...]] = lambda experiment, subject: ()
    declared: Callable[[], list[Any]] = list
    rule: str | None = None
    asked: Callable[[ExperimentConfig], bool] = lambda config: True
    gpus: Callable[[ComputeConfig], int] | None = None

    def subjects(self, experiment: Experiment) -> list[str]:
        """Return the subjects of an experiment's jobs of this stage; none if the configuration leaves the stage out."""
        config = experiment.config
        if not self.asked(config):
            return []
        match self.each:
            case "split":
                return [f"{each.name}/{split}" for each in config.datasets for split in each.data.splits]
            case "run":
                return list(config.runs)
            case "target":
                return list(experiment.targets)
        return [config.name]

    def manifest(self, layout: Layout, subject: str) -> Path:
        """Return the path of a job's manifest."""
        if self.each == "run":
            return layout.run_manifest(self.name, subject)
        return layout.manifest(*self.label(subject))

    def label(self, subject: str) -> tuple[str, ...]:
        """Return the parts of a manifest's name: the stage and, if it has several jobs, the subject."""
        return _label(self.name, self.each, subject)

    def rule_label(self, subject: str) -> tuple[str, ...]:
        """Return the parts of the name of a log and a benchmark: the rule and, if it has several jobs, the subject."""
        return _label(self.rule or self.name, self.each, subject)


def _label(name: str, each: str, subject: str) -> tuple[str, ...]:
    return (name,) if each == "experiment" else (name, subject.replace("/", "-"))


def _by_name(*paths: Path) -> Files:
    return {path.name: path for path in paths}


def _by_path(layout: Layout, paths: Iterable[Path]) -> Files:
    """Return paths by their place in the experiment's folder; a path outside it is its own key."""
    return {str(path.relative_to(layout.root) if path.is_relative_to(layout.root) else path): path for path in paths}


def _whole(experiment: Experiment, subject: str) -> Any:
    return experiment.config.model_dump(mode="json")


def _threads_and_device(experiment: Experiment) -> dict[str, Any]:
    compute = experiment.config.compute
    return {"threads": compute.threads, "device": compute.device, "tf32": compute.tf32}


def _labelled_betons(experiment: Experiment, run: str) -> list[Path]:
    dataset = experiment.config.run(run).dataset.name
    return [experiment.layout.beton(dataset, split) for split in ("train", "test")]


def _frozen_encoder(experiment: Experiment, run: str) -> Files:
    """Return the files read by a stage that applies a run's encoder to labelled images."""
    layout = experiment.layout
    return _by_name(layout.encoder(run), layout.outcome(run), *_labelled_betons(experiment, run))


def _one_gpu(compute: ComputeConfig) -> int:
    return min(1, compute.gpus_per_run)


def template(name: str) -> Path:
    """Return the path of a page's template."""
    return Path(__file__).parents[1] / "paper" / f"{name}.j2"


def _titles() -> list[Any]:
    kinds = {name: kind.title for name, kind in declarations.kinds().items()}
    return [declarations.hyperparameters(), declarations.loss_titles(), kinds]


# data


def _class_list(experiment: Experiment, split: str) -> Files:
    listed = experiment.config.dataset(split.partition("/")[0]).data.class_list
    return {"class_list": listed} if listed else {}


def _source(experiment: Experiment, split: str) -> Any:
    return experiment.config.dataset(split.partition("/")[0]).model_dump(mode="json", include={"data"})


def _kind(experiment: Experiment, split: str) -> tuple[str, ...]:
    return (declarations.kinds()[experiment.config.dataset(split.partition("/")[0]).data.kind].module,)


# training


def _pretrain_beton(experiment: Experiment, run: str) -> Files:
    dataset = experiment.config.run(run).dataset
    return _by_name(experiment.layout.beton(dataset.name, dataset.data.pretrain_split))


def _betons_checked(experiment: Experiment, run: str) -> list[Path]:
    """Return the manifests of the data set's betons, including those that pretraining does not read.

    The jobs that write them check the images for later stages before hours are spent on training.
    """
    dataset = experiment.config.run(run).dataset
    return [STAGES["data"].manifest(experiment.layout, f"{dataset.name}/{split}") for split in dataset.data.splits]


def _training(experiment: Experiment, run: str) -> Any:
    config = experiment.config
    values = config.run(run).model_dump(mode="json")
    for key in ("protocol", "probe"):  # resolved already, or irrelevant to training
        values["dataset"].pop(key)
    values["dataset"]["optimizer"].pop("learning_rate")
    arithmetic = config.compute.model_dump(include={"precision", "compile", "gpus_per_run"})
    return {**values, "monitor": config.monitor.model_dump(), **_threads_and_device(experiment), **arithmetic}


def _loss(experiment: Experiment, run: str) -> tuple[str, ...]:
    loss = experiment.config.run(run).loss
    named = [declarations.losses()[str(loss["name"])]]
    named += [declarations.kernels()[str(loss["kernel"])]] if "kernel" in loss else []
    return tuple(each.module for each in named)


# evaluation


def _views(experiment: Experiment, subject: str) -> Any:
    run = experiment.config.run(subject)
    views = run.dataset.model_dump(mode="json", include={"augmentation", "image_size"})
    return {**views, "seed": run.seed, **_threads_and_device(experiment)}


def _probe(experiment: Experiment, run: str) -> Any:
    config = experiment.config
    values = config.evaluation.model_dump(mode="json", exclude={"augmented_images", "corruptions"})
    return {**values, "threads": config.compute.threads, "seed": config.run(run).seed}


def _augmented_probe(experiment: Experiment, subject: str) -> Any:
    run = experiment.config.run(subject)
    probe = run.dataset.model_dump(mode="json", include={"probe", "image_size"})
    return {**probe, "seed": run.seed, **_threads_and_device(experiment)}


def _classified(experiment: Experiment, subject: str) -> Files:
    layout, run = experiment.layout, experiment.config.run(subject)
    test = layout.beton(run.dataset.name, "test")
    return _by_name(layout.encoder(run.id), layout.outcome(run.id), layout.classifier(run.id), test)


def _corrupted(experiment: Experiment, subject: str) -> Any:
    run = experiment.config.run(subject)
    return {"image_size": run.dataset.image_size, "seed": run.seed, **_threads_and_device(experiment)}


def _analysis(experiment: Experiment, run: str) -> Any:
    config = experiment.config
    values = config.analysis.model_dump(mode="json")
    return {**values, "loss": config.run(run).loss, "threads": config.compute.threads}


# results


def _theory(experiment: Experiment, name: str) -> Any:
    theory = experiment.config.theory
    return theory and theory.model_dump(mode="json")


def run_stages(config: ExperimentConfig) -> tuple[str, ...]:
    """Return the stages that each run of an experiment goes through, in order."""
    return tuple(stage.name for stage in STAGES.values() if stage.each == "run" and stage.asked(config))


def measurements(layout: Layout, run: str, stages: Iterable[str]) -> list[Path]:
    """Return the files with everything that the given stages measured on one run."""
    return [STAGES[stage].writes(layout, run)[name] for stage in stages for name in STAGES[stage].measured]


def _everything_measured(experiment: Experiment, subject: str) -> Files:
    config, layout = experiment.config, experiment.layout
    files = [path for run in config.runs for path in measurements(layout, run, run_stages(config))]
    files += [layout.beton(dataset.name, dataset.data.pretrain_split) for dataset in config.datasets]
    return _by_path(layout, files)


def _of_stages(experiment: Experiment, stages: Iterable[str]) -> list[Path]:
    """Return the manifests of an experiment's jobs of the given stages."""
    return [
        STAGES[stage].manifest(experiment.layout, subject)
        for stage in stages
        for subject in STAGES[stage].subjects(experiment)
    ]


def _runs_and_betons(experiment: Experiment, subject: str) -> list[Path]:
    """Return the last manifest of each data and run job; listing thousands of other files would slow down planning."""
    rules = dict.fromkeys(STAGES[name].rule or name for name in run_stages(experiment.config))
    return _of_stages(experiment, ("data", *(stages_of(rule, experiment.config)[-1].name for rule in rules)))


def _study(experiment: Experiment, subject: str) -> Any:
    return experiment.config.study.model_dump(mode="json")


# paper


def _tables_and_data(experiment: Experiment, target: str) -> Files:
    script = experiment.targets[target]
    tables = [experiment.layout.table(name) for name in script.tables]
    return {table.stem: table for table in tables} | {str(file): file for file in script.data}


def _results_and_trainings(experiment: Experiment, subject: str) -> Files:
    layout = experiment.layout
    return _by_path(layout, [layout.results, *_of_stages(experiment, ("pretrain",))])


def _tables(experiment: Experiment) -> list[Path]:
    """Return the tidy tables of an experiment, which has none of the theory if its configuration leaves it out."""
    tables = [experiment.layout.results, experiment.layout.theory, experiment.layout.verdicts]
    return [path for path in tables if experiment.config.theory or path != experiment.layout.theory]


def _all_products(experiment: Experiment, subject: str) -> Files:
    """Return every product, and the manifests of the earlier jobs, which the report summarises."""
    layout = experiment.layout
    products = [path for target in experiment.targets for path in layout.products(target)]
    return _by_path(layout, [*_tables(experiment), layout.explorer, *products, *reported(experiment)])


def reported(experiment: Experiment) -> list[Path]:
    """Return the manifests of all jobs before the report, except that of `configure`."""
    before = [name for name in STAGES if name not in ("configure", "report")]
    return _of_stages(experiment, before)


_ROWS = (
    Stage(
        name="configure",
        each="experiment",
        module="dhel_kcl.jobs.configure",
        help="Check a configuration and write it, with every default filled in, as the experiment's config.yaml.",
        writes=lambda layout, name: {"config": layout.config},
        depends=_whole,
    ),
    Stage(
        name="data",
        each="split",
        module="dhel_kcl.data.data",
        help="Write one split of a data set as an FFCV beton with a checksum sidecar; download it first if needed.",
        reads=_class_list,
        writes=lambda layout, split: {
            "beton": layout.beton(*split.split("/")),
            "sidecar": sidecar_path(layout.beton(*split.split("/"))),
        },
        depends=_source,
        plugins=_kind,
    ),
    Stage(
        name="pretrain",
        each="run",
        module="dhel_kcl.training.pretrain",
        help="Pretrain one run; after an interruption, the same command resumes from the last checkpoint.",
        reads=_pretrain_beton,
        after=_betons_checked,
        writes=lambda layout, run: _by_name(
            layout.encoder(run), layout.outcome(run), layout.training_log(run), layout.throughput(run)
        ),
        depends=_training,
        plugins=_loss,
        measured=("outcome.json", "training_log.csv", "throughput.csv"),
        gpus=lambda compute: compute.gpus_per_run,
    ),
    Stage(
        name="features",
        each="run",
        rule="measure",
        module="dhel_kcl.evaluation.features",
        help="Compute the features of one run's frozen encoder for the train and test images.",
        reads=_frozen_encoder,
        writes=lambda layout, run: _by_name(layout.features(run)),
        depends=_views,
        gpus=_one_gpu,
    ),
    Stage(
        name="evaluate",
        each="run",
        rule="measure",
        module="dhel_kcl.evaluation.evaluate",
        help="Measure the linear-probe and k-nearest-neighbour accuracy of one run's frozen features.",
        reads=lambda experiment, run: _by_name(experiment.layout.features(run)),
        writes=lambda layout, run: _by_name(layout.evaluation(run), layout.classifier(run)),
        depends=_probe,
        measured=("evaluation.json",),
    ),
    Stage(
        name="augmented_probe",
        each="run",
        rule="measure",
        module="dhel_kcl.evaluation.augmented_probe",
        help="Evaluate one run with the public code's protocol: a linear probe trained by SGD on augmented images.",
        reads=_frozen_encoder,
        writes=lambda layout, run: _by_name(layout.augmented_probe(run)),
        depends=_augmented_probe,
        measured=("augmented_probe.json",),
        asked=lambda config: config.evaluation.augmented_images,
        gpus=_one_gpu,
    ),
    Stage(
        name="corruptions",
        each="run",
        rule="measure",
        module="dhel_kcl.evaluation.corruptions",
        help="Measure the accuracy of one run's linear classifier on corrupted test images.",
        reads=_classified,
        writes=lambda layout, run: _by_name(layout.corruptions(run)),
        depends=_corrupted,
        measured=("corruptions.json",),
        asked=lambda config: config.evaluation.corruptions,
        gpus=_one_gpu,
    ),
    Stage(
        name="analyse",
        each="run",
        rule="measure",
        module="dhel_kcl.evaluation.analyse",
        help="Measure the alignment, uniformity, rank, spectrum and loss of one run's features.",
        reads=lambda experiment, run: _by_name(experiment.layout.features(run)),
        writes=lambda layout, run: _by_name(layout.representation(run)),
        depends=_analysis,
        plugins=_loss,
        measured=("representation.json",),
    ),
    Stage(
        name="collect",
        each="experiment",
        module="dhel_kcl.results.collect",
        help="Gather every run's measurements into one tidy table, results.parquet and results.csv.",
        reads=_everything_measured,
        gathers=_runs_and_betons,
        writes=lambda layout, name: {"parquet": layout.results, "csv": layout.results.with_suffix(".csv")},
        depends=lambda experiment, name: {
            "runs": list(experiment.config.runs),
            "stages": list(run_stages(experiment.config)),
        },
        declared=lambda: [declarations.hyperparameters()],
    ),
    Stage(
        name="theory",
        each="experiment",
        module="dhel_kcl.results.theory",
        help="Check the theorems numerically, without data or runs; write theory.parquet and theory.csv.",
        writes=lambda layout, name: {"parquet": layout.theory, "csv": layout.theory.with_suffix(".csv")},
        depends=_theory,
        asked=lambda config: config.theory is not None,
    ),
    Stage(
        name="judge",
        each="experiment",
        module="dhel_kcl.results.judge",
        help="Judge the claims by the study's settings; write verdicts.parquet and verdicts.csv.",
        reads=lambda experiment, name: _by_name(experiment.layout.results),
        writes=lambda layout, name: {"parquet": layout.verdicts, "csv": layout.verdicts.with_suffix(".csv")},
        depends=_study,
        declared=_titles,
    ),
    Stage(
        name="render",
        each="target",
        module="dhel_kcl.paper.render",
        help="Draw one figure (PNG, PDF and its numbers as CSV) or write one table (Markdown and CSV).",
        reads=_tables_and_data,
        writes=lambda layout, target: _by_name(*layout.products(target)),
        declared=_titles,
    ),
    Stage(
        name="explorer",
        each="experiment",
        module="dhel_kcl.paper.explorer",
        help="Write an HTML page that works offline, to filter the runs and inspect each of them.",
        reads=_results_and_trainings,
        writes=lambda layout, name: {"explorer": layout.explorer},
        depends=lambda experiment, name: {"stages": list(run_stages(experiment.config))},
        declared=lambda: [*_titles(), sha256_file(template("explorer.html"))],
    ),
    Stage(
        name="report",
        each="experiment",
        module="dhel_kcl.paper.report",
        help="Write a self-contained HTML page with every figure, table and setting.",
        reads=_all_products,
        writes=lambda layout, name: {"report": layout.report},
        depends=_whole,
        declared=lambda: [sha256_file(template("report.html"))],
    ),
)

STAGES: Mapping[str, Stage] = {row.name: row for row in _ROWS}
"""The stages by name, in the order in which they run."""


def stages_of(rule: str, config: ExperimentConfig) -> tuple[Stage, ...]:
    """Return the stages that one job of a rule runs, in order, without those that the configuration leaves out."""
    return tuple(stage for stage in STAGES.values() if (stage.rule or stage.name) == rule and stage.asked(config))
