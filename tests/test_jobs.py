"""What the manifests say about the stages: which used which, what they took, and the drawing of both."""

import itertools
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import networkx as nx
import pytest

from dhel_kcl.jobs.history import drawing, hardware, load_jobs, stage_costs, stage_graph


@pytest.fixture
def graph(make_manifest: Callable[..., Path]) -> nx.DiGraph:
    """A workflow of every shape: two runs, a way around a stage, a stage without inputs, files from outside."""
    paths = [make_manifest("data", "a/train", outputs=["beton"])]
    for run in "12":
        paths += [
            make_manifest("pretrain", run, ["beton"], [f"encoder{run}"], seconds=10.0 * int(run), peak_memory_mib=100),
            make_manifest("features", run, [f"encoder{run}", "beton"], [f"features{run}"]),
            make_manifest("evaluate", run, [f"features{run}"], [f"accuracy{run}"]),
            make_manifest("probe", run, [f"encoder{run}", "beton"], [f"probe{run}"]),
        ]
    paths += [
        make_manifest(
            "collect", "all", ["beton", *(f"{file}{run}" for file in ("accuracy", "probe") for run in "12")], ["table"]
        ),
        make_manifest("theory", "all", [], ["theory"]),
        make_manifest("render", "fig_a", ["table"], ["figure"]),
        make_manifest("render", "fig_b", ["theory"], ["other"]),
        make_manifest("render", "table_a", ["table", "published.csv"], ["text"]),
        make_manifest("explorer", "all", ["table", "pretrain-1.json"], ["page"]),
    ]
    return stage_graph(load_jobs(paths))


def test_an_edge_leads_from_a_stage_to_each_that_used_one_of_its_files(graph: nx.DiGraph) -> None:
    assert set(graph.edges) == {
        *[("data", "pretrain"), ("data", "features"), ("data", "probe"), ("data", "collect")],
        *[("pretrain", "features"), ("pretrain", "probe"), ("features", "evaluate")],
        *[("evaluate", "collect"), ("probe", "collect")],
        *[("collect", "figures"), ("theory", "figures"), ("collect", "tables")],
        *[("collect", "explorer"), ("pretrain", "explorer")],  # it read a manifest of pretraining
    }


def test_costs_are_those_of_the_jobs_of_each_stage(graph: nx.DiGraph) -> None:
    costs = {cost.pop("stage"): cost for cost in stage_costs(graph)}
    pretrain = {"jobs": 2, "total": timedelta(seconds=30), "median": 15.0, "longest": 20.0, "memory": 100}
    assert costs["pretrain"] == {**pretrain, "uses": ["data"]}
    assert costs["evaluate"]["memory"] is None, "a manifest of before memory was recorded"
    assert {stage: cost["jobs"] for stage, cost in costs.items()} == {
        **{"data": 1, "pretrain": 2, "features": 2, "evaluate": 2, "probe": 2, "collect": 1, "theory": 1},
        **{"figures": 2, "tables": 1, "explorer": 1},
    }


def test_machines_are_counted_by_what_they_are(make_manifest: Callable[..., Path]) -> None:
    kinds = [{"cpu": "A"}, {"cpu": "B", "gpu": "G"}, {"cpu": "B", "gpu": "G"}]
    paths = [make_manifest("pretrain", str(index), hardware=kind) for index, kind in enumerate(kinds)]
    assert hardware(load_jobs(paths).values()) == [{"cpu": "B", "gpu": "G", "jobs": 2}, {"cpu": "A", "jobs": 1}]


@pytest.mark.parametrize("downwards", [False, True])
def test_each_stage_has_a_box_of_its_own_inside_the_drawing(graph: nx.DiGraph, downwards: bool) -> None:
    drawn = drawing(graph, downwards=downwards)
    assert [box["stage"] for box in drawn["boxes"]] == list(graph)
    for box in drawn["boxes"]:
        assert 0 <= box["x"] <= drawn["width"] - drawn["box_width"]
        assert 0 <= box["y"] <= drawn["height"] - drawn["box_height"]
    for one, other in itertools.combinations(drawn["boxes"], 2):
        apart_x = abs(one["x"] - other["x"]) > drawn["box_width"]
        apart_y = abs(one["y"] - other["y"]) > drawn["box_height"]
        assert apart_x or apart_y, (one, other)


@pytest.mark.parametrize("downwards", [False, True])
def test_arrows_join_the_boxes_of_the_reduced_graph_and_cross_no_box(graph: nx.DiGraph, downwards: bool) -> None:
    drawn = drawing(graph, downwards=downwards)
    width, height = drawn["box_width"], drawn["box_height"]
    begins, ends = {}, {}  # where arrows leave and reach each box
    for box in drawn["boxes"]:
        x, y = box["x"], box["y"]
        begins[(x + width / 2, y + height) if downwards else (x + width, y + height / 2)] = box["stage"]
        ends[(x + width / 2, y) if downwards else (x, y + height / 2)] = box["stage"]
    joined = set()
    for arrow in drawn["arrows"]:
        points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", arrow)]
        joined.add((begins[points[0]], ends[points[-1]]))
        # Between its ends an arrow is straight along the layers that it passes, where boxes are.
        for x, y, _ in re.findall(r"([\d.]+),([\d.]+)[HV]([\d.]+)", arrow):
            for box in drawn["boxes"]:
                inside = 0 <= float(x) - box["x"] <= width and 0 <= float(y) - box["y"] <= height
                assert not inside, (arrow, box)
    assert joined == set(nx.transitive_reduction(graph).edges)
    assert any(("V" if downwards else "H") in arrow for arrow in drawn["arrows"]), "one arrow passes a layer"


def test_the_drawing_depends_on_the_graph_only(graph: nx.DiGraph) -> None:
    assert drawing(graph) == drawing(graph.copy())


def test_no_job_gives_an_empty_drawing() -> None:
    drawn = drawing(stage_graph({}))
    assert drawn["boxes"] == drawn["arrows"] == []
