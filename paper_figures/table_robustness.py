"""Robustness to hyperparameters and batch size.

Mean, standard deviation, best, worst and range of the linear top-1 test accuracy (in [0, 1]), after averaging over
seeds: over the hyperparameter settings at a fixed batch size (then averaged over batch sizes), over batch sizes at
fixed hyperparameters (then averaged over settings), and over both. Nothing is selected, so these are test accuracies
of the whole grid. A diverged run has no accuracy and is left out of the statistics; the last column counts such runs
of the loss, so that a loss that only trains with some settings does not pass for robust.
"""

import pandas as pd
import style

from dhel_kcl.robustness import metric_rows, robustness

METRICS = ("linear_top1", "diverged")
AXES = {"hyperparameters": "hyperparameters", "batch_size": "batch size", "both": "both"}
STATISTICS = {"mean": "Mean", "std": "Std", "best": "Best", "worst": "Worst", "range": "Range"}


def points(results: pd.DataFrame) -> pd.DataFrame:
    """The statistics per data set, loss and axis, and how many runs of the loss diverged."""
    keys = ["dataset", "loss"]
    diverged = metric_rows(results, "diverged").groupby(keys)["value"].sum().rename("diverged")
    statistics = robustness(results, "linear_top1").merge(diverged, on=keys, how="left").fillna({"diverged": 0})
    return statistics[[*(column for column in statistics if column != "runs"), "runs"]]


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """A row per data set, axis and loss; a column per statistic."""
    table = style.for_print(points, {"dataset": style.DATASET_NAMES, "axis": AXES, "loss": style.LOSS_NAMES})
    for statistic in STATISTICS:
        table[statistic] = ["" if pd.isna(value) else f"{value:.3f}" for value in table[statistic]]
    for count in ("settings", "diverged"):
        table[count] = table[count].map("{:.0f}".format)
    names = {"dataset": "Data set", "axis": "Over", "loss": "Loss", "settings": "Settings", **STATISTICS}
    names["diverged"] = "Diverged runs"
    return table[list(names)].rename(columns=names)
