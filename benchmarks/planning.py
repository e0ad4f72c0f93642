"""Seconds that Snakemake needs to plan the paper's grid, before any run and when everything is done.

The peer is the least that Snakemake can do for as many jobs: a workflow of the same graph whose jobs have one input and
one output each, without logs, parameters, resources or environments. The finished tree is synthetic.
"""

import json
import os
import shutil
import subprocess  # nosec B404 # for snakemake
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from measure import interleaved, machine
from report import Target, markdown
from rich.progress import track

from dhel_kcl import declarations, stages
from dhel_kcl.artifacts import atomic_path, write_json
from dhel_kcl.config import ExperimentConfig, load_config
from dhel_kcl.data.beton import sidecar_path
from dhel_kcl.layout import Layout
from dhel_kcl.seeding import derive_seed

WORKFLOW = ("Snakefile", "workflow", "profiles", "config", "paper_figures", "envs")
OURS, FLOOR = "this workflow", "one input and one output for each job"
COLD, FINISHED = "nothing done", "everything done"
TARGET_SECONDS = 10
TOUCH = ("--touch", "--cores", "100000", "--resources", "gpu=100000", "--quiet", "all")
# Snakemake sleeps a tenth of a second for each job that it touches.
WITHOUT_SLEEP = (
    "from snakemake.executors import touch; touch.Executor.SLEEPING_TIME = 0; import snakemake.cli as c; c.main()"
)

FLOOR_SNAKEFILE = """
import json
graph = json.loads(open("graph.json", encoding="utf-8").read())
rule all:
    input: [f"made/collect/{0}"]
rule data:
    output: "made/data/0"
    shell: "touch {output}"
%s
rule collect:
    input: [f"made/{stage}/{run}" for stage in graph["last"] for run in graph["runs"]]
    output: "made/collect/0"
    shell: "touch {output}"
"""
FLOOR_RULE = """
rule {stage}:
    input: "made/{before}"
    output: "made/{stage}/{{run}}"
    shell: "touch {{output}}"
"""

PAGE = """# Speed of planning

`make benchmark` measures this page again and rewrites it: the time that Snakemake takes to plan `config/config.yaml`,
{runs:,} runs and {jobs:,} jobs.

## Targets

{targets}

## Measured

{table}

## How to read this

- **{cold}**: `snakemake --dry-run` in a fresh clone, until every job is listed.
- **{finished}**: `snakemake --cores 1` where every file is there and up to date, until it says that nothing is to do.
  The files are synthetic, and Snakemake's own records of their jobs were written by `snakemake --touch`.
- **{floor}**: a workflow with as many jobs for each run and nothing that Snakemake does not ask for.
- `times the floor` is the ratio within a round: median of {rounds} rounds, in random order.

## Machine

{machine}
"""


def jobs_of_a_run(config: ExperimentConfig) -> list[str]:
    """The rules that have a job for each run, in order."""
    kept = config.compute.keep_features
    rules = [stage for stage in stages.run_stages(config) if kept or stage not in stages.FEATURE_STAGES]
    return rules if kept else ["pretrain", "measure", *rules[1:]]


def outputs(config: ExperimentConfig, layout: Layout) -> Iterator[Path]:
    """Every file that the finished workflow leaves."""
    targets = declarations.scripts(stages.SCRIPTS)
    yield from stages.expected_manifests(config, layout, targets)
    for dataset in config.datasets:
        for split in dataset.data.splits:
            beton = layout.beton(dataset.name, split)
            yield from (beton, sidecar_path(beton))
    for run in config.runs:
        yield from layout.measurements(run, stages.run_stages(config))
        yield from (layout.encoder(run), layout.classifier(run))
        if config.compute.keep_features:
            yield layout.features(run)
    for table in (layout.results, layout.theory):
        yield from (table, table.with_suffix(".csv"))
    for target in targets:
        yield from layout.products(target)
    yield from (layout.explorer, layout.report, layout.crate, layout.sbom, layout.source / "Snakefile", layout.audit)


def our_workflow(folder: Path, config_file: Path, finished: bool) -> list[str]:
    """Make a clone of this workflow, with every file of the finished experiment if asked for; give its options."""
    folder.mkdir()
    for name in WORKFLOW:
        source = Path(name)
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    options = ["--configfile", str(config_file.resolve())]
    if finished:
        config = load_config(config_file)
        for path in outputs(config, Layout(Path("results") / config.name)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("x", encoding="utf-8")
        snakemake(folder, *TOUCH, *options)
    return options


def floor_workflow(folder: Path, config_file: Path, finished: bool) -> list[str]:
    """Make the workflow that is the least, in the same state; give its options."""
    config = load_config(config_file)
    jobs = jobs_of_a_run(config)
    measured = [job for job in jobs if job not in ("pretrain", "features")]
    source = "features/{run}" if config.compute.keep_features else "pretrain/{run}"
    before = {"pretrain": "data/0", "features": "pretrain/{run}", **dict.fromkeys(measured, source)}
    rules = "".join(FLOOR_RULE.format(stage=job, before=before[job]) for job in jobs)
    folder.mkdir()
    (folder / "Snakefile").write_text(FLOOR_SNAKEFILE % rules, encoding="utf-8")
    (folder / "graph.json").write_text(
        json.dumps({"last": measured, "runs": [str(n) for n in range(len(config.runs))]}), encoding="utf-8"
    )
    if finished:
        for job in ("data", *jobs, "collect"):
            (folder / "made" / job).mkdir(parents=True)
            for number in range(1 if job in ("data", "collect") else len(config.runs)):
                (folder / "made" / job / str(number)).write_text("x", encoding="utf-8")
        snakemake(folder, *TOUCH)
    return []


def snakemake(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds of a call, and what it printed.

    Raises:
        RuntimeError: it failed.
    """
    folder_of_programs = Path(sys.executable).parent
    program = (
        [sys.executable, "-c", WITHOUT_SLEEP] if "--touch" in arguments else [str(folder_of_programs / "snakemake")]
    )
    environment = os.environ | {"PATH": f"{folder_of_programs}:{os.environ['PATH']}"}
    start = time.perf_counter()
    outcome = subprocess.run(  # nosec B603 # fixed words, no shell
        [*program, "--cores", "1", *arguments],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    seconds = time.perf_counter() - start
    if outcome.returncode:
        raise RuntimeError(f"snakemake {' '.join(arguments)}: {outcome.stderr[-2000:]}")
    return seconds, outcome.stdout + outcome.stderr


def plan(folder: Path, options: list[str], state: str) -> float:
    """Seconds of planning a workflow in a state.

    Raises:
        RuntimeError: it does not plan what it should.
    """
    seconds, said = snakemake(folder, *(["--dry-run", "--quiet", "all"] if state == COLD else []), *options)
    if (state == FINISHED) != ("Nothing to be done" in said):
        raise RuntimeError(f"{folder}: {state}, but Snakemake says: {said[-2000:]}")
    return seconds


def _plan_one(made: Mapping[str, tuple[Path, list[str]]], state: str, name: str) -> float:
    folder, options = made[name]
    return plan(folder, options, state)


def page(planning: pd.DataFrame, facts: dict[str, str], runs: int, jobs: int) -> str:
    """Markdown of the measurements."""
    ours = planning[planning["workflow"] == OURS].set_index("state")
    measured = {state: float(ours["seconds"].loc[state]) for state in (COLD, FINISHED)}
    aims = [
        Target(f"{state}: under {TARGET_SECONDS} s", f"{seconds:.1f} s", seconds < TARGET_SECONDS)
        for state, seconds in measured.items()
    ]
    table = planning.assign(
        seconds=planning["seconds"].map("{:.1f}".format), ratio=planning["ratio"].map("{:.2g}".format)
    ).rename(columns={"ratio": "times the floor"})
    return PAGE.format(
        targets=markdown(
            pd.DataFrame([{"target": a.aim, "measured": a.measured, "met": "yes" if a.met else "no"} for a in aims])
        ),
        table=markdown(table.drop(columns="rounds")),
        machine=markdown(pd.DataFrame(facts.items(), columns=["", "value"])),
        runs=runs,
        jobs=jobs,
        cold=COLD,
        finished=FINISHED,
        floor=FLOOR,
        rounds=int(planning["rounds"].min()),
    )


def main(
    config: Annotated[Path, typer.Argument(help="The grid that is planned.")] = Path("config/config.yaml"),
    output: Annotated[Path, typer.Option(help="Folder of planning.csv; the page goes beside it.")] = Path(
        "docs/benchmarks"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="How often each is planned.")] = 3,
) -> None:
    """Plan both workflows in both states, and write planning.csv and the page."""
    experiment = load_config(config)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        makers = {OURS: our_workflow, FLOOR: floor_workflow}
        for state in track((COLD, FINISHED), "planning"):
            made = {}
            for number, (name, make) in enumerate(makers.items()):
                folder = Path(temporary) / f"{number}-{state}"
                made[name] = (folder, make(folder, config, state == FINISHED))
            order = derive_seed(0, "order")
            seconds = pd.DataFrame(interleaved(makers, rounds, partial(_plan_one, made, state), order))
            for name in makers:
                ratio = (seconds[name] / seconds[FLOOR]).median()
                rows.append([state, name, rounds, seconds[name].median(), ratio])
            for folder, _ in made.values():
                shutil.rmtree(folder)
    planning = pd.DataFrame(rows, columns=["state", "workflow", "rounds", "seconds", "ratio"])
    typer.echo(planning.to_string(index=False, float_format="{:.3g}".format))
    with atomic_path(output / "planning.csv") as path:
        planning.to_csv(path, index=False, float_format="%.4g")
    facts = machine()
    write_json(output / "planning_machine.json", facts)
    jobs = len(experiment.runs) * len(jobs_of_a_run(experiment))
    with atomic_path(output.with_name(f"{output.name}_planning.md")) as path:
        path.write_text(page(planning, facts, len(experiment.runs), jobs), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
