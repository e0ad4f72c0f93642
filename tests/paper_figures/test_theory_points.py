"""What the theory's figures and table show, and that a theorem which does not hold stops them."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dhel_kcl.errors import InputError
from dhel_kcl.paper.render import Target, load_target, render


@pytest.fixture
def table(scripts: Path) -> Target:
    return load_target(scripts / "table_theory.py")


def changed(theory: pd.DataFrame, query: str, value: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    rows = theory.query(query).index
    assert len(rows)
    doctored = theory.copy()
    doctored.loc[rows, "value"] = value(doctored.loc[rows, "value"])
    return doctored


def test_every_claim_of_theorems_that_hold_holds(table: Target, theory: pd.DataFrame) -> None:
    points = table.points(theory)
    assert set(points["verdict"]) == {"holds"}
    assert points.groupby("loss")["claim"].count().to_dict() == {
        **dict.fromkeys(["infonce", "ntxent"], 3 + 1 + 1 + 1 + 2 + 2 + 1),
        **dict.fromkeys(["dcl", "dhel"], 3 + 1 + 1 + 2 + 2 + 2 + 1),
        **dict.fromkeys(["kcl_gaussian", "kcl_log", "kcl_imq"], 2 * 3 + 1 + 1 + 2 + 2 + 2 + 1),
    }


def test_starts_that_stopped_in_local_minima_are_counted(table: Target, theory: pd.DataFrame) -> None:
    points = table.points(theory).set_index(["loss", "claim"])
    assert points.loc[("kcl_gaussian", "minimum of the loss (simplex)"), "setting"] == "M = 4, d = 3, 2 of 3 starts"
    assert points.loc[("kcl_log", "minimum of the loss (simplex)"), "setting"] == "M = 4, d = 3, 3 of 3 starts"
    assert points.loc[("kcl_gaussian", "views coincide"), "measured"].max() < 1e-6


@pytest.mark.parametrize(
    ("query", "change", "said"),
    [
        ("loss == 'dhel' and metric == 'minimum'", lambda v: v * (1 + 1e-5), "minimum of the loss (simplex) (dhel"),
        (
            "loss == 'dcl' and check == 'minimise' and metric == 'loss'",
            lambda v: v - 1e-5,
            "(dcl, M = 4, d = 3, 3 of 3",
        ),
        ("loss == 'kcl_log' and batch_size == 6 and metric == 'gram'", lambda v: v * 0.99, "form a cross-polytope"),
        ("loss == 'ntxent' and metric == 'alignment'", lambda v: v + 1e-3, "views coincide (ntxent"),
        (
            "check == 'mini_batches' and loss == 'kcl_imq' and batch_size == 3 and metric == 'loss'",
            lambda v: v + 1e-8,
            "(kcl_imq, M = 3 of 5",
        ),
        (
            "check == 'mini_batches' and loss == 'dhel' and metric == 'loss'",
            lambda v: v - v + [math.log(m) for m in (2, 3, 4, 5)],
            "no mini-batch average is the full loss (dhel",
        ),
        ("check == 'uniform' and loss == 'infonce' and metric == 'asymptote'", lambda v: v * 1.01, "tends to the asym"),
        (
            "check == 'uniform' and loss == 'kcl_gaussian' and batch_size == 16 and metric == 'loss'",
            lambda v: v + 1,
            "is the asymptote at every M (kcl_gaussian, M = 16",
        ),
        (
            "check == 'uniform' and loss == 'dcl' and batch_size == 2 and metric == 'loss'",
            lambda v: v - 0.5,
            "depends on M (dcl, M = 2",
        ),
        (
            "check == 'population' and loss == 'kcl_log' and batch_size == 5 and metric == 'full_loss' and x == 2",
            lambda v: v + 1e-6,
            "mini-batch minimisers minimise the full loss (kcl_log, M = 5 of 8",
        ),
        (
            "check == 'population' and loss == 'dhel' and batch_size == 2 and metric == 'full_loss' and x == 0",
            lambda v: v - v + 3,
            "some mini-batch minimisers do not minimise the full loss (dhel, M = 2 of 8",
        ),
        (
            "check == 'gradients' and loss == 'kcl_imq' and batch_size == 2",
            lambda v: v + 1e-6,
            "every mean mini-batch gradient is the full gradient (kcl_imq, M = 2",
        ),
        (
            "metric == 'mises_fisher' and loss == 'dcl' and x == 8",
            lambda v: v - 2,
            "the uniform law has the least limit functional (dcl, von Mises-Fisher laws",
        ),
        ("metric == 'wasserstein' and loss == 'ntxent'", lambda v: v * 4, "W1 of the minimisers tends to 0 (ntxent"),
    ],
)
def test_a_claim_that_fails_stops_the_target_and_says_by_how_much(
    scripts: Path,
    theory: pd.DataFrame,
    query: str,
    change: Callable[[pd.Series], pd.Series],
    said: str,
    tmp_path: Path,
) -> None:
    source = tmp_path / "theory.parquet"
    changed(theory, query, change).to_parquet(source)
    with pytest.raises(InputError) as caught:
        render(scripts / "table_theory.py", [source], tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert any(said in line for line in lines), lines
    for line in lines:
        for part in ("predicted", "measured", "tolerance"):
            assert part in line
    assert not (tmp_path / "out").exists()


def test_a_value_that_is_not_finite_stops_the_target(table: Target, theory: pd.DataFrame) -> None:
    broken = changed(theory, "loss == 'kcl_imq' and batch_size == 128 and x == 3", lambda v: v * math.nan)
    with pytest.raises(InputError, match="loss not finite in uniform-kcl_imq-bs128-seed0"):
        table.points(broken)


def test_minimisers_show_the_excess_and_the_best_start(scripts: Path, theory: pd.DataFrame) -> None:
    points = load_target(scripts / "fig_minimisers.py").points(theory)
    stuck = points.query("loss == 'kcl_gaussian' and seed == 1 and metric == 'excess' and batch_size == 4")
    assert stuck["value"].iloc[[0, -1]].tolist() == pytest.approx([1.3, 0.3])
    gram = points[points["metric"] == "gram"]
    assert gram.query("loss == 'kcl_gaussian'")["seed"].unique().tolist() == [0]
    assert gram.query("loss == 'predicted' and batch_size == 4")["value"].tolist()[:2] == pytest.approx([1, -1 / 3])
    assert set(gram.query("batch_size == 6")["loss"]) == {"predicted", "kcl_gaussian", "kcl_log", "kcl_imq"}


def test_minimisers_draw_a_curve_per_start_and_a_map_per_loss(scripts: Path, theory: pd.DataFrame) -> None:
    target = load_target(scripts / "fig_minimisers.py")
    assert target.draw
    figure = target.draw(target.points(theory))
    assert [len(axes.lines) for axes in figure.axes[:2]] == [7 * 3, 3 * 3]
    assert sum(len(axes.images) for axes in figure.axes) == 8 + 4


def test_the_mini_batch_loss_is_shown_less_its_growth(scripts: Path, theory: pd.DataFrame) -> None:
    points = load_target(scripts / "fig_minibatch_asymptotic.py").points(theory)
    dhel = points.query("loss == 'dhel' and check == 'uniform'")
    assert dhel["mean"].tolist() == pytest.approx([-2 + 1 / m for m in (2, 16, 128, 1024)])
    assert (dhel["low"] < dhel["mean"]).all()
    assert (dhel["mean"] < dhel["high"]).all()
    parts = points.query("loss == 'dhel' and check == 'mini_batches'")
    assert parts["batch_size"].tolist() == [2, 3, 4]
    assert parts["distance"].tolist() == pytest.approx([1 / m - 1 / 5 for m in (2, 3, 4)])


def test_the_expected_loss_is_drawn_from_its_limit(scripts: Path, theory: pd.DataFrame) -> None:
    target = load_target(scripts / "fig_minibatch_asymptotic.py")
    assert target.draw
    family = target.draw(target.points(theory)).axes[0]
    assert family.lines[3].get_ydata() == pytest.approx([1 / m for m in (2, 16, 128, 1024)])


def test_population_minimisers_span_the_excess_of_the_best_starts_only(scripts: Path, theory: pd.DataFrame) -> None:
    points = load_target(scripts / "fig_population_minimisers.py").points(theory)
    found = points.set_index(["loss", "pairs", "batch_size"])
    assert found.loc[("dhel", 8, 2), ["least", "most"]].tolist() == pytest.approx([0, 0.5])
    assert found.loc[("ntxent", 8, 5), ["least", "most", "gap"]].tolist() == pytest.approx([1e-4, 1e-4, 1e-5])
    assert found.loc[("kcl_log", 8, 5), ["least", "most", "gap"]].tolist() == [0, 0, 0]
    assert set(points["reached"]) == {2}
    assert set(points["starts"]) == {3}


def test_measures_are_shares_of_their_ranges_and_functionals_an_excess(scripts: Path, theory: pd.DataFrame) -> None:
    points = load_target(scripts / "fig_uniformity_measures.py").points(theory)
    value = points.set_index(["metric", "x"])["value"]
    lowest = math.log((1 - math.exp(-8)) / 8)  # of the uniform law in three dimensions
    assert value["point_exact_uniformity", 1.0] == pytest.approx(1 + 2 / 4 / lowest)
    assert value["antipodes_wasserstein", 1.0] == pytest.approx(1 / 4)
    assert value["mises_fisher", 8.0].tolist() == pytest.approx([1.5] * 7)
