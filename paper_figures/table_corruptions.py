"""Robustness of linear accuracy to corruptions of the test images.

Top-1 accuracy (in [0, 1]) of linear evaluation on clean test images, on test images with each of five corruptions of
CIFAR-10-C (Hendrycks & Dietterich, 2019), averaged over its five severities, and their mean; the relative drop is the
share of the clean accuracy that this mean loses. Mean ± standard deviation over n seeds. Each loss is shown at the
hyperparameters and batch size with the highest accuracy on the validation split of the training set; the CSV beside
this table names them.
"""

import pandas as pd

from dhel_kcl.paper.cells import mean_and_spread
from dhel_kcl.results.choice import best_rows, with_mean_corruption
from dhel_kcl.results.names import CORRUPTION_NAMES, DATASET_NAMES, LOSS_NAMES, corruption_names, for_print
from dhel_kcl.results.robustness import CONFIGURATION, seed_means

METRICS = ("validation_top1",)
OPTIONAL_METRICS = ("corrupted_top1",)
NOTHING = "No run was evaluated on corrupted images (evaluation.corruptions)."
MEASURES = ("clean", *CORRUPTION_NAMES, "relative_drop")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return seed means of every measure per data set and loss."""
    rows = with_mean_corruption(best_rows(results, "corrupted_top1"))
    run = [*CONFIGURATION, "run"]
    over_severities = rows[rows["x"] > 0].groupby([*run, "corruption"], dropna=False)["value"].mean().reset_index()
    mean = over_severities[over_severities["corruption"] == "mean"]
    clean = rows[(rows["x"] == 0) & (rows["corruption"] == "mean")][[*run, "value"]]
    drop = mean.merge(clean, on=run, suffixes=("", "_clean"))
    drop["value"] = 1 - drop["value"] / drop["value_clean"]
    parts = [clean.assign(measure="clean"), over_severities.rename(columns={"corruption": "measure"})]
    measures = pd.concat([*parts, drop.assign(measure="relative_drop")])
    return seed_means(measures, ["measure"])


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per data set and loss, and a column per measure."""
    cells = map(mean_and_spread, points["mean"], points["std"], points["n"])
    keys = ["dataset", "loss", "batch_size"]
    table = points.assign(cell=list(cells)).pivot_table(index=keys, columns="measure", values="cell", aggfunc="first")
    table = table.reindex(columns=list(MEASURES)).reset_index().rename_axis(columns=None)
    table["batch_size"] = table["batch_size"].astype(str)
    names = {"dataset": "Data set", "loss": "Loss", "batch_size": "Batch size"}
    names |= {"clean": "Clean", "relative_drop": "Relative drop"}
    names |= corruption_names(points["measure"], points["dataset"])
    return for_print(table, {"dataset": DATASET_NAMES, "loss": LOSS_NAMES}).rename(columns=names)
