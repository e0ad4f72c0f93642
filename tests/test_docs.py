"""Pages and results in `docs` are those that their sources give."""

import importlib.util
from pathlib import Path

import pytest
from workspace import REPOSITORY

from dhel_kcl.declarations import scripts
from dhel_kcl.paper import points_equal, read_points, rederive

SCRIPTS = scripts(REPOSITORY / "paper_figures")
SHIPPED = sorted(table.parents[1] for table in (REPOSITORY / "docs" / "results").glob("*/tables/table_claims.csv"))


def test_the_page_of_claims_is_what_the_shipped_tables_of_claims_give() -> None:
    script = REPOSITORY / "docs" / "write_claims.py"
    spec = importlib.util.spec_from_file_location("write_claims", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPOSITORY / "docs" / "claims.md").read_text() == module.page(), "run python docs/write_claims.py"


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("results", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_figures_and_tables_are_what_the_shipped_results_give(results: Path, name: str) -> None:
    script = SCRIPTS[name]
    folder = results / ("figures" if script.is_figure else "tables")
    derived = rederive(script.path, [results / f"{table}.parquet" for table in script.tables])
    assert points_equal(read_points(folder / f"{name}.csv"), derived)
