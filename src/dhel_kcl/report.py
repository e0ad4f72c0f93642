"""The report: one HTML file with every table and figure, the configuration, and how to audit them."""

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dhel_kcl.artifacts import sha256_file
from dhel_kcl.config import load_config
from dhel_kcl.declarations import scripts
from dhel_kcl.errors import InputError
from dhel_kcl.jobs import drawing, hardware, load_jobs, stage_costs, stage_graph
from dhel_kcl.pages import write_page
from dhel_kcl.paper import Target, load_results, load_target, read_points
from dhel_kcl.stages import SCRIPTS


def write_report(
    config_path: Path,
    results: Path,
    figures_dir: Path,
    tables_dir: Path,
    output: Path,
    scripts_dir: Path = SCRIPTS,
    theory: Path | None = None,
    explorer: Path | None = None,
    manifests: Iterable[Path] = (),
) -> None:
    """Write a self-contained HTML report; equal inputs give equal bytes.

    The tables come first, and first of all the one that judges the paper's claims.

    Args:
        config_path: the experiment's YAML, shown as it is.
        results: the tidy results (Parquet).
        figures_dir: the folder with the CSV, PNG and PDF of each figure.
        tables_dir: the folder with the CSV and Markdown of each table.
        output: the HTML file to write; images are inside it, links to the other files are relative to it.
        scripts_dir: the figure and table scripts; the report shows the products of all of them.
        theory: the tidy table of the theorems' verification (Parquet), whose sha256 is shown beside the results'.
        explorer: the page of single runs, to link to.
        manifests: the manifests of the jobs, whose graph, hardware and run times are shown.

    Raises:
        InputError: an input or a product of a script is missing or unreadable.
    """
    config = load_config(config_path)
    table = load_results(results, ("linear_top1", "training_loss"))
    targets = [load_target(script.path) for script in scripts(scripts_dir).values()]
    targets.sort(key=lambda target: target.name != "table_claims")
    jobs = load_jobs(manifests)
    graph = stage_graph(jobs)
    costs = stage_costs(graph)
    write_page(
        "report.html.j2",
        output,
        config=config,
        config_text=config_path.read_text(encoding="utf-8"),
        runs=table["run"].nunique(),
        evaluated=table.loc[table["metric"] == "linear_top1", "run"].nunique(),
        explorer=_link(explorer, output) if explorer else None,
        graph=drawing(graph),
        notes={cost["stage"]: f"{cost['jobs']} job{'s' if cost['jobs'] > 1 else ''}" for cost in costs},
        costs=costs,
        hardware=hardware(jobs.values()),
        tables=[_section(target, tables_dir, output) for target in targets if target.layout],
        figures=[_section(target, figures_dir, output) for target in targets if target.draw],
        results_folder=results.parent,
        hashes=[
            {"name": path.name, "sha256": sha256_file(path)} for path in filter(None, (results, theory, config_path))
        ],
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
        shown = target.layout(read_points(paths[".csv"]))
        table = shown.to_html(index=False, border=0, justify="left", na_rep="")
        section["html"] = Markup(table)  # nosec B704 # pandas escapes the cells
    else:
        section["png"] = base64.b64encode(paths[".png"].read_bytes()).decode()
    return section


def _link(path: Path, output: Path) -> str:
    return Path(os.path.relpath(path, output.parent)).as_posix()
