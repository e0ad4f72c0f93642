"""Figures and tables: each is a script that turns the tidy results into points, and the points into a figure or table.

A script in `paper_figures/` defines

- `METRICS`: every metric that it reads;
- `points(results)`, which returns the tidy rows to show; their last column, `runs`, lists the runs that a row was
  computed from;
- either `draw(points)` for a figure, or `layout(points)` for a printed table.

It may also define

- `OPTIONAL_METRICS`: metrics that not every experiment has;
- `NOTHING`: the sentence to show if this leaves it without points;
- `TABLES`: the tidy tables (keys of `COLUMNS`) that it reads instead of the results, and that `points` takes;
- `DATA`: other files that it reads;
- `live_points(rows)`, if the figure can be drawn for a run that is still training.

The first line of the docstring is the title, the rest is the caption. Docstring, `TABLES` and `DATA` are read without
importing the script too. If no run has a metric that a script needs, because each run diverged or is recorded as not
measured, then a sentence is shown as well, and the points are an empty table with only the column `runs`.

A script imports only installed packages. `dhel_kcl.paper.looks` has colours, panels and legends, `dhel_kcl.paper.cells`
the numbers in tables, and `dhel_kcl.results.names` the names that readers see; computations are in `dhel_kcl.results`.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import fill
from types import ModuleType
from typing import TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from dhel_kcl.declarations import read_script
from dhel_kcl.errors import InputError
from dhel_kcl.files import atomic_path, open_regular
from dhel_kcl.jobs.job import Job
from dhel_kcl.results.robustness import HYPERPARAMETERS
from dhel_kcl.results.table import VERDICT_COLUMNS

RESULT_COLUMNS = [
    *["run", "dataset", "backbone", "width", "epochs", "train_images"],
    *["loss", *HYPERPARAMETERS, "learning_rate", "batch_size", "seed"],
    *["metric", "representation", "corruption", "x", "value", "test_hits", "source", "source_sha256"],
]
THEORY_COLUMNS = [
    *["run", "check", "loss", "temperature", "t", "c", "gamma"],
    *["batch_size", "embedding_dim", "seed", "metric", "x", "value"],
]
COLUMNS = {"results": RESULT_COLUMNS, "theory": THEORY_COLUMNS, "verdicts": [*VERDICT_COLUMNS]}
"""Columns of each tidy table."""
_TEXTS = {
    *("run", "dataset", "backbone", "loss", "metric", "representation", "corruption"),
    *("test_hits", "source", "source_sha256", "check"),
    *("claim", "baseline", "role", "unit", "contains", "against_baseline", "state", "reason", "lost", "scale", "runs"),
}
"""Columns with text; the others have numbers."""
_MAY_LACK = {
    *(*HYPERPARAMETERS, "x", "test_hits"),
    *("estimate", "low", "high", "p", "p_holm", "error_low", "error_high", "standard_error", "degrees"),
}
"""Columns in which a value may be missing."""
_NOT_IN_OLDER_TABLES = {"test_hits"}
"""Columns that a table may lack, because there are tables from before they existed."""
_COUNTS = {"epochs", "train_images", "batch_size", "seed", "embedding_dim", "seeds", "cells"}
_PLACE = ("metric", "representation", "corruption", "x")
"""Columns in which the rows of a run differ."""
_OF_A_ROW = (*_PLACE, "value", "test_hits", "source", "source_sha256")
"""Columns in which the rows of a run may differ."""
_SHARES = r".*_top[15]|diverged|not_measured"
"""Metrics that lie in [0, 1]."""

EXCUSES = ("diverged", "not_measured")
"""Metrics whose value 1 explains why a run lacks other metrics."""

ROUNDING = 1e-12
"""Largest relative difference between numbers that count as equal."""

_T = TypeVar("_T")
_Show = Callable[[pd.DataFrame], _T]


@dataclass(frozen=True)
class Target:
    """One figure (`draw`) or table (`layout`), loaded from its script."""

    name: str
    title: str
    caption: str
    tables: tuple[str, ...]
    metrics: tuple[str, ...]
    optional_metrics: tuple[str, ...]
    nothing: str | None
    points: Callable[..., pd.DataFrame]
    live_points: Callable[[pd.DataFrame], pd.DataFrame] | None
    draw: Callable[[pd.DataFrame], Figure] | None
    layout: Callable[[pd.DataFrame], pd.DataFrame] | None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that `render` writes."""
        return (".csv", ".png", ".pdf") if self.draw else (".csv", ".md")


def load_target(script: Path) -> Target:
    """Import a figure or table script.

    Raises:
        InputError: there is no such script, it imports a module that is not installed, or it does not fulfil the
            contract.
    """
    declared = read_script(script)
    module = _import_script(script)
    missing = [name for name in ("METRICS", "points") if not getattr(module, name, None)]
    draw, layout = getattr(module, "draw", None), getattr(module, "layout", None)
    if (draw is None) == (layout is None):
        missing.append("draw or layout (one of them)")
    if missing:
        raise InputError(
            f"{script}: does not define {', '.join(missing)}; see src/dhel_kcl/paper/render.py for the contract"
        )
    nothing = getattr(module, "NOTHING", None)
    unmeasured = f"No run has {_listed(module.METRICS)}: each diverged or could not be measured."
    return Target(
        name=declared.name,
        title=declared.title,
        caption=declared.caption,
        tables=declared.tables,
        metrics=tuple(module.METRICS),
        optional_metrics=tuple(getattr(module, "OPTIONAL_METRICS", ())),
        nothing=nothing,
        points=module.points,
        live_points=getattr(module, "live_points", None),
        draw=_or_nothing(draw, nothing, unmeasured, _panel_that_says),
        layout=_or_nothing(layout, nothing, unmeasured, lambda sentence: pd.DataFrame({"": [sentence]})),
    )


def _or_nothing(
    show: _Show[_T] | None, nothing: str | None, unmeasured: str, say: Callable[[str], _T]
) -> _Show[_T] | None:
    """Wrap `show` so that it says why there are no points, if no run was measured or the script allows for that."""
    if show is None:
        return None

    def shown(points: pd.DataFrame) -> _T:
        if points.empty and list(points) == ["runs"]:
            return say(unmeasured)
        return say(nothing) if points.empty and nothing is not None else show(points)

    return shown


def _listed(metrics: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(metrics[:-1]), metrics[-1])))


def _panel_that_says(sentence: str) -> Figure:
    figure = Figure(figsize=(3.25, 1))
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.text(0.5, 0.5, fill(sentence, 50), ha="center", va="center", family="STIXGeneral", size=8)
    return figure


def _import_script(script: Path) -> ModuleType:
    """Import a script by its path, because it is in the user's clone and not in the package."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    if spec is None or spec.loader is None:
        raise InputError(f"{script}: not a Python file; give the .py of a figure or table")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{script}: {error}; a script imports installed packages only, and what scripts share is in src/dhel_kcl/"
        ) from error
    return module


def load_results(path: Path, metrics: tuple[str, ...] | None = None, table: str = "results") -> pd.DataFrame:
    """Read a tidy table, or only its rows for some metrics.

    Args:
        path: the Parquet file.
        metrics: the metrics to keep; None keeps all.
        table: which table it is, a key of `COLUMNS`.

    Raises:
        InputError: the file is missing, is not Parquet, has missing, extra or wrongly typed columns, or contains values
            that no job writes.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; run the rule that writes it")
    try:
        columns = [name for name in pq.read_schema(path).names if not re.fullmatch(r"__index_level_\d+__", name)]
        if others := sorted({name for name in columns if name not in COLUMNS[table] or columns.count(name) > 1}):
            raise ValueError(f"column {others[0]} is not one of its columns, each once")
        filters = None if metrics is None else [("metric", "in", list(metrics))]
        asked = [name for name in COLUMNS[table] if name in columns or name not in _NOT_IN_OLDER_TABLES]
        results = pd.read_parquet(path, columns=asked, filters=filters)
    except Exception as error:  # the reader raises many types of errors for damaged Parquet
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"{path}: not a readable {table} table ({reason}); delete it and run its rule again"
        ) from error
    for position, name in enumerate(COLUMNS[table]):
        if name not in results:
            results.insert(position, name, pd.Series(index=results.index, dtype="str"))
    for column in results:
        is_number = pd.api.types.is_numeric_dtype(results[column]) and not pd.api.types.is_bool_dtype(results[column])
        there = results[column].dropna() if column in _MAY_LACK else results[column]
        is_text = pd.api.types.is_string_dtype(there) and not there.isna().any()
        if not (is_text if column in _TEXTS else is_number):
            kind = "text" if column in _TEXTS else "numbers"
            raise InputError(
                f"{path}: not a readable {table} table (column {column} does not hold {kind}); delete it and run its "
                "rule again"
            )
    if problem := _impossible(results):
        raise InputError(f"{path}: not a readable {table} table ({problem}); delete it and run its rule again")
    return results


def _impossible(rows: pd.DataFrame) -> str | None:
    """Describe the first value or row that no job would write; None if there is none."""
    wrong: dict[str, pd.Series] = {}
    for column in (str(name) for name in rows if name not in _TEXTS):
        there = rows[column].dropna() if column in _MAY_LACK else rows[column]
        fine = np.isfinite(there) & ((there >= 0) & (there % 1 == 0) if column in _COUNTS else True)
        wrong[column] = ~fine.reindex(rows.index, fill_value=True)
    shares = [metric for metric in rows["metric"].unique() if re.fullmatch(_SHARES, metric)]
    if "value" in rows:
        wrong["value"] |= rows["metric"].isin(shares) & ~rows["value"].between(0, 1)
    for column, found in wrong.items():
        if found.any():
            row = rows[found].iloc[0]
            return f"{column} is {row[column]} in the row {row['metric']} of {row['run']}"
    if "test_hits" in rows and (stray := rows["test_hits"].notna() & (rows["metric"] != "linear_top1")).any():
        row = rows[stray].iloc[0]
        return f"test_hits are in the row {row['metric']} of {row['run']}"
    of_the_row = rows[["run", *(name for name in _PLACE if name in rows)]]
    if "source" in rows:  # several files of a run may give a reason for what they lack
        of_the_row = of_the_row.assign(source=rows["source"].where(rows["metric"] == "not_measured"))
    if (again := of_the_row.duplicated()).any():
        row = rows[again].iloc[0]
        return f"the row {row['metric']} of {row['run']} is there twice"
    of_runs = rows[[name for name in rows if name not in _OF_A_ROW]].drop_duplicates()
    if (again := of_runs.duplicated("run")).any():
        return f"the rows of {of_runs[again].iloc[0]['run']} differ in what they say of the run"
    return None


def rederive(script: Path, tables: Sequence[Path]) -> pd.DataFrame:
    """Compute a script's points from the tidy tables that it reads.

    Raises:
        InputError: the tables lack a metric that the script reads, or give it nothing to show.
    """
    return _points(load_target(script), tables)


def _points(target: Target, tables: Sequence[Path]) -> pd.DataFrame:
    read = (*target.metrics, *target.optional_metrics)
    tidy = [load_results(path, (*read, *EXCUSES), name) for path, name in zip(tables, target.tables, strict=True)]
    rows = [part[part["metric"].isin(read)].reset_index(drop=True) for part in tidy]
    present = {metric for part in rows if "value" in part for metric in part["metric"].unique()}  # not in verdicts
    absent = [metric for metric in target.metrics if metric not in present]
    named = " and ".join(map(str, tables))
    excused = any(map(_is_excused, tidy))
    if absent and not excused:
        raise InputError(f"{named}: no rows of {', '.join(absent)}, which {target.name} needs; run that stage again")
    points = pd.DataFrame({"runs": []}) if absent else target.points(*rows)
    if points.empty and target.nothing is None:
        if not excused:
            raise InputError(
                f"{named}: nothing to show in {target.name}, no run has all of {', '.join(target.metrics)}; "
                "check that training did not diverge"
            )
        points = pd.DataFrame({"runs": []})
    return points


def _is_excused(table: pd.DataFrame) -> bool:
    """Return whether every run has a recorded reason why it may lack a metric."""
    if "value" not in table:  # verdicts
        return False
    said = table[table["metric"].isin(EXCUSES) & (table["value"] == 1)]
    return not table.empty and set(table["run"]) == set(said["run"])


def write_points(points: pd.DataFrame, path: Path) -> None:
    """Write points as CSV; floats keep every digit, so that `read_points` returns the same numbers."""
    with atomic_path(path) as temporary:
        points.to_csv(temporary, index=False, lineterminator="\n")


def read_points(path: Path) -> pd.DataFrame:
    """Read the CSV of a figure or table.

    Raises:
        InputError: the file is missing or is not such a CSV.
    """
    try:
        with open_regular(path) as file:
            return pd.read_csv(file, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run snakemake --cores 1 {path.stem}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a readable CSV; run snakemake --cores 1 --force {path.stem}") from error


def points_equal(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    """Return whether two tables of points are equal as written to CSV.

    Numbers may differ by `ROUNDING`, because the last digit of logarithms in NumPy and in the system's mathematics
    library depends on the processor.
    """
    texts = [points.to_csv(index=False) for points in (left, right)]
    if texts[0] == texts[1]:
        return True
    try:
        first, second = (pd.read_csv(StringIO(text), keep_default_na=False, na_values=[""]) for text in texts)
        pd.testing.assert_frame_equal(first, second, rtol=ROUNDING, atol=0)
    except (AssertionError, ValueError):  # ValueError: one of them has no columns
        return False
    return True


def render(script: Path, tables: Sequence[Path], output_dir: Path) -> list[Path]:
    """Write a figure (CSV, PNG, PDF) or a table (CSV, Markdown); equal results give equal bytes.

    Args:
        script: the figure or table script.
        tables: the tidy tables (Parquet) that it reads, in the order of its `TABLES`.
        output_dir: where the files go.

    Returns:
        The files written.

    Raises:
        InputError: the script or the results cannot be used; then nothing is written.
    """
    target = load_target(script)
    points = _points(target, tables)
    paths = [output_dir / f"{target.name}{suffix}" for suffix in target.suffixes]
    write_points(points, paths[0])
    written = read_points(paths[0])
    if target.draw:
        _save(target.draw(written), paths[1:])
    if target.layout:
        with atomic_path(paths[1]) as temporary:
            temporary.write_text(table_text(target, written), encoding="utf-8")
    return paths


def render_live(script: Path, rows: pd.DataFrame, output_dir: Path) -> list[Path]:
    """Write the figure of a run that is still training, as CSV, PNG and PDF.

    Args:
        script: a figure script with `live_points`.
        rows: the run's measurements so far, in the columns of the results.
        output_dir: where the files go.

    Raises:
        InputError: the script does not support this, or there is nothing to show yet.
    """
    target = load_target(script)
    if target.draw is None or target.live_points is None:
        raise InputError(f"{script}: cannot be drawn for a run that is still training; fig_training can")
    points = target.live_points(rows)
    if points.empty:
        raise InputError(f"{output_dir}: nothing to show yet; the run has finished no epoch")
    paths = [output_dir / f"{target.name}{suffix}" for suffix in target.suffixes]
    write_points(points, paths[0])
    _save(target.draw(read_points(paths[0])), paths[1:])
    return paths


def table_text(target: Target, points: pd.DataFrame) -> str:
    """Return the Markdown of a table, with its title and caption."""
    if target.layout is None:
        raise ValueError(f"{target.name} is a figure")
    table = target.layout(points).to_markdown(index=False, disable_numparse=True)
    return f"# {target.title}\n\n{table}\n\n{target.caption}\n"


def shows_points(product: Path, target: Target, points: pd.DataFrame) -> bool:
    """Return whether the Markdown of a table has the cells that its points give; title and caption may differ."""
    shown = product.read_text(encoding="utf-8", errors="replace")
    return _cells(shown) == _cells(table_text(target, points))


def _cells(markdown: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without the blanks and dashes that pad columns."""
    rows = [line.split("|") for line in markdown.splitlines() if line.lstrip().startswith("|")]
    return [[re.sub("-{3,}", "---", " ".join(cell.split())) for cell in row] for row in rows]


def _save(figure: Figure, paths: list[Path]) -> None:
    unstamped = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}
    for path in paths:
        with mpl.rc_context({"pdf.fonttype": 42}), atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=200, metadata=unstamped[path.suffix])


def run(job: Job) -> str:
    """Draw one figure, or write one table.

    Raises:
        InputError: as `render`.
    """
    script, products = job.experiment.targets[job.subject], list(job.writes.values())
    with job.recorded():
        render(script.path, [job.layout.table(name) for name in script.tables], products[0].parent)
    return "\n".join(map(str, products))
