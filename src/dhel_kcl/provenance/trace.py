"""The origin of a file, or of one number in a figure or table, in words: what `dhel-kcl trace` prints.

Everything is read from the manifests, and each file that is named is hashed again. Anything that no longer holds is
stated on the same line.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pandas as pd
from rich.text import Text
from rich.tree import Tree

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import Run
from dhel_kcl.files import open_regular
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import Manifest, absolute, shown
from dhel_kcl.jobs.stages import STAGES, run_stages
from dhel_kcl.paper.render import load_results, load_target

_POSITIONS = ("x", "epoch", "index", "severity")
"""Names that figures use for the results' column `x`."""


def lines(tree: Tree, indent: int = 0) -> Iterator[str]:
    """Yield the tree as plain lines, each indented below its parent."""
    yield " " * indent + str(tree.label)
    for child in tree.children:
        yield from lines(child, indent + 2)


def of_file(experiment: Experiment, what: str) -> Tree:
    """Find the jobs and files that a file came from, down to betons and configuration; each file is named once.

    Args:
        experiment: the experiment.
        what: a script's name, or a path.

    Raises:
        InputError: no job of the experiment wrote the file.
    """
    origins = _Origins(experiment)
    origins.load(*(manifest for manifest in origins.expected if manifest.exists()))
    file = _find(experiment, what, origins)
    wanted = None
    if origins.job(file).stage == "render" and (points := file.with_suffix(".csv")).exists():
        wanted = {run for row in _points(points) for run in row["runs"].split(";")}
    seen: set[Path] = set()

    def grow(branch: Tree, file: Path) -> None:
        seen.add(file)
        if file not in origins.history.written:
            branch.add(origins.told(file, "not made by the workflow"))
            return
        job = origins.job(file)
        seed = f", run seed {job.seeds['run']}" if "run" in job.seeds else ""
        node = branch.add(origins.told(file, f"{job.stage} of {job.subject}{seed}"))
        shown_before = []
        for used in origins.inputs(file):
            if origins.history.is_manifest(used) or (
                job.stage == "collect" and wanted and used.parent.name not in wanted
            ):
                continue  # a manifest describes a job that the tree shows; other runs are not behind this file
            if used in seen:
                shown_before.append(shown(used))
            else:
                grow(node, used)
        if shown_before:
            node.add(f"see above: {', '.join(shown_before)}")

    root = Tree(str(file))
    grow(root, absolute(file))
    root.add(_configuration(origins))
    return root


def of_cell(experiment: Experiment, what: str, cell: Sequence[str], column: str | None) -> Tree:
    """Find the lineage of one number in a figure or table.

    Args:
        experiment: the experiment.
        what: the figure or table: its name, or the path of one of its files.
        cell: the row of its CSV: a number counted from 1, or one or more values such as ``loss=DHEL,batch_size=256``.
        column: the column of the number; None means `mean` if there is such a column, else the whole row.

    Raises:
        InputError: there is no such figure, row or column, or more than one row matches.
    """
    config, layout, targets = experiment.config, experiment.layout, experiment.targets
    target = Path(what).stem
    if target not in targets:
        raise InputError(f"{what}: --cell needs a figure or table; there are {', '.join(targets)}")
    script = targets[target]
    path = next(path for path in layout.products(target) if path.suffix == ".csv")
    points = _points(path)
    number = _row(points, cell, path)
    row = points[number]
    if column is not None and column not in row:
        raise InputError(f"{path}: no column {column!r}; there are {', '.join(row)}")
    if column is None and "mean" in row:
        column = "mean"
    runs = list(filter(None, row["runs"].split(";")))
    origins = _Origins(experiment)
    origins.load(layout.manifest("configure"), layout.manifest("render", target))
    origins.load(*(layout.manifest({"results": "collect"}.get(table, table)) for table in script.tables))

    where = f"row {number + 1} of {path}"
    number_of = f"{row['metric']} ({column})" if row.get("metric") and column != "metric" else column
    tree = Tree(f"{row[column] or 'an empty cell'} is {number_of} in {where}" if column else where)
    tree.add(f"the row: {_told(row)}")
    tree.add(origins.told(path))
    tree.add(origins.made(path, f"drawn by {script.path}"))
    for used in origins.inputs(path):
        node = tree.add(origins.told(used, before="from "))
        if used in origins.history.written:
            node.add(origins.made(used))
    values, how = _measured(script, layout, runs, row, column)
    node = tree.add(how)
    betons: dict[Path, None] = {}
    for run in runs:
        own = values[values["run"] == run]
        measured = ", ".join(_value(metric, rows["value"]) for metric, rows in own.groupby("metric", sort=False))
        branch = node.add(f"run {run}: {measured or 'no value'}")
        if run in config.runs:
            sources = [absolute(layout.root / str(source)) for source in own["source"].dropna().unique()]
            betons |= dict.fromkeys(_tell_of_run(branch, origins, config.runs[run], sources))
    for beton in betons:
        tree.add(origins.told(beton, before="images: ")).add(origins.made(beton))
    tree.add(_configuration(origins))
    return tree


def _tell_of_run(branch: Tree, origins: "_Origins", run: Run, files: list[Path]) -> list[Path]:
    """Add each job behind some files of a run, with what it wrote; return the betons that they lead to."""
    experiment, dataset = origins.experiment, run.dataset
    layout = experiment.layout
    origins.load(*(STAGES[stage].manifest(layout, run.id) for stage in run_stages(experiment.config)))
    origins.load(*(STAGES["data"].manifest(layout, f"{dataset.name}/{split}") for split in dataset.data.splits))
    told: dict[Path, Tree] = {}
    betons = []
    for file in files:  # the list grows: the inputs of each file are appended
        job = origins.history.writer(file)
        if file.suffix == ".beton" and job:
            betons.append(file)
            continue
        if job and job not in told:
            told[job] = branch.add(origins.made(file))
        (told[job] if job else branch).add(origins.told(file))
        files += [used for used in origins.inputs(file) if used not in files]
    return betons


class _Origins:
    """The manifests behind a file or number, and descriptions of the files and jobs in them."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.expected = experiment, jobs(experiment)
        self.history = History(discarded=experiment.discarded)

    def load(self, *paths: Path) -> None:
        for path in paths:
            done, job = self.history.load(path), self.expected[path]
            if (done.stage, done.subject) != (job.stage.name, job.subject):
                raise InputError(f"{path}: describes {done.stage} of {done.subject}; run the audit")

    def _manifest(self, file: Path) -> Path:
        if (path := self.history.writer(file)) is None:
            raise InputError(f"{file}: its job's manifest does not record it; run the audit")
        return path

    def job(self, file: Path) -> Manifest:
        return self.history.manifests[self._manifest(file)]

    def inputs(self, file: Path) -> list[Path]:
        path = self.history.writer(file)
        return list(self.history.inputs(path)) if path else []

    def told(self, file: Path, *facts: str, before: str = "") -> Text:
        """Describe a file: its recorded sha256, and whether it still has that."""
        file = absolute(file)
        uses = [(artifact, self.history.manifests[path].stage) for path, artifact in self.history.users(file)]
        recorded = self.history.written[file][1] if file in self.history.written else uses[0][0] if uses else None
        wrong = []
        if recorded is None:
            wrong = ["recorded by no job"] if file.is_file() else ["no longer there"]
        else:
            match self.history.state(file, recorded):
                case "discarded":
                    wrong = ["discarded after use"]
                case "missing":
                    wrong = ["no longer there"]
                case "changed":
                    wrong = [f"CHANGED: its sha256 is now {self.history.sha256(file)}"]
        if file.is_symlink() and file.is_relative_to(absolute(self.experiment.layout.root)):
            wrong.append("a LINK, not the file that its job wrote")
        if recorded is not None:
            others = {(stage, artifact.sha256) for artifact, stage in uses if artifact.sha256 != recorded.sha256}
            wrong += sorted(f"CHANGED: {stage} used sha256 {sha256}" for stage, sha256 in others)
        known = [f"sha256 {recorded.sha256}"] if recorded else []
        return Text.assemble(f"{before}{shown(file)}: {', '.join([*known, *facts])}", _alarm(wrong))

    def made(self, file: Path, how: str = "") -> Text:
        """Describe a job: where, when and how long it ran, and with which code."""
        job = self.job(file)
        machine = ", ".join(str(job.hardware[part]) for part in ("cpu", "gpu") if part in job.hardware)
        facts = [f"{how or _job(job)} on {job.host or 'a host without a name'} ({machine})"]
        facts += [f"at {job.started}", f"took {job.seconds:g} s", f"code digest {job.source_digest}"]
        facts += [f"commit {job.git_commit or 'unknown'}"]
        wrong = ["UNCOMMITTED changes in the code"] if job.git_dirty else []
        if job.git_dirty is None or job.git_commit is None:
            wrong.append("whether the code was committed is NOT KNOWN")
        if job.source_digest != self.expected[self._manifest(file)].code:
            wrong.append("the code has CHANGED since")
        return Text.assemble(", ".join(facts), _alarm(wrong))


def _alarm(wrong: list[str]) -> tuple[str, str]:
    return ("".join(f"; {each}" for each in wrong), "bold red")


def _job(job: Manifest) -> str:
    """Say what a job did, with the settings that it recorded."""
    settings: Any = job.settings
    try:
        match job.stage:
            case "pretrain":
                loss = ", ".join(f"{key} {value}" for key, value in settings["loss"].items() if key != "name")
                return (
                    f"pretrained with loss {settings['loss']['name']}, {loss}, batch size {settings['batch_size']}, "
                    f"learning rate {settings['learning_rate']}, {settings['dataset']['epochs']} epochs, "
                    f"run seed {job.seeds['run']},"
                )
            case "data":
                source = {key: value for key, value in settings["data"].items() if key in ("kind", "root") and value}
                return f"written from {', '.join(f'{key} {value}' for key, value in source.items())}"
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{job.stage} of {job.subject}: its manifest lacks settings; run the audit") from error
    did = "made" if STAGES[job.stage].each != "run" else "computed" if job.stage == "features" else "measured"
    return f"{did} by {job.stage}" + (f" with run seed {job.seeds['run']}" if "run" in job.seeds else "")


def _configuration(origins: _Origins) -> Text:
    return origins.told(origins.experiment.layout.config, "the settings of every job", before="configuration: ")


def _find(experiment: Experiment, what: str, origins: _Origins) -> Path:
    layout, targets = experiment.layout, experiment.targets
    if what in targets:
        return next(path for path in layout.products(what) if path.suffix != ".csv")
    for path in (Path(what), layout.root / what):
        if absolute(path) in origins.history.written:
            return path
    raise InputError(f"{what}: no job of {layout.root} wrote such a file; its figures and tables: {', '.join(targets)}")


def _points(path: Path) -> list[dict[str, str]]:
    """Read the rows of a figure's or table's CSV, each cell as text."""
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
            points = list(csv.DictReader(file, restval="", restkey=""))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run snakemake --cores 1 {path.stem}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV; run snakemake --cores 1 --force {path.stem}") from error
    if not points or "runs" not in points[0]:
        raise InputError(f"{path}: has no row that names runs; nothing to trace in it")
    return points


def _row(points: list[dict[str, str]], cell: Sequence[str], path: Path) -> int:
    """Return the position of the row that `cell` names."""
    if len(cell) == 1 and cell[0].isdecimal():
        if not 1 <= int(cell[0]) <= len(points):
            raise InputError(f"{path}: no row {cell[0]}; there are rows 1 to {len(points)}")
        return int(cell[0]) - 1
    titles = declarations.loss_titles()
    matching = dict(enumerate(points))
    between = rf",(?=(?:{'|'.join(map(re.escape, points[0]))})=)"
    for condition in (each for part in cell for each in re.split(between, part)):
        name, equals, wanted = condition.partition("=")
        if not equals or name not in points[0]:
            raise InputError(f"{path}: no cell {condition!r}; give a row number, or values of {', '.join(points[0])}")
        known = ", ".join(dict.fromkeys(row[name] for row in matching.values()))
        matching = {
            index: row
            for index, row in matching.items()
            if _same(wanted, row[name]) or _same(wanted, titles.get(row[name], row[name]))
        }
        if not matching:
            raise InputError(f"{path}: no row with {condition}; {name} is one of {known}")
    if len(matching) > 1:
        rows = [f"row {index + 1}: {_told(row)}" for index, row in matching.items()]
        raise InputError("\n".join([*rows, f"{path}: these {len(rows)} rows match; add a value or give the number"]))
    return next(iter(matching))


def _same(wanted: str, text: str) -> bool:
    try:
        return float(wanted) == float(text)
    except ValueError:
        return wanted.casefold() == text.casefold()


def _told(row: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in row.items() if text and name != "runs")


def _measured(
    script: declarations.Script, layout: Layout, runs: list[str], row: Mapping[str, str], column: str | None
) -> tuple[pd.DataFrame, str]:
    """Find the measurements that a number was computed from, and how, as far as arithmetic can tell.

    These are the measurements of the row's runs that the script reads and that agree with the row in metric,
    representation, corruption and position, if the row has such a column.
    """
    target = load_target(script.path)
    metrics = (*target.metrics, *target.optional_metrics)
    tables = [load_results(layout.table(name), metrics, name) for name in script.tables]
    rows = pd.concat([table[table["run"].isin(runs)] for table in tables], ignore_index=True)
    rows = rows[rows["metric"] == row["metric"]] if row.get("metric") in metrics else rows
    named = {"representation": row.get("representation"), "corruption": row.get("corruption", row.get("measure"))}
    for name, text in named.items():
        if text and name in rows:
            rows = _agreeing(rows, rows[name] == text)
    for name in _POSITIONS:
        if row.get(name):
            rows = _agreeing(rows, [_same(row[name], str(x)) for x in rows["x"]])
    read = dict.fromkeys(rows["metric"])
    if not runs:
        return rows, "no run is behind this row"
    over = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    for metric in read:
        of_metric = rows[rows["metric"] == metric]
        if column and (how := _statistic(row[column], of_metric["value"])) is not None:
            return of_metric, f"it is {how}{metric} of {over}:"
    return rows, f"{script.path} computed it from {', '.join(read) or 'nothing'} of {over}:"


def _agreeing(rows: pd.DataFrame, agrees: Any) -> pd.DataFrame:
    """Return the rows that agree, and all rows of any metric for which none agrees."""
    agrees = pd.Series(agrees, index=rows.index, dtype=bool)
    kept: pd.Series = agrees | ~agrees.groupby(rows["metric"]).transform("any")
    return rows[kept]


def _statistic(text: str, values: pd.Series) -> str | None:
    """Return in words which statistic of the values a number is; a single value counts as its own statistic."""
    known = {"": values.iloc[0]} if len(values) == 1 else {"the mean ": values.mean()}
    known |= {"the standard deviation of ": values.std(), "the lowest ": values.min(), "the highest ": values.max()}
    try:
        number = float(text)
    except ValueError:
        return None
    return next((words for words, value in known.items() if math.isclose(number, value, rel_tol=1e-9)), None)


def _value(metric: Any, values: pd.Series) -> str:
    return f"{metric} {float(values.iloc[0])!r}" if len(values) == 1 else f"{metric} ({len(values)} values)"
