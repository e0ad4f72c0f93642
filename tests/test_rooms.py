"""Rooms in the order of the path, no import against it, and one name for a stage, its rule and its module."""

import re
from pathlib import Path

import grimp
import pytest
from workspace import REPOSITORY

from dhel_kcl.jobs.stages import STAGES

ORDER = (
    *("errors", "console", "seeding", "metrics", "files", "declarations", "losses", "theory", "experiment", "jobs"),
    *("data", "training", "evaluation", "results", "paper", "plan", "provenance", "cli", "__main__"),
)
"""Each imports only those that stand before it."""
MOST_MODULES = 8
PACKAGE = REPOSITORY / "src" / "dhel_kcl"


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("dhel_kcl", cache_dir=None)


def room(module: str) -> str:
    return module.split(".")[1]


def against_the_order(graph: grimp.ImportGraph) -> list[str]:
    """Each import of a room that stands after the one that imports it."""
    modules = sorted(graph.modules - {"dhel_kcl"})
    imports = [(module, other) for module in modules for other in graph.find_modules_directly_imported_by(module)]
    return [
        f"{module} imports {other}"
        for module, other in imports
        if other != "dhel_kcl" and ORDER.index(room(other)) > ORDER.index(room(module))
    ]


def test_no_room_imports_one_that_stands_after_it(graph: grimp.ImportGraph) -> None:
    assert {room(module) for module in graph.modules - {"dhel_kcl"}} == set(ORDER)
    assert against_the_order(graph) == []


def test_an_import_against_the_order_is_found(graph: grimp.ImportGraph) -> None:
    graph.add_import(importer="dhel_kcl.jobs.stages", imported="dhel_kcl.paper.render")
    assert against_the_order(graph) == ["dhel_kcl.jobs.stages imports dhel_kcl.paper.render"]


def test_the_package_has_rooms_and_few_modules_of_its_own() -> None:
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, modules


def test_the_rooms_of_the_path_export_nothing() -> None:
    """So that planning and help import what they need alone."""
    for name in ("experiment", "jobs", "data", "training", "evaluation", "results", "paper", "provenance"):
        text = (PACKAGE / name / "__init__.py").read_text(encoding="utf-8")
        assert re.fullmatch('"""[^"]+"""\n', text), name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_and_its_module_have_one_name_and_there_is_its_rule(name: str) -> None:
    module = STAGES[name].module
    assert module.rpartition(".")[2] == name
    assert PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()
    rules = "".join(path.read_text(encoding="utf-8") for path in Path(REPOSITORY, "workflow", "rules").glob("*.smk"))
    named_by_script, rule = STAGES[name].each == "target", STAGES[name].rule or name
    assert named_by_script or name == "configure" or re.search(rf"^ *rule {rule}:", rules, re.MULTILINE)
