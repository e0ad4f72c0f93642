"""The command line: one command for each stage, the same one that the workflow runs.

Heavy modules are imported inside the commands, so that `--help` and errors come at once.
"""

import errno
import os
import shlex
import signal
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, TextIO

try:
    import typer
except ModuleNotFoundError:
    sys.exit("error: the command line needs the workflow's packages; in a clone, `make setup` installs them")

from dhel_kcl import declarations, stages
from dhel_kcl.__main__ import INTERRUPTED
from dhel_kcl.config import ExperimentConfig, OnlyConfig, load_config, parse_yaml, write_resolved_config
from dhel_kcl.errors import InputError, escaped, few
from dhel_kcl.layout import Layout
from dhel_kcl.orphans import announce_launcher, end_when_orphaned
from dhel_kcl.ownership import SUMS, check_open_to_jobs, check_open_to_log, is_experiment, needs_configuring
from dhel_kcl.private_folders import private_folder
from dhel_kcl.provenance import record, refuse_future
from dhel_kcl.seeding import derive_seed
from dhel_kcl.strict_yaml import read_scalars

if TYPE_CHECKING:
    from dhel_kcl.seal import Seal

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Reproduce DHEL and kernel contrastive learning (Koromilas et al., ICML 2024), stage by stage.

Every command works on one experiment's folder, such as `results/quickstart`, which `configure` creates.
The workflow (`snakemake --cores all`) runs these same commands in the right order.""",
)


def _from_here(folder: Path) -> Path:
    """A folder given by the name of a link to the current one, or above that, by its place below the current one.

    Files are named by their places, and relative to those of others: two names of one place would not agree.
    """
    here = Path.cwd()
    if folder.is_absolute() and not folder.is_relative_to(here):
        for above in folder.parents:
            if above.exists() and above.samefile(here):
                return here / folder.relative_to(above)
    return folder


Experiment = Annotated[
    Path, typer.Argument(help="The experiment's folder, such as results/quickstart.", callback=_from_here)
]
RunId = Annotated[str, typer.Argument(help="A run of the experiment; `dhel-kcl runs` lists them.")]

_terminal: TextIO | None = None


@app.callback()
def _options(
    log: Annotated[
        Path | None,
        typer.Option(help="Print into this file, NAME.log; errors and the audit's warnings still reach the terminal."),
    ] = None,
) -> None:
    global _terminal
    if log is not None:
        if log.suffix != ".log":
            raise InputError(f"{log}: --log writes a file anew, so it takes names that end in .log only")
        if (rank := os.environ.get("RANK", "0")).isdecimal() and rank != "0":
            log = log.with_suffix(f".process{rank}{log.suffix}")
        check_open_to_log(log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with _open_log(log) as file:
            _terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)


def _open_log(log: Path) -> BinaryIO:
    """Open a file to write it anew; what is no file, or a link to one, is left as it is."""
    another = f"{log}: --log writes a file, and this is a link, a pipe or a device; choose another name"
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads, or a socket
            raise InputError(another) from error
        raise
    file = os.fdopen(descriptor, "wb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise InputError(another)
    file.truncate()
    return file


def _open(experiment: Path, *, to_read: bool = False) -> tuple[Layout, ExperimentConfig]:
    """Open an experiment's folder; a release only to read."""
    layout = Layout(experiment)
    if not layout.config.exists():
        raise InputError(f"{layout.config}: missing; create it with `dhel-kcl configure config/quickstart.yaml`")
    if not to_read:
        check_open_to_jobs(layout)
    return layout, load_config(layout.config)


@app.command()
def configure(
    source: Annotated[str, typer.Argument(help="A configuration file, or - to read YAML or JSON from standard input.")],
    output: Annotated[Path | None, typer.Option(help="Experiment's folder; default results/NAME.")] = None,
) -> None:
    """Check a configuration and write it, with every default filled in, as the experiment's config.yaml."""
    piped = source == "-" or _is_unnamed_pipe(Path(source))
    config = parse_yaml(_pipe(source), "configuration") if piped else load_config(Path(source))
    layout = Layout(output or Path("results") / config.name)
    if not needs_configuring(layout, config):
        return
    if not layout.config.exists():
        from dhel_kcl.repair import check_free

        check_free(layout)
    with record(
        layout.manifest("configure"),
        stage="configure",
        subject=config.name,
        settings=stages.settings(config, "configure"),
        source=stages.code_digest("configure"),
        inputs={} if piped else {"source": Path(source)},
        outputs={"config": layout.config},
    ):
        write_resolved_config(config, layout.config)
    typer.echo(f"{layout.config}: {len(config.runs)} runs")


def _is_unnamed_pipe(path: Path) -> bool:
    """Whether a path is that of a pipe that no file names, as a shell's `<(...)` gives it: it can be read once."""
    return path.is_fifo() and not os.path.lexists(os.path.realpath(path))


def _pipe(source: str) -> str:
    if source == "-":
        return _standard_input()
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{source}: cannot be read ({reason}); give the configuration's file") from error


def _standard_input() -> str:
    if sys.stdin is None:
        raise InputError("standard input: closed; give the configuration's file, or its text on standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"standard input: cannot be read ({reason}); give the configuration's file") from error


@app.command()
def runs(experiment: Experiment) -> None:
    """List the experiment's runs, one a line."""
    _, config = _open(experiment, to_read=True)
    for run in config.runs:
        typer.echo(run)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="A configuration file.")] = Path("config/config.yaml"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of the grid, repeatable: dataset=..., loss=..., batch_size=... or seed=..., with commas."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A device that was measured; default this machine's, else the first.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them work at the same time.")] = 1,
    measured: Annotated[
        Path | None, typer.Option(help="Table that benchmarks/throughput.py wrote; default the one in the package.")
    ] = None,
) -> None:
    """Say what an experiment will cost before it runs: runs, hours and disk of each data set, from measured speeds.

    `--only dataset=cifar10 --only loss=dhel,ntxent --only batch_size=256` asks for a part of the grid, and the command
    that runs this part is printed.
    """
    values: dict[str, list[Any]] = {}
    for filter_ in only or []:
        axis, _, named = filter_.partition("=")
        values.setdefault(axis, []).extend(read_scalars(named.split(",")))
    asked = load_config(config, values or None)
    from rich.console import Console

    from dhel_kcl.plan import MEASURED, choose_device, describe, estimate, load_measured

    table = load_measured(measured or MEASURED)
    chosen = choose_device(table, device)
    Console(width=None if sys.stdout.isatty() else 120).print(
        *describe(estimate(asked, table, chosen), chosen, gpus), sep="\n"
    )
    restriction = f" --config 'only={OnlyConfig(**values).model_dump_json(exclude_none=True)}'" if values else ""
    resources = "" if asked.compute.device == "cpu" else f" --resources gpu={gpus * asked.compute.runs_per_gpu}"
    if values and (there := Layout(Path("results") / asked.name)).config.exists():
        typer.echo(f"{there.root} exists, and keeps its tables and figures if the part has a name of its own:")
        restriction += f" name={asked.name}_part"
    typer.echo(f"snakemake --cores all{resources} --configfile {shlex.quote(str(config))}{restriction}")


@app.command()
def data(
    experiment: Experiment,
    dataset: Annotated[str, typer.Argument(help="A data set of the experiment.")],
    split: Annotated[str, typer.Argument(help="train, test, or (STL-10) pretrain.")],
) -> None:
    """Write one split of a data set as an FFCV beton with a checksum sidecar, downloading it first if need be."""
    layout, config = _open(experiment)
    chosen = config.dataset(dataset)
    if split not in chosen.data.splits:
        raise InputError(f"split {split!r}: data set {dataset} has {', '.join(chosen.data.splits)}")
    import warnings

    from dhel_kcl.console import console
    from dhel_kcl.data.beton import sidecar_path, write_beton
    from dhel_kcl.data.requirements import check_split
    from dhel_kcl.data.sources import open_source

    warnings.filterwarnings("ignore", module="PIL")  # of odd tags and large sizes, without naming the image
    beton = layout.beton(dataset, split)
    with record(
        layout.manifest("data", f"{dataset}-{split}"),
        stage="data",
        subject=f"{dataset}/{split}",
        settings=stages.settings(config, "data", dataset),
        source=stages.code_digest("data", *stages.plugins(config, "data", dataset)),
        inputs={"class_list": chosen.data.class_list} if chosen.data.class_list else {},
        outputs={"beton": beton, "sidecar": sidecar_path(beton)},
    ):
        source = open_source(chosen.data, split)
        info = write_beton(
            source,
            beton,
            storage=chosen.data.storage,
            jpeg_quality=chosen.data.jpeg_quality,
            max_resolution=chosen.data.max_resolution,
            on_corrupt=chosen.data.on_corrupt,
            num_workers=config.compute.loader_workers,
            accept=lambda labels: check_split(config, chosen, split, source, labels),
        )
    left_out = [f"{reason} ({count:,})" for reason, count in info.left_out.items()]
    if info.skipped:
        left_out.append(f"images that cannot be used ({len(info.skipped):,}): {few(info.skipped)}")
    if left_out:
        console.print(f"{sidecar_path(beton)}: left out {', '.join(left_out)}")
    typer.echo(f"{beton}: {info.num_images} images, {len(info.classes)} classes")


@app.command()
def pretrain(experiment: Experiment, run: RunId) -> None:
    """Pretrain one run; interrupted, the same command continues from the last checkpoint.

    With `compute.gpus_per_run` above 1 it starts itself under `torchrun`; started by `torchrun`, it joins the others.
    """
    layout, config = _open(experiment)
    chosen = config.run(run)
    processes = max(1, config.compute.gpus_per_run)
    if config.compute.compile:
        # Torch, when imported, chooses a folder that others may have made, and runs what is there.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder("torchinductor")))
    _claim_gpus(config, processes)
    from dhel_kcl.outcome import read_outcome
    from dhel_kcl.pretrain import pretrain as train
    from dhel_kcl.processes import Processes, become_torchrun

    if processes > 1 and "RANK" not in os.environ:
        if _terminal is not None:  # each process opens a log of its own
            os.dup2(_terminal.fileno(), 1)
            os.dup2(_terminal.fileno(), 2)
        announce_launcher()
        become_torchrun(processes)
    identity = stages.job_digest(config, "pretrain", run)
    beton = layout.beton(chosen.dataset.name, chosen.dataset.data.pretrain_split)
    seeds = {purpose: derive_seed(chosen.seed, purpose) for purpose in ("initialisation", "order", "augmentation")}
    if not Processes.of_environment().is_first:
        train(chosen, config.compute, beton, identity, layout.run(run), config.monitor)
        return
    with _record_run(
        layout,
        config,
        "pretrain",
        run,
        inputs=[beton],
        outputs=[layout.encoder(run), layout.outcome(run), layout.training_log(run), layout.throughput(run)],
        seeds=seeds | {"run": chosen.seed},
    ):
        checkpoints = train(chosen, config.compute, beton, identity, layout.run(run), config.monitor)
    if not read_outcome(layout.outcome(run)).diverged:
        checkpoints.discard()


@app.command()
def features(experiment: Experiment, run: RunId) -> None:
    """Compute the frozen encoder's features of one run for the train and test images."""
    layout, config = _open(experiment)
    chosen = config.run(run)
    _claim_gpus(config)
    from dhel_kcl.features import extract_features

    output = layout.features(run)
    with _record_of_frozen_encoder(layout, config, "features", run, output) as betons:
        extract_features(chosen, config.compute, layout.encoder(run), layout.outcome(run), betons, output)


@app.command()
def evaluate(experiment: Experiment, run: RunId) -> None:
    """Linear evaluation and k-nearest-neighbour accuracy of one run's frozen features."""
    layout, config = _open(experiment)
    from dhel_kcl.linear_probe import evaluate as probe

    seed, outputs = config.run(run).seed, (layout.evaluation(run), layout.classifier(run))
    with _record_run(
        layout, config, "evaluate", run, inputs=[layout.features(run)], outputs=outputs, seeds={"run": seed}
    ):
        probe(layout.features(run), config.evaluation, seed, config.compute.threads, *outputs)


@app.command()
def augmented_probe(experiment: Experiment, run: RunId) -> None:
    """Linear evaluation of one run by the public protocol: SGD on augmented images, the encoder frozen."""
    layout, config = _open(experiment)
    chosen = config.run(run)
    _claim_gpus(config)
    from dhel_kcl.augmented_probe import evaluate as probe

    output = layout.augmented_probe(run)
    with _record_of_frozen_encoder(layout, config, "augmented_probe", run, output) as betons:
        probe(chosen, config.compute, layout.encoder(run), layout.outcome(run), betons, output)


@app.command()
def corruptions(experiment: Experiment, run: RunId) -> None:
    """Accuracy of one run's linear classifier on corrupted test images."""
    layout, config = _open(experiment)
    chosen = config.run(run)
    _claim_gpus(config)
    from dhel_kcl.corruptions import evaluate as classify

    encoder, outcome, classifier = layout.encoder(run), layout.outcome(run), layout.classifier(run)
    test, output = layout.beton(chosen.dataset.name, "test"), layout.corruptions(run)
    with _record_run(
        layout,
        config,
        "corruptions",
        run,
        inputs=[encoder, outcome, classifier, test],
        outputs=[output],
        seeds={"run": chosen.seed},
    ):
        classify(chosen, config.compute, encoder, outcome, classifier, test, output)


@app.command()
def analyse(experiment: Experiment, run: RunId) -> None:
    """Alignment, uniformity, rank and spectrum of one run's features."""
    layout, config = _open(experiment)
    from dhel_kcl.representation import analyse as measure

    with _record_run(
        layout,
        config,
        "analyse",
        run,
        inputs=[layout.features(run)],
        outputs=[layout.representation(run)],
    ):
        measure(layout.features(run), config.analysis, config.compute.threads, layout.representation(run))


def _claim_gpus(config: ExperimentConfig, count: int = 1) -> None:
    """Before the stage's module is imported: FFCV initialises CUDA, which then sees every device."""
    if config.compute.device != "cpu":
        from dhel_kcl.devices import claim_gpus

        claim_gpus(config.compute, count)


@contextmanager
def _record_of_frozen_encoder(
    layout: Layout, config: ExperimentConfig, stage: str, run: str, output: Path
) -> Iterator[dict[str, Path]]:
    """Record a job that applies a run's encoder to the labelled images, whose betons it gives by split."""
    chosen = config.run(run)
    betons = {split: layout.beton(chosen.dataset.name, split) for split in ("train", "test")}
    inputs = [layout.encoder(run), layout.outcome(run), *betons.values()]
    with _record_run(layout, config, stage, run, inputs=inputs, outputs=[output], seeds={"run": chosen.seed}):
        yield betons


def _record_run(
    layout: Layout,
    config: ExperimentConfig,
    stage: str,
    run: str,
    *,
    inputs: Iterable[Path],
    outputs: Iterable[Path],
    seeds: dict[str, int] | None = None,
) -> AbstractContextManager[None]:
    return record(
        layout.run_manifest(stage, run),
        stage=stage,
        subject=run,
        settings=stages.settings(config, stage, run),
        source=stages.code_digest(stage, *stages.plugins(config, stage, run)),
        inputs={path.name: path for path in inputs},
        outputs={path.name: path for path in outputs},
        seeds=seeds,
    )


@app.command()
def collect(experiment: Experiment) -> None:
    """Gather every run's measurements into one tidy table, results.parquet and results.csv."""
    layout, config = _open(experiment)
    from dhel_kcl.results import collect as gather
    from dhel_kcl.results import write_results

    sources = [path for run in config.runs for path in layout.measurements(run, stages.run_stages(config))]
    sources += [layout.beton(dataset.name, dataset.data.pretrain_split) for dataset in config.datasets]
    jobs = stages.expected_manifests(config, layout, ())  # those of runs and betons stand for them in the workflow
    refuse_future(path for path, (stage, _) in jobs.items() if stage in ("data", *stages.RUN_STAGES) and path.exists())
    with record(
        layout.manifest("collect"),
        stage="collect",
        subject=config.name,
        settings=stages.settings(config, "collect"),
        source=stages.code_digest("collect"),
        inputs={str(path.relative_to(layout.root)): path for path in sources},
        outputs={"parquet": layout.results, "csv": layout.results.with_suffix(".csv")},
    ):
        table = gather(config, layout)
        write_results(table, layout.results)
    typer.echo(f"{layout.results}: {len(table)} rows from {table['run'].nunique()} runs")


@app.command()
def theory(experiment: Experiment) -> None:
    """Check the theorems numerically; needs no data and no run. Writes theory.parquet and theory.csv."""
    layout, config = _open(experiment)
    from dhel_kcl.results import write_results
    from dhel_kcl.theory.verification import verify

    with record(
        layout.manifest("theory"),
        stage="theory",
        subject=config.name,
        settings=stages.settings(config, "theory"),
        source=stages.code_digest("theory"),
        inputs={},
        outputs={"parquet": layout.theory, "csv": layout.theory.with_suffix(".csv")},
        seeds={"run": config.theory.seed},
    ):
        table = verify(config.theory)
        write_results(table, layout.theory)
    typer.echo(f"{layout.theory}: {len(table)} rows from {table['run'].nunique()} runs")


@app.command()
def render(
    experiment: Experiment,
    target: Annotated[str, typer.Argument(help="A script in paper_figures, such as fig_batch_size.")],
) -> None:
    """Draw one figure (PNG, PDF and its numbers as CSV) or write one table (Markdown and CSV)."""
    scripts = declarations.scripts(stages.SCRIPTS)
    if target not in scripts:
        raise InputError(f"target {target!r} is unknown; choose one of {', '.join(scripts)}")
    layout, _ = _open(experiment)
    from dhel_kcl.paper import render as draw

    script, products = scripts[target], layout.products(target)
    tables = [layout.table(name) for name in script.tables]
    with record(
        layout.manifest("render", target),
        stage="render",
        subject=target,
        settings={},
        source=stages.script_digest(script.path),
        inputs={table.stem: table for table in tables} | {str(file): file for file in script.data},
        outputs={path.name: path for path in products},
    ):
        draw(script.path, tables, products[0].parent)
    typer.echo("\n".join(str(path) for path in products))


@app.command()
def watch(
    experiment: Experiment,
    run: RunId,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the log.")] = 30,
    once: Annotated[bool, typer.Option(help="Draw once instead of until the run ends.")] = False,
) -> None:
    """Draw fig_training of one run from its log while it trains, into its folder `live`; see also `tensorboard`."""
    layout, config = _open(experiment)
    chosen = config.run(run)
    from dhel_kcl.paper import render_live
    from dhel_kcl.results import training_rows

    log, drawn = layout.training_log(run), 0
    while True:
        over = once or layout.outcome(run).exists()
        seen = log.stat().st_mtime_ns if log.exists() else 0
        if seen > drawn:
            rows = training_rows(chosen, log)
            if (live := layout.live(run)).is_symlink():
                raise InputError(f"{live}: a link, through which files of others would be replaced; remove it")
            paths = render_live(stages.SCRIPTS / "fig_training.py", rows, live)
            typer.echo(f"{paths[1]}: {rows['x'].max():.0f} of {chosen.dataset.epochs} epochs")
            drawn = seen
        if over and not drawn:
            raise InputError(f"{log}: missing; it appears when the first epoch of the run is over")
        if over:
            return
        time.sleep(every)


@app.command()
def explorer(experiment: Experiment) -> None:
    """Write one HTML page that works offline, to filter the runs and look into each of them."""
    layout, config = _open(experiment)
    from dhel_kcl.explorer import write_explorer

    manifests, style = stages.pretraining_manifests(config, layout), stages.SCRIPTS / "style.py"
    with record(
        layout.manifest("explorer"),
        stage="explorer",
        subject=config.name,
        settings=stages.settings(config, "explorer"),
        source=stages.code_digest("explorer"),
        inputs={_shown(path, layout): path for path in [layout.results, *manifests.values(), style]},
        outputs={"explorer": layout.explorer},
    ):
        write_explorer(layout.results, manifests, style, layout.explorer, stages.run_stages(config))
    typer.echo(str(layout.explorer))


def _shown(path: Path, layout: Layout) -> str:
    return str(path.relative_to(layout.root) if path.is_relative_to(layout.root) else path)


@app.command()
def report(experiment: Experiment) -> None:
    """Write one self-contained HTML page with every figure, table and setting."""
    layout, config = _open(experiment)
    from dhel_kcl.report import write_report

    products = [path for target in declarations.scripts(stages.SCRIPTS) for path in layout.products(target)]
    manifests = stages.reported_manifests(config, layout, declarations.scripts(stages.SCRIPTS))
    inputs = [layout.results, layout.theory, layout.explorer, *products, *manifests]
    with record(
        layout.manifest("report"),
        stage="report",
        subject=config.name,
        settings=stages.settings(config, "report"),
        source=stages.code_digest("report"),
        inputs={_shown(path, layout): path for path in inputs},
        outputs={"report": layout.report},
    ):
        write_report(
            layout.config,
            layout.results,
            layout.figures,
            layout.tables,
            layout.report,
            theory=layout.theory,
            explorer=layout.explorer,
            manifests=manifests,
        )
    typer.echo(str(layout.report))


@app.command()
def crate(experiment: Experiment) -> None:
    """Make the folder an RO-Crate, readable by other tools: each job with its files, settings and software."""
    layout, config = _open(experiment)
    from dhel_kcl.crate import write_crate

    outputs: dict[str, Path] = {}
    with record(
        layout.manifest("crate"),
        stage="crate",
        subject=config.name,
        settings=stages.settings(config, "crate"),
        source=stages.code_digest("crate"),
        inputs={_shown(path, layout): path for path in (layout.report, layout.manifest("report"))},
        outputs=outputs,
    ):
        outputs |= {_shown(path, layout): path for path in write_crate(config, layout, stages.SCRIPTS)}
    typer.echo(f"{layout.crate}\n{layout.sbom}")


@app.command()
def audit(
    experiment: Experiment,
    strict: Annotated[bool, typer.Option(help="Let warnings about the code fail the audit.")] = False,
) -> None:
    """Trace every number of every figure and table back to its checkpoint, beton and configuration, re-hashing all.

    If it passes, it seals the folder: `audit.json` lists the sha256 of every file, and later audits find any change.
    """
    from dhel_kcl.artifacts import sha256_file
    from dhel_kcl.audit import audit as check
    from dhel_kcl.audit import begin, conclude

    with suppress(InputError, OSError):  # `conclude` says so
        begin(Layout(experiment))
    layout, config = _open(experiment, to_read=True)
    inputs = (layout.report, layout.crate, layout.sbom, layout.manifest("crate"))
    refuse_future(path for path in inputs if path.exists())
    outcome = check(config, layout, stages.SCRIPTS)
    if strict:
        outcome.problems += [f"{layout.root}: {warning}" for warning in outcome.warnings]
    else:
        _tell(*(f"warning: {warning}" for warning in outcome.warnings))
    _tell(*(f"error: {problem}" for problem in outcome.problems))
    try:
        conclude(outcome, layout)
    except (InputError, OSError) as error:
        _tell(f"warning: {error}")
    if outcome.problems:
        raise InputError(f"{layout.root}: the audit found {len(outcome.problems)} problems, listed above")
    typer.echo(outcome.summary())
    if layout.audit.exists():
        typer.echo(f"{layout.audit}: seals {len(outcome.sha256)} files; its own sha256 is {sha256_file(layout.audit)}")


@app.command()
def repair(
    experiment: Experiment,
    dry_run: Annotated[bool, typer.Option(help="Say what is damaged and change nothing.")] = False,
) -> None:
    """Move files that are not what their manifests record aside; the workflow makes them, and missing ones, again.

    The workflow does this by itself after a crash. Call it when no workflow and none of its jobs runs on any machine.
    It touches nothing behind a link.
    """
    from dhel_kcl.repair import check_is_experiment, is_running, marks
    from dhel_kcl.repair import repair as mend

    layout = Layout(experiment)
    check_is_experiment(layout)
    for mark in marks(layout):
        if is_running(mark):
            raise InputError(f"{mark}: a workflow runs on this experiment; wait for its end")
    damaged = mend(layout, dry_run=dry_run)
    typer.echo(f"{layout.root}: {len(damaged)} damaged files")


@app.command()
def release(
    experiment: Experiment,
    output: Annotated[Path | None, typer.Option(help="Folder of the release; default docs/results/NAME.")] = None,
    theory_only: Annotated[bool, typer.Option(help="Leave out the runs and what is made from them.")] = False,
) -> None:
    """Copy what is published of a finished experiment: no images, weights or features, but all that figures need."""
    layout, config = _open(experiment, to_read=True)
    from dhel_kcl.release import release as publish

    output = output or Path("docs/results") / config.name
    files = publish(config, layout, stages.SCRIPTS, output, theory_only)
    typer.echo(f"{output}: {files} files, listed in {SUMS}")


@app.command()
def redraw(
    releases: Annotated[list[Path], typer.Argument(help="Folders that `release` made, such as docs/results/theory.")],
    output: Annotated[Path, typer.Option(help="Where the products go.")] = Path("results/redrawn"),
) -> None:
    """Verify releases, make their figures, tables and pages again from their tables alone, and compare the numbers."""
    from dhel_kcl.release import redraw as draw

    products = []
    for product in draw(releases, stages.SCRIPTS, output):
        typer.echo(product)
        products.append(product)
    for folder in releases:
        own = [product for product in products if product.release == folder]
        numbers = [product.numbers for product in own if product.numbers is not None]
        files = [product.other_bytes for product in own if product.other_bytes is not None]
        typer.echo(
            f"{output / folder.resolve().name}: {sum(numbers)} of {len(numbers)} have the released numbers; "
            f"{files.count(())} of {len(files)} figures and tables have the released bytes"
        )
    changed = [product for product in products if product.numbers is False]
    if changed:
        raise InputError(
            "\n".join(f"{product.release}: {product.name} does not show the released numbers" for product in changed)
        )


@app.command()
def show(experiment: Experiment) -> None:
    """Print the headline accuracies and where every figure, table and report lies.

    If any of these files is not as it was when an audit passed, an error says so.
    """
    layout, _ = _open(experiment, to_read=True)
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.markup import escape

    from dhel_kcl.seal import changed

    headline = layout.tables / "table_linear_accuracy.md"
    if not headline.exists():
        raise InputError(f"{headline}: missing; run snakemake for {experiment} first")
    console = Console()
    console.print(Markdown("\n".join(map(escaped, headline.read_text(encoding="utf-8").split("\n")))))
    scripts = declarations.scripts(stages.SCRIPTS).values()
    seal = _seal(layout)
    products = [path for script in scripts for path in layout.products(script.name)]
    pages = [layout.config, layout.results, layout.theory, layout.explorer, layout.report]
    other = changed(layout, seal, [headline, *pages, *products]) if seal else []
    figures = " ".join(script.name for script in scripts if script.is_figure)
    tables = " ".join(script.name for script in scripts if not script.is_figure)
    places = {
        "figures": (layout.figures, f"/  {figures} (.png .pdf .csv)"),
        "tables": (layout.tables, f"/  {tables} (.md .csv)"),
        "results": (layout.results, ""),
        "theory": (layout.theory, ""),
        "explorer": (layout.explorer, ""),
        "report": (layout.report, ""),
        "audit": (layout.audit, f"  {_audit_outcome(layout, seal, len(other))}"),
    }
    for name, (place, said) in places.items():
        console.print(f"[bold]{name:<8}[/] {escape(escaped(str(place)) + said)}", soft_wrap=True, highlight=False)
    if other:
        raise InputError(
            f"{other[0]}: not the file that passed the audit, and {len(other) - 1} more of those above; "
            f"run `{_audit_command(layout)}`"
        )


def _seal(layout: Layout) -> "Seal | None":
    """The seal, unless a later audit has failed or did not end."""
    from dhel_kcl.seal import read_seal

    passed = is_experiment(layout.root) and layout.audit.exists() and not layout.audit_problems.exists()
    return read_seal(layout.audit) if passed else None


def _audit_outcome(layout: Layout, seal: "Seal | None", changed: int) -> str:
    if layout.audit_problems.exists():
        return f"failed; {escaped(str(layout.audit_problems))} lists the problems"
    if seal is None:
        return f"not passed; run `{_audit_command(layout)}`"
    if changed:
        return f"passed before, but {changed} of the files above have changed since"
    passed = f"passed: {seal.points} points and cells, {seal.measurements} measurements, {seal.files} files"
    return "\n".join([passed, *(f"  warning: {escaped(line)}" for line in seal.uncommitted)])


def _audit_command(layout: Layout) -> str:
    return f"dhel-kcl audit {escaped(shlex.quote(str(layout.root)))}"


@app.command()
def trace(
    experiment: Experiment,
    what: Annotated[str, typer.Argument(help="A figure or table by name, or the path of any file of the experiment.")],
    cell: Annotated[
        list[str] | None,
        typer.Option(help="A row of its CSV: the number (from 1), or values such as `loss=DHEL,batch_size=256`."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of the number; `mean` where there is one.")] = None,
) -> None:
    """Tell where a file, or with `--cell` one number of a figure or table, came from: jobs, hosts, seeds, hashes."""
    layout, config = _open(experiment, to_read=True)
    from rich.console import Console

    from dhel_kcl.lineage import lines, of_cell, of_file

    if cell or column:
        told = of_cell(config, layout, stages.SCRIPTS, what, cell or [], column)
    else:
        told = of_file(config, layout, stages.SCRIPTS, what)
    if sys.stdout.isatty():
        Console(markup=False, highlight=False).print(told)
    else:
        typer.echo("\n".join(lines(told)))


def main() -> None:
    """Run the command line; a problem that the user can fix ends as lines on standard error and status 1.

    Ctrl-C ends it with one line and status 130.
    """
    _use_utf8()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # an encoding that PYTHONIOENCODING asks for may lack letters
        stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        end_when_orphaned()
        app()
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file or the output'}: {error.strerror or error}; check the disk and permissions")
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer turns Ctrl-C into it
            _interrupted()
        _flush()
        raise


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode under a locale that is not UTF-8, where paths and output would be misread."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        arguments = [each for each in sys.orig_argv[1:] if each != "-Xutf8=0"]
        if "utf8=0" in arguments[1:2] and arguments[0] == "-X":  # it would win over the environment
            del arguments[:2]
        os.execv(sys.executable, [sys.executable, *arguments])  # nosec B606 # the user's own command, again


def _interrupted() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more, and it is over at once
    _tell("interrupted")
    sys.exit(INTERRUPTED)


def _flush() -> None:
    """Write what standard output still holds, which Python would do too late to say in one line that it cannot."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _fail(f"standard output: cannot be written ({error.strerror})")


def _fail(message: str) -> NoReturn:
    _tell(*(f"error: {line}" for line in message.splitlines()))
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1)


def _tell(*lines: str) -> None:
    for stream in filter(None, (sys.stderr, _terminal)):
        with suppress(OSError):  # a terminal that was closed
            for line in map(escaped, lines):
                print(line, file=stream, flush=True)


if __name__ == "__main__":
    main()
