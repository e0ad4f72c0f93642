"""Choose settings by validation accuracy and average at them, for several figures and tables.

A loss is represented by its configuration with the highest validation accuracy (`validation_top1`, averaged over
seeds); test accuracy plays no part in the choice. Ties go to the smallest hyperparameters.
"""

import pandas as pd

from dhel_kcl.results.robustness import CONFIGURATION, join_runs, metric_rows, seed_means

PER_BATCH_SIZE = ["dataset", "loss", "batch_size"]


def chosen(results: pd.DataFrame, within: list[str]) -> pd.DataFrame:
    """Choose one configuration by validation accuracy for each value of the columns `within`."""
    validation = seed_means(metric_rows(results, "validation_top1"))
    best = validation.groupby(within, dropna=False)["mean"].idxmax()
    return validation.loc[best, CONFIGURATION].reset_index(drop=True)


def best_rows(results: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Take the rows of `metrics` at each loss's chosen hyperparameters and batch size."""
    return metric_rows(results.merge(chosen(results, ["dataset", "loss"]), on=CONFIGURATION), *metrics)


def best_of_each_loss(results: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Average `metrics` over seeds at each loss's chosen hyperparameters and batch size."""
    return seed_means(best_rows(results, *metrics), ["representation", "metric", "x"])


def with_mean_corruption(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the mean over corruptions to rows of `corrupted_top1`, as the corruption `mean` of each run and severity."""
    means = rows.groupby([*CONFIGURATION, "seed", "run", "x"], dropna=False)["value"].mean().reset_index()
    return pd.concat([rows, means.assign(corruption="mean")], ignore_index=True)


def by_batch_size(rows: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Summarise one metric against the batch size.

    Args:
        rows: rows of one metric; its representations are kept separate.
        results: the results that hold the validation accuracies.

    Returns:
        For each data set, representation, loss and batch size: the range (`low`, `high`) of the seed means over
        the hyperparameter settings, and `mean`, `std`, `n` of the setting that validation chooses (NaN if no setting
        has a validation accuracy).
    """
    means = seed_means(rows, ["representation"])
    keys = ["dataset", "representation", "loss", "batch_size"]
    band = means.groupby(keys).agg(
        low=("mean", "min"), high=("mean", "max"), settings=("mean", "size"), runs=("runs", join_runs)
    )
    line = means.merge(chosen(results, PER_BATCH_SIZE), on=CONFIGURATION).drop(columns="runs")
    points = band.reset_index().merge(line, on=keys, how="left")
    return points[[*(column for column in points if column != "runs"), "runs"]]


def not_measured(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """List the runs that lack a metric although they did not diverge: their result could not be measured."""
    reasons = metric_rows(results, "not_measured").drop_duplicates("run")
    diverged = metric_rows(results, "diverged").query("value == 1")["run"]
    explained = pd.concat([metric_rows(results, metric)["run"], diverged])
    return reasons[~reasons["run"].isin(explained)]


def runs_at_choice(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """List the runs at each loss's chosen hyperparameters, or all runs of the loss if nothing can be chosen.

    Args:
        results: the results with the metric, the validation accuracies and which runs `diverged`.
        metric: a scalar metric with one representation.

    Returns:
        A row for each run: its configuration, `seed` and `run`, the metric's `value` (NaN if it has none), whether it
        `diverged`, and how many seeds were `planned`, which is the number of seeds of the data set.
    """
    runs = results[[*CONFIGURATION, "seed", "run"]].drop_duplicates("run").sort_values("run", ignore_index=True)
    runs["planned"] = runs.groupby("dataset")["seed"].transform("nunique")
    ended = metric_rows(results, "diverged")
    runs["diverged"] = runs["run"].isin(ended.loc[ended["value"] == 1, "run"])
    runs["value"] = runs["run"].map(metric_rows(results, metric).set_index("run")["value"])
    choice = chosen(results, PER_BATCH_SIZE).assign(chosen=True)
    runs = runs.merge(choice, on=CONFIGURATION, how="left")
    decided = runs.groupby(PER_BATCH_SIZE)["chosen"].transform("any")
    return runs[runs["chosen"].notna() | ~decided].drop(columns="chosen").reset_index(drop=True)
