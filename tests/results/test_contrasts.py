"""Contrasts against statsmodels' own tests, a bootstrap over images, and cells worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from simulated_study import CENTRES, grid, trained, weights
from statsmodels.formula.api import ols

from dhel_kcl.results.contrasts import Estimate, Runs
from dhel_kcl.results.robustness import HYPERPARAMETERS

SEEDS = 4


def study(**changes: object) -> Runs:
    table = grid(SEEDS)
    values, validation = trained(table, 0.01, np.random.default_rng(0), 1)
    return Runs(table.assign(value=values[:, 0], validation=validation[:, 0], **changes), centres=CENTRES)


@pytest.mark.parametrize(
    "key", [("accuracy", "dhel", "dcl"), ("both", "kcl_log", "ntxent"), ("no_batch_size", "kcl_log", "")]
)
def test_a_contrast_is_what_statsmodels_finds_in_a_regression_on_cells_and_seeds(key: tuple[str, str, str]) -> None:
    runs = study()
    of_runs = weights(runs)[key]
    estimate = runs.estimate(of_runs)
    table = runs.table.assign(
        cell=runs.table[["loss", *HYPERPARAMETERS, "level"]].fillna(-1).astype(str).agg("|".join, axis=1)
    )
    fit = ols("value ~ 0 + C(cell) + C(seed)", table).fit()
    of_cells = pd.Series(of_runs).groupby(table["cell"].reindex([*of_runs]).to_numpy()).sum()
    vector = [of_cells.get(name.removeprefix("C(cell)[").removesuffix("]"), 0.0) for name in fit.params.index]
    test = fit.t_test(vector)
    assert estimate.value == pytest.approx(float(test.effect.item()))
    assert estimate.standard_error == pytest.approx(float(test.sd.item()))
    assert estimate.degrees == fit.df_resid


def test_every_contrast_cancels_what_a_seed_does_to_all_runs() -> None:
    runs = study()
    for of_runs in weights(runs).values():
        by_seed = pd.Series(of_runs).groupby(runs.table["seed"].reindex([*of_runs]).to_numpy()).sum()
        assert by_seed.abs().max() < 1e-12


def test_the_variance_over_images_is_that_of_a_bootstrap_over_images() -> None:
    runs = study()
    random = np.random.default_rng(1)
    difficulty = random.random(400)
    runs.hits = random.random((len(runs.table), 400)) * 0.4 + difficulty < 0.9
    runs.images = 400
    of_runs = weights(runs)["accuracy", "dhel", "dcl"]
    weight = np.array([of_runs.get(run, 0.0) for run in range(len(runs.table))])
    drawn = stats.bootstrap(
        (weight @ runs.hits,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    )
    assert math.sqrt(runs.estimate(of_runs).images) == pytest.approx(drawn.standard_error, rel=0.05)


def test_without_hits_the_bound_is_above_the_variance_that_shared_difficulty_gives() -> None:
    runs = study()
    random = np.random.default_rng(3)
    own = random.random(1000)  # images that the networks of one loss fail on together
    difficulty = {loss: 0.5 * random.random(1000) + 0.5 * own for loss in runs.cells}
    runs.hits = np.array([difficulty[loss] + 0.1 * random.random(1000) < 0.7 for loss in runs.table["loss"]])
    runs.values, runs.images = runs.hits.mean(axis=1), 1000
    known = {key: runs.estimate(of_runs).images for key, of_runs in weights(runs).items()}
    runs.hits = None
    for key, of_runs in weights(runs).items():
        assert runs.estimate(of_runs).images > known[key], key


def test_satterthwaites_degrees_lie_between_those_of_the_seeds_and_infinity() -> None:
    assert Estimate(0.0, 1.0, 6.0).total_degrees == 6
    assert Estimate(0.0, 1.0, 6.0, 1.0).total_degrees == 24
    assert Estimate(0.0, 1.0, 6.0, 100.0).total_degrees > 10_000


def test_a_run_without_a_value_takes_its_cell_out_and_only_that() -> None:
    runs = study()
    cell = (runs.table["loss"] == "dhel") & (runs.table["temperature"] == 0.3) & (runs.table["level"] == 8)
    lost = runs.table[cell].index[0]
    values = runs.table["value"].mask(runs.table.index == lost)
    smaller = Runs(runs.table.assign(value=values), centres=CENTRES)
    before = [*runs.shared("dhel", "dcl", 0)]
    after = [*smaller.shared("dhel", "dcl", 0)]
    assert [cell for cell in before if cell not in after] == [c for c in before if c.rank == 0 and c.level == 0]


def test_strengths_are_matched_by_rank_around_the_centre_and_other_hyperparameters_are_held() -> None:
    rows = [{"loss": "kcl_log", "t": t, "gamma": gamma} for t in (2.0, 8.0) for gamma in (4.0, 8.0, 16.0)] + [
        {"loss": "dcl", "temperature": temperature} for temperature in (0.1, 0.3, 0.5, 1.0)
    ]
    table = pd.DataFrame(rows).reindex(columns=["loss", *HYPERPARAMETERS]).assign(level=8, seed=0, value=0.5)
    runs = Runs(table.assign(validation=table["t"].eq(8) * 0.1, diverged=False), centres={"dcl": 0.3, "kcl_log": 8.0})
    cells = [*runs.shared("kcl_log", "dcl", 0)]
    assert [cell.rank for cell in cells] == [-1, 0, 1]
    assert table.loc[[cell.ours for cell in cells], "gamma"].tolist() == [4, 8, 16]
    assert len(set(table.loc[[cell.ours for cell in cells], "t"])) == 1
    assert table.loc[[cell.theirs for cell in cells], "temperature"].tolist() == [0.1, 0.3, 0.5]


def test_a_seed_takes_no_part_in_the_choice_of_its_own_setting() -> None:
    table = grid(3)
    best = (table["loss"] == "dhel") & (table["temperature"] == 0.2)
    lucky = (table["loss"] == "dhel") & (table["temperature"] == 0.3) & (table["seed"] == 0)
    validation = table["validation"] + 0.01 * best + 0.05 * lucky
    runs = Runs(table.assign(validation=validation))
    chosen = [runs.cells["dhel"].settings[runs.centre("dhel", seed) or 0][0] for seed in range(3)]
    assert chosen == [0.2, 0.3, 0.3]


def test_cells_that_diverged_at_every_seed_have_no_spread_to_pool_and_others_only_for_their_own_contrasts() -> None:
    runs = study()
    table = runs.table
    cell = (table["loss"] == "infonce") & (table["temperature"] == 0.1) & (table["level"] == 8)
    for lost in (cell, cell & (table["seed"] == 0)):
        values = table["value"].mask(lost, 0.1)
        changed = Runs(table.assign(value=values, diverged=lost), centres=CENTRES)
        elsewhere, here = (
            changed.estimate(weights(changed)["hyperparameters", "dhel", baseline]) for baseline in ("dcl", "infonce")
        )
        assert elsewhere.seeds < 2 * runs.estimate(weights(runs)["hyperparameters", "dhel", "dcl"]).seeds
        assert elsewhere.degrees == (len(table) // SEEDS - 2) * (SEEDS - 1)
        partly = not lost.equals(cell)
        assert (here.seeds > 10 * elsewhere.seeds) == partly


def test_a_contrast_of_a_partly_diverged_cell_has_the_variance_of_a_paired_t_test() -> None:
    runs = study()
    lost = (runs.table["loss"] == "dhel") & (runs.table["temperature"] == 0.3) & (runs.table["seed"] == 0)
    lost &= runs.table["level"] == 8
    changed = Runs(runs.table.assign(value=runs.table["value"].mask(lost, 0.1), diverged=lost), centres=CENTRES)
    of_runs = weights(changed)["accuracy", "dhel", "dcl"]
    found = changed.estimate(of_runs)
    weighted = pd.Series(of_runs) * changed.table["value"].reindex([*of_runs])
    of_seeds = SEEDS * weighted.groupby(changed.table["seed"].reindex(weighted.index)).sum()
    paired = stats.ttest_1samp(of_seeds, 0)
    assert (found.value, found.degrees) == (pytest.approx(of_seeds.mean()), paired.df)
    assert found.value / found.standard_error == pytest.approx(paired.statistic)


def test_one_seed_has_an_estimate_and_no_variance() -> None:
    runs = Runs(grid(1), centres=CENTRES)
    estimate = runs.estimate(weights(runs)["accuracy", "dhel", "dcl"])
    assert estimate.value == pytest.approx(0)
    assert math.isnan(estimate.standard_error)
