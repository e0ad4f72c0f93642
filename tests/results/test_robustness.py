"""Robustness against numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from dhel_kcl.results.robustness import join_runs, metric_rows, robustness, seed_means

# accuracy[temperature][batch size], each over two seeds that differ by 0.02 around it
ACCURACY = {0.1: {32: 0.60, 256: 0.80}, 0.5: {32: 0.70, 256: 0.84}, 1.0: {32: 0.65, 256: 0.76}}


def results(accuracy: dict[float, dict[int, float]] = ACCURACY, seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    rows = [
        {
            "run": f"t{temperature}-b{batch_size}-s{seed}",
            "dataset": "cifar10",
            "loss": "dhel",
            "temperature": temperature,
            "t": math.nan,
            "c": math.nan,
            "gamma": math.nan,
            "batch_size": batch_size,
            "seed": seed,
            "metric": "linear_top1",
            "representation": "h",
            "corruption": "",
            "x": math.nan,
            "value": value + (0.01 if seed else -0.01) * (len(seeds) > 1),
        }
        for temperature, by_size in accuracy.items()
        for batch_size, value in by_size.items()
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def along(table: pd.DataFrame, axis: str) -> pd.Series:
    return table.set_index("axis").loc[axis]


def test_over_hyperparameters_statistics_are_within_batch_size_then_averaged() -> None:
    row = along(robustness(results()), "hyperparameters")
    assert (row["settings"], row["groups"]) == (3, 2)
    assert row["mean"] == pytest.approx((0.65 + 0.80) / 2)
    assert row["best"] == pytest.approx((0.70 + 0.84) / 2)
    assert row["worst"] == pytest.approx((0.60 + 0.76) / 2)
    assert row["range"] == pytest.approx((0.10 + 0.08) / 2)
    assert row["std"] == pytest.approx((0.05 + 0.04) / 2)


def test_over_batch_sizes_statistics_are_within_setting_then_averaged() -> None:
    row = along(robustness(results()), "batch_size")
    assert (row["settings"], row["groups"]) == (2, 3)
    assert row["range"] == pytest.approx((0.20 + 0.14 + 0.11) / 3)
    assert row["std"] == pytest.approx((0.20 + 0.14 + 0.11) / 3 / math.sqrt(2))


def test_over_both_statistics_are_over_all_settings() -> None:
    row = along(robustness(results()), "both")
    values = [value for by_size in ACCURACY.values() for value in by_size.values()]
    assert (row["settings"], row["groups"]) == (6, 1)
    assert row[["mean", "std", "best", "worst"]].tolist() == pytest.approx(
        [np.mean(values), np.std(values, ddof=1), 0.84, 0.60]
    )


def test_a_batch_size_with_one_setting_does_not_pass_for_one_without_spread() -> None:
    table = robustness(results({0.1: {32: 0.60, 256: 0.80}, 0.5: {256: 0.84}}))
    over_settings, over_sizes = along(table, "hyperparameters"), along(table, "batch_size")
    assert (over_settings["groups"], over_settings["range"]) == (1, pytest.approx(0.04))
    assert over_settings["std"] == pytest.approx(0.04 / math.sqrt(2))
    assert (over_sizes["groups"], over_sizes["range"]) == (1, pytest.approx(0.20))


def test_the_profile_area_integrates_the_share_of_settings_near_the_best() -> None:
    """Against the step function itself, summed over a fine grid of tau."""
    table = robustness(results())
    tau = (np.arange(50_000) + 0.5) * 1e-6
    values = np.array([value for by_size in ACCURACY.values() for value in by_size.values()])
    profile = (values[:, None] >= 0.84 - tau - 1e-12).mean(axis=0)
    assert along(table, "both")["profile_area"] == pytest.approx(profile.mean(), abs=1e-4)
    by_size = [(0.60, 0.70, 0.65), (0.80, 0.84, 0.76)]
    within = [np.mean([(np.array(column)[:, None] >= max(column) - tau - 1e-12).mean()]) for column in by_size]
    assert along(table, "hyperparameters")["profile_area"] == pytest.approx(np.mean(within), abs=1e-4)


def test_the_best_of_another_loss_is_the_reference_of_the_profile() -> None:
    better = results({0.5: {32: 0.72, 256: 0.88}}).assign(loss="dcl")
    table = robustness(pd.concat([results(), better])).set_index(["loss", "axis"])["profile_area"]
    assert table["dcl", "hyperparameters"] == pytest.approx(1)
    assert table["dhel", "hyperparameters"] == pytest.approx(np.mean([0, 0.6, 0, 0, 0.2, 0]))
    assert table["dhel", "both"] == pytest.approx(0.2 / 6)


def test_a_diverged_setting_counts_in_the_profile() -> None:
    table = results()
    table.loc[(table["temperature"] == 0.5) & (table["batch_size"] == 256), "value"] = math.nan
    assert along(robustness(table), "both")["profile_area"] == pytest.approx((1 + 0.2) / 6)  # 0.80, 0.76; lost; far


def test_runs_are_all_that_have_the_metric() -> None:
    table = results()
    assert set(robustness(table)["runs"]) == {";".join(sorted(table["run"]))}


def test_one_setting_has_no_spread() -> None:
    table = robustness(results({0.5: {256: 0.84}}, seeds=(0,)))
    assert table["std"].isna().all()
    assert table["range"].tolist() == [0, 0, 0]


def test_a_diverged_run_is_left_out_and_the_count_shows_it() -> None:
    table = results()
    table.loc[table["temperature"] == 0.1, "value"] = math.nan
    rows = robustness(table)
    assert along(rows, "hyperparameters")["settings"] == 2
    assert along(rows, "both")["worst"] == pytest.approx(0.65)
    assert "t0.1" not in rows["runs"].iloc[0]


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = results()
    pd.testing.assert_frame_equal(robustness(table), robustness(table.iloc[::-1]), check_exact=True)


def test_losses_with_other_hyperparameters_are_separate() -> None:
    kcl = results().assign(loss="kcl_gaussian", t=2.0, gamma=lambda rows: rows["temperature"], temperature=math.nan)
    table = robustness(pd.concat([results(), kcl]))
    left, right = (rows.drop(columns="loss").reset_index(drop=True) for _, rows in table.groupby("loss"))
    pd.testing.assert_frame_equal(left, right)


def test_a_metric_with_two_representations_is_refused() -> None:
    both = pd.concat([results(), results().assign(representation="z")])
    with pytest.raises(ValueError, match="several representations"):
        robustness(both)


def test_infinite_values_are_not_averaged() -> None:
    table = results()
    table.loc[0, "value"] = math.inf
    assert len(metric_rows(table, "linear_top1")) == len(table) - 1


def test_seed_means_count_and_spread() -> None:
    means = seed_means(metric_rows(results(), "linear_top1"))
    first = means.iloc[0]
    assert first["n"] == 2
    assert first["std"] == pytest.approx(0.02 / math.sqrt(2))
    assert first["runs"] == "t0.1-b32-s0;t0.1-b32-s1"


def test_values_that_the_keys_do_not_tell_apart_are_not_averaged() -> None:
    table = results().assign(metric="corrupted_top1", x=1.0)
    both = pd.concat([table.assign(corruption="contrast"), table.assign(corruption="jpeg", value=0.1)])
    with pytest.raises(ValueError, match="several values under the same dataset, loss"):
        seed_means(metric_rows(both, "corrupted_top1"), ["x"])
    means = seed_means(metric_rows(both, "corrupted_top1"), ["corruption", "x"])
    assert len(means) == 2 * len(seed_means(table))
    assert set(means.loc[means["corruption"] == "jpeg", "mean"]) == {0.1}


def test_join_runs_flattens_sorts_and_removes_repeats() -> None:
    assert join_runs(pd.Series(["b;a", "c", "a"])) == "a;b;c"
