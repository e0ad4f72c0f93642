"""The stage that checks the theorems, at sizes of a second."""

import pandas as pd
import pytest

from dhel_kcl.experiment.config import TheoryConfig
from dhel_kcl.paper.render import THEORY_COLUMNS
from dhel_kcl.results.theory import verify

CONFIG = TheoryConfig.model_validate(
    {
        "minimise": {"embedding_dim": 3, "starts": 2},
        "mini_batches": {"population": 4},
        "uniform": {"batch_sizes": [2, 32], "embeddings": 256},
        "population": {"sizes": [{"pairs": 4, "embedding_dim": 3}, {"pairs": 5, "embedding_dim": 2}], "starts": 2},
        "limit_functional": {"embedding_dim": 4, "concentrations": [1, 8]},
        "w1_of_minimisers": {"pairs": [8, 16]},
        "uniformity_of_laws": {"embedding_dims": [8], "embeddings": 128},
    }
)
LOSSES = {"infonce", "ntxent", "dcl", "dhel", "kcl_gaussian", "kcl_log", "kcl_imq"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return verify(CONFIG)


def values(table: pd.DataFrame, check: str, metric: str) -> pd.DataFrame:
    return table[(table["check"] == check) & (table["metric"] == metric)]


def test_it_is_the_tidy_table_that_the_figures_read(table: pd.DataFrame) -> None:
    assert list(table) == THEORY_COLUMNS
    assert table["value"].notna().all()
    assert not table.duplicated(["run", "metric", "x"]).any()
    for check, rows in table.groupby("check"):
        assert set(rows["loss"]) == ({""} if check == "uniformity_of_laws" else LOSSES)


def test_equal_settings_give_equal_bits_and_another_seed_gives_others(table: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table, verify(CONFIG), check_exact=True)
    other = verify(CONFIG.model_copy(update={"seed": 7}))
    sampled = values(other, "uniform", "loss")["value"]
    assert not set(sampled) & set(values(table, "uniform", "loss")["value"])


def test_the_loss_never_rises_along_a_descent_nor_falls_below_the_minimum(table: pd.DataFrame) -> None:
    minima = values(table, "minimise", "minimum").set_index("run")["value"]
    for run, descent in values(table, "minimise", "loss").groupby("run"):
        path = descent.sort_values("x")["value"]
        assert path.is_monotonic_decreasing
        assert path.min() >= minima[run] - 1e-12 * abs(minima[run])


def test_the_simplex_is_sought_for_every_loss_and_the_cross_polytope_for_kernels(table: pd.DataFrame) -> None:
    sought = values(table, "minimise", "minimum").groupby("batch_size")["loss"].agg(set)
    assert sought[4] == LOSSES
    assert sought[6] == {"kcl_gaussian", "kcl_log", "kcl_imq"}


def test_cosines_at_the_end_show_antipodes_side_by_side(table: pd.DataFrame) -> None:
    rows = table[(table["loss"] == "kcl_log") & (table["batch_size"] == 6) & (table["check"] == "minimise")]
    gram = rows[rows["metric"].isin(["gram", "minimiser_gram"])].pivot_table(
        index=["run", "x"], columns="metric", values="value"
    )
    assert gram["gram"].to_numpy() == pytest.approx(gram["minimiser_gram"].to_numpy(), abs=1e-5)


def test_every_batch_size_of_the_population_is_averaged(table: pd.DataFrame) -> None:
    rows = values(table, "mini_batches", "loss")
    assert sorted(rows.loc[rows["loss"] == "dhel", "batch_size"]) == [2, 3, 4]


def test_each_batch_size_gets_its_share_of_embeddings(table: pd.DataFrame) -> None:
    rows = values(table, "uniform", "loss")
    counts = rows[rows["loss"] == "dhel"].groupby("batch_size")["x"].count()
    assert counts.to_dict() == {2: 128, 32: 8}


def test_mean_gradients_of_mini_batches_are_those_of_the_population_for_kernels_only(table: pd.DataFrame) -> None:
    distance = values(table, "gradients", "distance").pivot_table(index="loss", columns="batch_size", values="value")
    assert (distance[4] < 1e-14).all()
    parts = distance[[2, 3]]
    is_kernel = parts.index.str.startswith("kcl")
    assert parts[is_kernel].max(axis=None) < 1e-12
    assert parts[~is_kernel].min(axis=None) > 1e-3


def test_a_population_is_minimised_at_every_batch_size_and_never_below_the_full_minimum(table: pd.DataFrame) -> None:
    rows = table[table["check"] == "population"]
    assert set(rows.loc[rows["metric"] == "pairs", "value"]) == {4, 5}
    minimum = rows[rows["metric"] == "full_minimum"].set_index("run")["value"]
    ends = rows[rows["metric"] == "full_loss"]
    assert ends.groupby("run")["x"].count().eq(3).all()
    assert (ends["value"] - ends["run"].map(minimum)).min() > -1e-12


def test_measures_of_a_law_come_with_their_exact_values(table: pd.DataFrame) -> None:
    rows = table[table["check"] == "uniformity_of_laws"]
    measured, exact = (
        rows[rows["metric"] == f"antipodes{kind}_wasserstein"].set_index("x")["value"] for kind in ("", "_exact")
    )
    assert measured.index.tolist() == exact.index.tolist() == [0, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    assert measured.to_numpy() == pytest.approx(exact.to_numpy(), abs=0.03)
    assert sorted(rows.loc[rows["metric"] == "sub_sphere_uniformity", "x"]) == [2, 4, 8]


def test_w1_of_minimisers_falls_with_their_number_and_holds_the_mean_cosines_part(table: pd.DataFrame) -> None:
    rows = table[table["check"] == "w1_of_minimisers"]
    both = rows.pivot_table(index=["loss", "batch_size"], columns="metric", values="value")
    larger = both.xs(16, level="batch_size")
    assert (larger["wasserstein"] < both.xs(8, level="batch_size")["wasserstein"]).all()
    mean_cosine = 1 / (both.index.get_level_values("batch_size") - 1)  # W1 is at least the difference of the means
    assert (both["wasserstein"] > 0.99 * mean_cosine).all()
