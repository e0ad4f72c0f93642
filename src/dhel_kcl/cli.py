"""The command line: one command per stage, which the workflow also runs, and commands to inspect results.

Heavy modules are imported inside the commands, so that `--help` and error messages appear at once.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

try:
    import typer
except ModuleNotFoundError:
    sys.exit("error: the command line needs the workflow's packages; in a clone, `make setup` installs them")

from dhel_kcl.console import log_to, run_program, tell
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ComputeConfig
from dhel_kcl.files import private_folder
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import refuse_future
from dhel_kcl.jobs.ownership import SUMS, check_open_to_jobs, check_open_to_log, how_to_verify, is_release
from dhel_kcl.jobs.running import end_when_orphaned
from dhel_kcl.jobs.stages import STAGES, Stage, stages_of

LOOK, CHECK, PLAN, PUBLISH = "Look at results", "Check results", "Plan and set up", "Publish"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Reproduce DHEL and kernel contrastive learning (Koromilas et al., ICML 2024), stage by stage.

Most commands take the folder of one experiment, such as `results/quickstart`. The workflow fills this folder by running
one command per job: `snakemake --cores all --configfile config/quickstart.yaml`. `dhel-kcl stages` lists these
commands.""",
)


def _from_here(folder: Path) -> Path:
    """Rewrite an absolute path that leads into the current folder through a link as a path below that folder.

    Files are identified by their paths, some relative to other files, so two paths to one folder would not match.
    """
    here = Path.cwd()
    if folder.is_absolute() and not folder.is_relative_to(here):
        for above in folder.parents:
            if above.exists() and above.samefile(here):
                return here / folder.relative_to(above)
    return folder


Folder = Annotated[
    Path, typer.Argument(help="The experiment's folder, such as results/quickstart.", callback=_from_here)
]
RunId = Annotated[str, typer.Argument(help="A run of the experiment; `dhel-kcl runs` lists them.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"dhel-kcl {version('dhel-kcl')}")
        raise typer.Exit


@app.callback()
def _options(
    log: Annotated[
        Path | None,
        typer.Option(help="Write output to this file, NAME.log; errors and audit warnings still reach the terminal."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if log is not None:
        log_to(log, check_open_to_log)


# Look at results


@app.command(rich_help_panel=LOOK)
def show(folder: Folder) -> None:
    """Print the headline accuracies and the paths of all figures, tables and pages.

    Fail if one of these files has changed since an audit passed.

    Example: `dhel-kcl show results/quickstart`
    """
    from dhel_kcl.provenance.show import show

    show(Experiment.open(folder))


@app.command(rich_help_panel=LOOK)
def trace(
    folder: Folder,
    what: Annotated[str, typer.Argument(help="Name of a figure or table, or path of any file of the experiment.")],
    cell: Annotated[
        list[str] | None,
        typer.Option(help="A row of its CSV: its number (from 1), or values such as `loss=DHEL,batch_size=256`."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of the number; default `mean` if it exists.")] = None,
) -> None:
    """Print the origin of a file or, with `--cell`, of one number in a figure or table: jobs, hosts, seeds, hashes.

    Example: `dhel-kcl trace results/quickstart table_linear_accuracy --cell 1`
    """
    experiment = Experiment.open(folder)
    from rich.console import Console

    from dhel_kcl.provenance.trace import lines, of_cell, of_file

    told = of_cell(experiment, what, cell or [], column) if cell or column else of_file(experiment, what)
    if sys.stdout.isatty():
        Console(markup=False, highlight=False).print(told)
    else:
        typer.echo("\n".join(lines(told)))


@app.command(rich_help_panel=LOOK)
def runs(folder: Folder) -> None:
    """List the experiment's runs, one per line.

    Example: `dhel-kcl runs results/quickstart`
    """
    for run in Experiment.open(folder).config.runs:
        typer.echo(run)


@app.command(rich_help_panel=LOOK)
def watch(
    folder: Folder,
    run: RunId,
    every: Annotated[float, typer.Option(help="Seconds between two checks of the log.")] = 30,
    once: Annotated[bool, typer.Option(help="Draw once and exit.")] = False,
) -> None:
    """Draw the training curves of one run from its log while it trains; the images go into its `live` folder.

    Example: `dhel-kcl watch results/quickstart digits-dhel-temperature0.3-bs256-seed0`
    """
    experiment = _open_to_jobs(folder)
    chosen = experiment.config.run(run)
    from dhel_kcl.paper.watch import watch

    for line in watch(experiment, chosen, every, once):
        typer.echo(line)


# Check results


@app.command(rich_help_panel=CHECK)
def audit(
    folder: Folder,
    strict: Annotated[bool, typer.Option(help="Fail if there are warnings about the code.")] = False,
) -> None:
    """Trace every number of every figure and table back to its checkpoint, beton and configuration; rehash all files.

    A passing audit seals the folder: `audit.json` lists the sha256 of every file, so later audits detect any change.

    Example: `dhel-kcl audit results/quickstart`
    """
    from dhel_kcl.provenance.seal import begin

    layout = Layout(folder)
    if is_release(folder):
        raise InputError(f"{folder}: {how_to_verify(folder)}")
    with suppress(InputError, OSError):  # `conclude` reports it
        begin(layout)
    from dhel_kcl.files import sha256_file
    from dhel_kcl.provenance.audit import audit, conclude

    experiment = Experiment.open(folder)
    refuse_future(path for path in (layout.report, layout.manifest("report")) if path.exists())
    outcome = audit(experiment)
    if strict:
        outcome.problems += [f"{layout.root}: {warning}" for warning in outcome.warnings]
    else:
        tell(*(f"warning: {warning}" for warning in outcome.warnings))
    tell(*(f"error: {problem}" for problem in outcome.problems))
    try:
        conclude(outcome, layout)
    except (InputError, OSError) as error:
        tell(f"warning: {error}")
    if outcome.problems:
        raise InputError(f"{layout.root}: the audit found {len(outcome.problems)} problems, listed above")
    typer.echo(outcome.summary())
    if layout.audit.exists():
        typer.echo(f"{layout.audit}: seals {len(outcome.sha256)} files; its own sha256 is {sha256_file(layout.audit)}")


@app.command(rich_help_panel=CHECK)
def repair(
    folder: Folder,
    dry_run: Annotated[bool, typer.Option(help="Report damaged files without changing anything.")] = False,
) -> None:
    """Move aside files that differ from their manifests; the next workflow rebuilds them and any missing files.

    The workflow does this automatically after a crash. Run it by hand only while no workflow or job is using the
    experiment on any machine. Files behind a link are not touched.

    Example: `dhel-kcl repair results/quickstart --dry-run`
    """
    from dhel_kcl.jobs.running import is_running, marks
    from dhel_kcl.provenance.repair import check_is_experiment, repair

    layout = Layout(folder)
    check_is_experiment(layout)
    for mark in marks(layout):
        if is_running(mark):
            raise InputError(f"{mark}: a workflow is running on this experiment; wait until it ends")
    damaged = repair(layout, dry_run=dry_run)
    typer.echo(f"{layout.root}: {len(damaged)} damaged files")


# Plan and set up


@app.command(rich_help_panel=PLAN)
def plan(
    config: Annotated[Path, typer.Argument(help="A configuration file.")] = Path("config/config.yaml"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Restrict the grid: dataset=..., loss=..., batch_size=... or seed=..., comma-separated; repeatable."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="A measured device; default this machine's if measured, otherwise the first.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of devices used at the same time.")] = 1,
    measured: Annotated[
        Path | None, typer.Option(help="Table written by benchmarks/throughput.py; default the one in the package.")
    ] = None,
) -> None:
    """Estimate the cost of an experiment before it runs: runs, hours and disk per data set, from measured speeds.

    Also print the command that runs it, or the part selected by `--only`.

    Example: `dhel-kcl plan config/config.yaml --only dataset=cifar10 --only loss=dhel,ntxent`
    """
    from rich.console import Console

    from dhel_kcl.plan import parts, plan

    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False)
    for part in plan(config, parts(only or []), device, gpus, measured):
        console.print(part, soft_wrap=isinstance(part, str))


@app.command(rich_help_panel=PLAN)
def configure(
    source: Annotated[str, typer.Argument(help="A configuration file, or - to read YAML or JSON from standard input.")],
    output: Annotated[Path | None, typer.Option(help="The experiment's folder; default results/NAME.")] = None,
) -> None:
    """Check a configuration and write it, with every default filled in, as the experiment's config.yaml.

    Example: `dhel-kcl configure config/quickstart.yaml`
    """
    from dhel_kcl.jobs.configure import configure, read_source
    from dhel_kcl.provenance.repair import check_free

    config, file = read_source(source)
    for dataset in config.datasets:
        if dataset.encoder.warning:
            tell(f"warning: datasets.{dataset.name}.encoder: {dataset.encoder.warning}")
    layout = Layout(output or Path("results") / config.name)
    if not layout.config.exists():
        check_free(layout)
    if configure(config, layout, file):
        typer.echo(f"{layout.config}: {len(config.runs)} runs")


@app.command("stages", rich_help_panel=PLAN)
def list_stages() -> None:
    """List the stages in order; each is a command.

    Example: `dhel-kcl stages`
    """
    subjects = {"experiment": "", "split": " DATASET SPLIT", "run": " RUN", "target": " TARGET"}
    for stage in STAGES.values():
        if stage.name != "configure":
            typer.echo(f"dhel-kcl {_command(stage)} FOLDER{subjects[stage.each]}\n    {stage.help}")
    together = [_command(stage) for stage in STAGES.values() if stage.rule == "measure"]
    typer.echo(f"The workflow runs {', '.join(together)} of a run in one process: dhel-kcl measure FOLDER RUN")


# Publish


@app.command(rich_help_panel=PUBLISH)
def release(
    folder: Folder,
    output: Annotated[Path | None, typer.Option(help="The release's folder; default docs/results/NAME.")] = None,
    theory_only: Annotated[bool, typer.Option(help="Leave out the runs and everything made from them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Copy the publishable part of a finished experiment, without images, weights or features, as an RO-Crate.

    The copy has everything that the figures need, so others can redraw them.

    Example: `dhel-kcl release results/quickstart --output /tmp/quickstart --yes`
    """
    experiment = Experiment.open(folder)
    from dhel_kcl.provenance.release import check_replaceable, contents, release

    output = output or Path("docs/results") / experiment.config.name
    check_replaceable(output)
    if not yes:
        size = sum(path.stat().st_size for path in contents(experiment, theory_only) if path.is_file())
        replaced = "replace the release in" if is_release(output) else "write a release into"
        typer.confirm(f"{folder}: {replaced} {output} ({size / 1e6:.1f} MB)?", abort=True, err=True)
    files = release(experiment, output, theory_only)
    typer.echo(f"{output}: {files} files, listed in {SUMS}")


@app.command(rich_help_panel=PUBLISH)
def redraw(
    releases: Annotated[list[Path], typer.Argument(help="Folders made by `release`, such as docs/results/theory.")],
    output: Annotated[Path, typer.Option(help="Folder for the redrawn files.")] = Path("results/redrawn"),
) -> None:
    """Verify releases, remake their figures, tables and pages from their data tables alone, and compare the numbers.

    Example: `dhel-kcl redraw docs/results/*/`
    """
    from dhel_kcl.provenance.release import redraw

    products = []
    for product in redraw(releases, output):
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
    if changed := [product for product in products if product.numbers is False]:
        raise InputError(
            "\n".join(f"{product.release}: {product.name} does not show the released numbers" for product in changed)
        )


@app.command(rich_help_panel=PUBLISH)
def crate(folder: Folder) -> None:
    """Turn the folder into an RO-Crate that other tools can read: each job with its files, settings and software.

    A release already is one.

    Example: `dhel-kcl crate results/quickstart`
    """
    experiment = _open_to_jobs(folder)
    from dhel_kcl.provenance.crate import write_crate

    write_crate(experiment)
    typer.echo(f"{experiment.layout.crate}\n{experiment.layout.sbom}")


# One command for each stage


def _open_to_jobs(folder: Path) -> Experiment:
    """Open an experiment's folder for writing; refuse a release or any other folder."""
    experiment = Experiment.open(folder)
    check_open_to_jobs(experiment.layout)
    return experiment


def _command(stage: Stage) -> str:
    return stage.name.replace("_", "-")


def _do(stage: Stage, folder: Path, subject: str | None = None) -> None:
    """Run one job of a stage."""
    experiment = _open_to_jobs(folder)
    job = Job(experiment, stage, subject or experiment.config.name)
    job.check_subject()
    _claim(experiment.config.compute, stage)
    if (said := job.do()) is not None:
        typer.echo(said)


def _claim(compute: ComputeConfig, *stages: Stage) -> None:
    """Claim the GPUs that jobs of these stages use, before any import initialises CUDA."""
    if not (used := [stage.gpus(compute) for stage in stages if stage.gpus is not None]):
        return
    if compute.compile:
        # When imported, PyTorch picks a folder that other users may have created, and runs the code in it.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_folder("torchinductor")))
    if compute.device != "cpu":
        from dhel_kcl.training.devices import claim_gpus

        claim_gpus(compute, max(1, *used))


@app.command(hidden=True)
def measure(folder: Folder, run: RunId) -> None:
    """Run the missing or stale measuring stages of one run (features, evaluation, analysis) in one process.

    Example: `dhel-kcl measure results/quickstart digits-dhel-temperature0.3-bs256-seed0`
    """
    experiment = _open_to_jobs(folder)
    experiment.config.run(run)
    _claim(experiment.config.compute, *stages_of("measure", experiment.config))
    from dhel_kcl.evaluation.measure import measure

    measure(experiment, run)


def _command_of(stage: Stage) -> Callable[..., None]:
    """Return the command of a stage, with the arguments that identify a job."""

    def for_experiment(folder: Folder) -> None:
        _do(stage, folder)

    def for_split(
        folder: Folder,
        dataset: Annotated[str, typer.Argument(help="A data set of the experiment.")],
        split: Annotated[str, typer.Argument(help="train, test, or (STL-10) pretrain.")],
    ) -> None:
        _do(stage, folder, f"{dataset}/{split}")

    def for_run(folder: Folder, run: RunId) -> None:
        _do(stage, folder, run)

    def for_target(
        folder: Folder,
        target: Annotated[str, typer.Argument(help="A script in paper_figures, such as fig_batch_size.")],
    ) -> None:
        _do(stage, folder, target)

    commands: dict[str, Callable[..., None]] = {
        "experiment": for_experiment,
        "split": for_split,
        "run": for_run,
        "target": for_target,
    }
    return commands[stage.each]


for _stage in STAGES.values():
    if _stage.name != "configure":
        app.command(_command(_stage), help=_stage.help, hidden=True)(_command_of(_stage))


def main() -> None:
    """Run the command line."""
    run_program(_run)


def _run() -> None:
    end_when_orphaned()
    app()


if __name__ == "__main__":
    main()
