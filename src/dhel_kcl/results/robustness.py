"""Measure how much a loss's accuracy depends on its hyperparameters and on the batch size.

The input is the tidy results. A hyperparameter setting is the tuple of all `HYPERPARAMETERS`, NaN for those that the
loss does not have. Seeds are averaged before anything is compared.
"""

import pandas as pd

from dhel_kcl import declarations

HYPERPARAMETERS = declarations.hyperparameters()
CONFIGURATION = ["dataset", "loss", *HYPERPARAMETERS, "batch_size"]

PROFILE_BOUND = 0.05
"""Distance from the best accuracy from which a setting contributes nothing to `profile_area`."""

_HELD_FIXED = {"hyperparameters": ["batch_size"], "batch_size": HYPERPARAMETERS, "both": []}


def metric_rows(results: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Return the rows of `metrics` with a finite value, in an order that does not depend on that of `results`."""
    finite = results["value"].notna() & (results["value"].abs() != float("inf"))
    rows = results[results["metric"].isin(metrics) & finite]
    return rows.sort_values(["metric", "representation", "corruption", "run", "x"], ignore_index=True)


def join_runs(runs: pd.Series) -> str:
    """Join the sorted, distinct run ids of a column whose cells hold one or more ids joined by ``;``."""
    return ";".join(sorted({run for cell in runs for run in str(cell).split(";")}))


def seed_means(rows: pd.DataFrame, extra_keys: list[str] | None = None) -> pd.DataFrame:
    """Average over seeds.

    Args:
        rows: tidy rows of one metric and representation, unless `extra_keys` distinguishes them.
        extra_keys: columns that identify a value, besides data set, loss, hyperparameters and batch size.

    Returns:
        One row per key, sorted: the keys, `mean`, `std` (ddof 1, NaN for one seed), `n` seeds, `runs`.

    Raises:
        ValueError: a run has several values under one key, which averaging would mix.
    """
    keys = [*CONFIGURATION, *(extra_keys or [])]
    if rows.duplicated([*keys, "run"]).any():
        raise ValueError(f"runs have several values under the same {', '.join(keys)}; add columns to extra_keys")
    groups = rows.groupby(keys, dropna=False)
    return groups.agg(
        mean=("value", "mean"), std=("value", "std"), n=("value", "count"), runs=("run", join_runs)
    ).reset_index()


def robustness(results: pd.DataFrame, metric: str = "linear_top1") -> pd.DataFrame:
    """Compute the spread of a metric over hyperparameters, over batch sizes, and over both.

    Along the axis `hyperparameters` the statistics are taken over settings within each batch size and then
    averaged over batch sizes; along `batch_size`, over batch sizes within each setting and then averaged over
    settings; along `both`, over all combinations. A run without the metric (because it diverged) is left out;
    `settings` shows how many settings remain.

    Args:
        results: the tidy results.
        metric: a scalar metric for which larger is better, with one representation.

    Returns:
        One row per data set, loss and axis: `settings` (distinct ones along the axis), `groups` (how many sets
        of statistics were averaged; a batch size with one setting, or a setting with one batch size, is left out
        unless this is true of all of the loss's), `mean`, `std` (ddof 1, NaN where no group has two settings), `best`,
        `worst`, `range`, `profile_area` and `runs`.

        `profile_area` is the area under the performance profile: the fraction of settings within tau of the best value
        of any loss (along `hyperparameters`, at that batch size; otherwise, on that data set), averaged over tau from 0
        to `PROFILE_BOUND`. It is 1 if every setting is as good as the best and 0 if every setting is `PROFILE_BOUND` or
        more below it. A setting in the table without a value (all its runs diverged) is not within any tau. Profiles
        are those of E. D. Dolan and J. J. More, Benchmarking Optimization Software with Performance Profiles,
        Mathematical Programming 91, 2002, with differences in place of ratios.

    Raises:
        ValueError: the metric has several representations, which averaging would mix.
    """
    rows = metric_rows(results, metric)
    if len(rows["representation"].unique()) > 1:
        raise ValueError(f"{metric} has several representations; keep the rows of one of them")
    means = seed_means(rows).drop(columns=["std", "n"])
    grid = results[CONFIGURATION].drop_duplicates().merge(means, on=CONFIGURATION, how="left")
    return pd.concat([_along(axis, means, grid) for axis in _HELD_FIXED]).sort_values(
        ["dataset", "loss"], kind="stable", ignore_index=True
    )


def _along(axis: str, means: pd.DataFrame, grid: pd.DataFrame) -> pd.DataFrame:
    keys = ["dataset", "loss"]
    group = [*keys, *_HELD_FIXED[axis]]
    # A group of one has no spread, and would be mistaken for a range of 0.
    several = means.groupby(group, dropna=False)["mean"].transform("size") > 1
    means = means[several | ~several.groupby([means[key] for key in keys]).transform("any")]
    within = means.groupby(group, dropna=False)["mean"]
    groups = within.agg(mean="mean", std="std", best="max", worst="min").reset_index()
    groups["range"] = groups["best"] - groups["worst"]
    statistics = groups.groupby(keys)[["mean", "std", "best", "worst", "range"]].mean()
    varied = [key for key in [*HYPERPARAMETERS, "batch_size"] if key not in _HELD_FIXED[axis]]
    statistics.insert(0, "settings", means.drop_duplicates([*keys, *varied]).groupby(keys).size())
    statistics.insert(1, "groups", groups.groupby(keys).size())
    rivals = ["dataset", "batch_size"] if axis == "hyperparameters" else ["dataset"]
    gaps = grid.groupby(rivals)["mean"].transform("max") - grid["mean"]
    # The share of the tau from 0 to PROFILE_BOUND that a setting is within.
    shares = grid.assign(share=(1 - gaps / PROFILE_BOUND).clip(lower=0).fillna(0))
    statistics["profile_area"] = shares.groupby(group, dropna=False)["share"].mean().groupby(keys).mean()
    statistics["runs"] = means.groupby(keys)["runs"].agg(join_runs)
    statistics = statistics.reset_index()
    statistics.insert(2, "axis", axis)
    return statistics
