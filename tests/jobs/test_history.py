"""What the manifests say about the stages: which used which, and what they took."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from dhel_kcl.jobs.history import History


@pytest.fixture
def history(make_manifest: Callable[..., Path]) -> History:
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
    return History(paths)


def test_a_stage_uses_each_of_which_it_read_a_file(history: History) -> None:
    assert {(used, cost["stage"]) for cost in history.stage_costs() for used in cost["uses"]} == {
        *[("data", "pretrain"), ("data", "features"), ("data", "probe"), ("data", "collect")],
        *[("pretrain", "features"), ("pretrain", "probe"), ("features", "evaluate")],
        *[("evaluate", "collect"), ("probe", "collect")],
        *[("collect", "figures"), ("theory", "figures"), ("collect", "tables")],
        *[("collect", "explorer"), ("pretrain", "explorer")],  # it read a manifest of pretraining
    }


def test_costs_are_those_of_the_jobs_of_each_stage(history: History) -> None:
    costs = {cost.pop("stage"): cost for cost in history.stage_costs()}
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
    assert History(paths).hardware() == [{"cpu": "B", "gpu": "G", "jobs": 2}, {"cpu": "A", "jobs": 1}]
