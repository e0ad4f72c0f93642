"""Robustness to hyperparameters and batch size.

Mean, standard deviation, best, worst and range of the linear top-1 test accuracy (in [0, 1]), after averaging over
seeds: over the hyperparameter settings at a fixed batch size (then averaged over batch sizes), over batch sizes at
fixed hyperparameters (then averaged over settings), and over both. The profile area is the area under a performance
profile (Dolan and More, 2002, with differences instead of ratios): the fraction of settings within tau of the best
accuracy of any loss (at the same batch size for "hyperparameters", otherwise on the data set), averaged over tau from 0
to 0.05; 1 if all are as good as the best, 0 if all are 0.05 or more below. In the profile, a setting all of whose runs
diverged is not within any tau; the other statistics leave diverged runs out. "Diverged runs" counts those of the loss,
so that a loss that trains only with some settings is not mistaken for robust. If runs could not be measured, another
column counts them. Nothing is selected, so these are test accuracies of the whole grid.
"""

import pandas as pd

from dhel_kcl.results.choice import not_measured
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print
from dhel_kcl.results.robustness import join_runs, metric_rows, robustness

METRICS = ("linear_top1", "diverged")
OPTIONAL_METRICS = ("not_measured",)
AXES = {"hyperparameters": "hyperparameters", "batch_size": "batch size", "both": "both"}
STATISTICS = {"mean": "Mean", "std": "Std", "best": "Best", "worst": "Worst", "range": "Range"}
STATISTICS["profile_area"] = "Profile area"


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the statistics per data set, loss and axis, and how many runs of the loss diverged."""
    keys = ["dataset", "loss"]
    ended = metric_rows(results, "diverged")
    diverged = ended[ended["value"] == 1]
    rows = ended[keys].drop_duplicates().merge(pd.DataFrame({"axis": list(AXES)}), how="cross")
    rows = rows.merge(robustness(results, "linear_top1"), on=[*keys, "axis"], how="outer")
    lost = diverged.groupby(keys)["run"].agg(diverged="size", lost=join_runs)
    unmeasured = not_measured(results, "linear_top1").groupby(keys)["run"]
    without = unmeasured.agg(not_measured="size", without=join_runs)
    counts = ["settings", "groups", "diverged", *(["not_measured"] if len(without) else [])]
    rows = rows.merge(lost, on=keys, how="left").merge(without, on=keys, how="left")
    rows = rows.fillna(dict.fromkeys([*counts, "profile_area"], 0))
    runs = [";".join(filter(None, parts)) for parts in rows[["runs", "lost", "without"]].fillna("").to_numpy()]
    rows = rows.drop(columns=["runs", "lost", "without"]).assign(runs=[join_runs(pd.Series(cell)) for cell in runs])
    rows = rows if len(without) else rows.drop(columns="not_measured")
    return rows.astype(dict.fromkeys(counts, int)).sort_values([*keys, "axis"], ignore_index=True)


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per data set, axis and loss, and a column per statistic."""
    table = for_print(points, {"dataset": DATASET_NAMES, "axis": AXES, "loss": LOSS_NAMES})
    for statistic in STATISTICS:
        table[statistic] = ["" if pd.isna(value) else f"{value:.3f}" for value in table[statistic]]
    counts = [column for column in ("settings", "diverged", "not_measured") if column in table]
    table[counts] = table[counts].astype(str)
    names = {"dataset": "Data set", "axis": "Over", "loss": "Loss", "settings": "Settings", **STATISTICS}
    names["diverged"] = "Diverged runs"
    if "not_measured" in counts:
        names["not_measured"] = "Runs not measured"
    return table[list(names)].rename(columns=names)
