"""Pages and results in `docs` are those that their sources give."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest
from workspace import REPOSITORY, TINY

from dhel_kcl.declarations import scripts
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.stages import STAGES
from dhel_kcl.paper.render import points_equal, read_points, rederive

SCRIPTS = scripts(REPOSITORY / "paper_figures")
SHIPPED = sorted(table.parents[1] for table in (REPOSITORY / "docs" / "results").glob("*/tables/table_claims.csv"))


def writer(name: str) -> ModuleType:
    """A script of docs/ that writes a page or drawing."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_claims_is_what_the_shipped_tables_of_claims_give() -> None:
    page = writer("write_claims").page()
    assert (REPOSITORY / "docs" / "claims.md").read_text(encoding="utf-8") == page, "run python docs/write_claims.py"


def test_the_picture_of_the_stages_is_what_their_table_gives() -> None:
    """An arrow for each stage that reads a file of another; those that follow from others are left out."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE)) - {("report", "audit")}
    experiment = Experiment(load_config(TINY), Layout(Path("results/tiny")), REPOSITORY / "paper_figures")
    every = jobs(experiment)
    writers = {file: job.stage.name for job in every.values() for file in (*job.writes.values(), job.manifest)}
    reads = {
        (writers[file], job.stage.name) for job in every.values() for file in job.reads.values() if file in writers
    }
    assert drawn == set(nx.transitive_reduction(nx.DiGraph(reads)).edges)


def test_the_page_of_the_architecture_has_the_rule_and_module_of_every_stage() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| .+? \| `([\w/]+)\.py`[^|]*\|", page, re.MULTILINE))
    modules = {stage: f"dhel_kcl.{module.replace('/', '.')}" for stage, module in rows.items()}
    assert modules == {name: stage.module for name, stage in STAGES.items()}
    for stage, file in re.findall(r"^\| (\w+) \| `(\w+\.smk)` \|", page, re.MULTILINE):
        rules = (REPOSITORY / "workflow" / "rules" / file).read_text(encoding="utf-8")
        assert f"rule {STAGES[stage].rule or stage}:" in rules or stage == "render"


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/reproduce.md", "CONTRIBUTING.md"])
def test_every_source_file_that_a_page_names_exists(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = set(re.findall(r"[`/ ]((?:[a-z0-9_]+/)*[a-z0-9_]+(?:\.html|\.svg)?\.(?:py|smk|j2|yaml))`", text))
    places = (".", "config", "src/dhel_kcl", "workflow/rules", "paper_figures")
    assert named
    for name in named:
        assert any((REPOSITORY / place / name).is_file() for place in places), name


@pytest.mark.parametrize(
    ("results", "name"),
    [(results, csv.stem) for results in SHIPPED for csv in sorted(results.glob("[ft]*s/*.csv"))],
    ids=lambda value: getattr(value, "name", value),
)
def test_shipped_figures_and_tables_are_what_the_shipped_results_give(results: Path, name: str) -> None:
    script = SCRIPTS[name]
    folder = results / ("figures" if script.is_figure else "tables")
    derived = rederive(script.path, [results / f"{table}.parquet" for table in script.tables])
    if script.is_figure and derived.empty:
        assert not (folder / f"{name}.csv").exists(), "a figure with nothing to show is not shipped"
    else:
        assert points_equal(read_points(folder / f"{name}.csv"), derived)
