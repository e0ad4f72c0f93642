"""The report: one HTML file with every table and figure, the configuration, and the command that audits them."""

import base64
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from dhel_kcl import declarations
from dhel_kcl.declarations import Script
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.jobs.stages import reported
from dhel_kcl.paper.page import fill, write_page
from dhel_kcl.paper.render import Target, load_results, load_target, read_points


def report_text(
    config_path: Path,
    results: Path,
    figures_dir: Path,
    tables_dir: Path,
    output: Path,
    targets: Iterable[Target],
    others: Iterable[Path],
    explorer: Path | None,
    manifests: Iterable[Path],
    experiment: Path,
) -> str:
    """Return the text of a self-contained HTML report; equal inputs give equal text.

    The tables come before the figures, and the table of the paper's claims comes first.

    Args:
        config_path: the experiment's YAML, shown unchanged.
        results: the tidy results (Parquet).
        figures_dir: the folder with the CSV, PNG and PDF of each figure.
        tables_dir: the folder with the CSV and Markdown of each table.
        output: where the HTML file will be; images are embedded, and links to other files are relative to it.
        targets: the figures and tables to show.
        others: the other tidy tables (Parquet), whose sha256 is shown beside the results'.
        explorer: the page of single runs, to link to.
        manifests: the manifests of the jobs whose run times and hardware are shown.
        experiment: the experiment's folder, as named in the audit command.

    Raises:
        InputError: an input or a product of a script is missing or unreadable.
    """
    config = load_config(config_path)
    table = load_results(results, ("linear_top1", "training_loss"))
    targets = sorted(targets, key=lambda target: target.name != "table_claims")
    history = History(manifests)
    return fill(
        "report.html.j2",
        config=config,
        config_text=config_path.read_text(encoding="utf-8"),
        runs=table["run"].nunique(),
        evaluated=table.loc[table["metric"] == "linear_top1", "run"].nunique(),
        explorer=_link(explorer, output) if explorer else None,
        costs=history.stage_costs(),
        hardware=history.hardware(),
        tables=[_section(target, tables_dir, output) for target in targets if target.layout],
        figures=[_section(target, figures_dir, output) for target in targets if target.draw],
        results_folder=shlex.quote(str(experiment)),
        hashes=[{"name": path.name, "sha256": sha256_file(path)} for path in (results, *others, config_path)],
    )


def _section(target: Target, folder: Path, output: Path) -> dict[str, Any]:
    paths = {suffix: folder / f"{target.name}{suffix}" for suffix in target.suffixes}
    for path in paths.values():
        if not path.is_file():
            raise InputError(f"{path}: missing; run snakemake --cores 1 {target.name}")
    section = {
        "name": target.name,
        "title": target.title,
        "caption": target.caption,
        "links": [{"name": suffix.lstrip(".").upper(), "href": _link(path, output)} for suffix, path in paths.items()],
    }
    if target.layout:
        section["html"] = Markup(_table(target, paths[".csv"]))  # nosec B704 # pandas escapes the cells
    else:
        section["png"] = _image(paths[".png"])
    return section


def _table(target: Target, csv: Path) -> str:
    if target.layout is None:
        raise ValueError(f"{target.name} is a figure")
    return target.layout(read_points(csv)).to_html(index=False, border=0, justify="left", na_rep="")


def _image(png: Path) -> str:
    return base64.b64encode(png.read_bytes()).decode()


def compare_report(experiment: Experiment) -> tuple[bool, list[str]]:
    """Compare an experiment's report with the files that it is made from.

    Args:
        experiment: the experiment, or a release of it; figures and tables that it does not have are not expected in its
            report.

    Returns:
        Whether the report is exactly what this code makes now; and the figures, tables and other parts that contradict
        the files beside it, because a report made by different code can still be correct.

    Raises:
        InputError: a file is missing or unreadable.
    """
    layout, every = experiment.layout, experiment.targets
    there = {name: script for name, script in every.items() if all(map(Path.is_file, layout.products(name)))}
    experiment = replace(experiment, chosen=there)
    targets = [load_target(script.path) for script in there.values() if has_something_to_show(layout, script)]
    page = layout.report.read_text(encoding="utf-8", errors="replace")
    tables = [path for path in map(layout.table, declarations.TABLES) if path.is_file()]
    if wrong := list(contradictions(page, layout.config, tables, layout.figures, layout.tables, targets)):
        return False, wrong
    called = load_manifest(layout.manifest("report")).command
    return page == report_of(experiment, Path(called[-1]) if called else layout.root), []


def has_something_to_show(layout: Layout, script: Script) -> bool:
    """Return whether a product is a table, or a figure with a point; a figure without one is a sentence.

    Raises:
        InputError: the figure's numbers are missing or unreadable.
    """
    csv = next(path for path in layout.products(script.name) if path.suffix == ".csv")
    return not script.is_figure or not read_points(csv).empty


def report_of(experiment: Experiment, folder: Path, drawn: Layout | None = None) -> str:
    """Return the text of an experiment's report, like `report_text`.

    Args:
        experiment: the experiment, or a release of it.
        folder: its folder, as named in the audit command.
        drawn: where the figures, tables and pages are if they were redrawn elsewhere; the user's own scripts have no
            manifests then.

    Raises:
        InputError: as `report_text`.
    """
    layout, shown = experiment.layout, drawn or experiment.layout
    targets = {name: script for name, script in experiment.targets.items() if has_something_to_show(shown, script)}
    manifests = reported(replace(experiment, chosen=targets))
    return report_text(
        layout.config,
        layout.results,
        shown.figures,
        shown.tables,
        shown.report,
        [load_target(script.path) for script in targets.values()],
        [path for path in (layout.theory, layout.verdicts) if path.is_file()],
        shown.explorer,
        [path for path in manifests if path.exists()] if drawn else manifests,
        folder,
    )


def contradictions(
    page: str, config_path: Path, tables: Iterable[Path], figures_dir: Path, tables_dir: Path, targets: Iterable[Target]
) -> Iterator[str]:
    """Find the parts of a report that contradict the files beside it, whichever version of this code wrote it.

    Args:
        page: the report's text.
        config_path: the configuration that it must show.
        tables: the tidy tables whose sha256 it must show.
        figures_dir: the folder with the PNG of each figure.
        tables_dir: the folder with the CSV of each table.
        targets: the figures and tables that it must show; it may show no others.

    Yields:
        The figure, table or other part of the report, in words.

    Raises:
        InputError: a product is missing or unreadable.
    """
    sections: dict[str, str] = {}
    for name, section in re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL):
        sections[name] = sections.get(name, "") + section
    for target in targets:
        section = sections.pop(target.name, "")
        if target.layout:
            wanted = _table(target, tables_dir / f"{target.name}.csv")
            same = re.findall("<table.*?</table>", section, re.DOTALL) == [wanted] and "<img" not in section
        else:
            image = f"data:image/png;base64,{_image(figures_dir / f'{target.name}.png')}"
            same = re.findall('<img src="([^"]*)"', section) == [image] and "<table" not in section
            page = page.replace(f'<img src="{image}"', "", 1)
        if not same:
            yield target.name
    yield from (f"{name}, which the experiment does not have," for name in sections)
    if re.search(r"<(img|image|picture|video|canvas|iframe|object|embed|script|link)\b|url\((?!#)", page):
        yield "an image or a program that is no figure of the experiment"
    if str(escape(config_path.read_text(encoding="utf-8"))) not in page:
        yield "the configuration"
    for path in (*tables, config_path):
        if f"<tr><td>{path.name}</td><td><code>{sha256_file(path)}</code></td></tr>" not in page:
            yield f"the sha256 of {path.name}"


def _link(path: Path, output: Path) -> str:
    return Path(os.path.relpath(path, output.parent)).as_posix()


def run(job: Job) -> str:
    """Write the report.

    Raises:
        InputError: as `report_text`.
    """
    (page,) = job.writes.values()
    with job.recorded():
        write_page(report_of(job.experiment, job.layout.root), page)
    return str(page)
