"""Accuracy of linear evaluation and of nearest neighbours.

Test accuracy in [0, 1] on the frozen backbone's features: linear top-1 and top-5, and k nearest neighbours; mean ±
standard deviation over n seeds. "Augmented" is the public protocol, a linear classifier trained by SGD on augmented
images, where the experiment asks for it; the others are multinomial logistic regression on cached features. Each cell
uses the hyperparameters with the highest accuracy on the validation split of the training set at that batch size,
averaged over seeds; the CSV beside this table names them. With five seeds or more, a 95% bootstrap interval of the mean
over seeds follows in brackets; with fewer seeds, such an interval would not cover the mean often enough. With one seed,
the brackets after "test" hold Wilson's 95% interval over test images, if their number was recorded. Seeds without an
accuracy are counted. If a loss diverged or could not be measured with every hyperparameter, its cell says so. An empty
cell has no run.
"""

import pandas as pd

from dhel_kcl.paper.cells import interval, mean_and_std
from dhel_kcl.results.choice import PER_BATCH_SIZE, chosen, runs_at_choice
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print
from dhel_kcl.results.robustness import CONFIGURATION, join_runs, metric_rows, seed_means
from dhel_kcl.results.statistics import accuracy_interval, bootstrap_interval

AUGMENTED = {"augmented_top1": "augmented linear top-1", "augmented_top5": "augmented linear top-5"}
ACCURACIES = {"linear_top1": "linear top-1", "linear_top5": "linear top-5", **AUGMENTED, "knn_top1": "k-NN top-1"}
METRICS = ("linear_top1", "linear_top5", "knn_top1", "validation_top1")
OPTIONAL_METRICS = (*AUGMENTED, "diverged", "test_images")
LOST = "linear_top1"


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies at the chosen hyperparameters with both intervals, and the outcome of the seeds."""
    rows = metric_rows(results, *ACCURACIES).merge(chosen(results, PER_BATCH_SIZE), on=CONFIGURATION)
    keys = [*CONFIGURATION, "metric"]
    over_seeds = rows.groupby(keys, dropna=False)["value"].agg(
        low=lambda seeds: bootstrap_interval(seeds).low, high=lambda seeds: bootstrap_interval(seeds).high
    )
    means = seed_means(rows, ["metric"]).drop(columns="runs").merge(over_seeds.reset_index(), on=keys)
    groups = runs_at_choice(results, LOST).groupby(PER_BATCH_SIZE)
    states = groups.agg(
        ran=("run", "size"), diverged=("diverged", "sum"), planned=("planned", "max"), runs=("run", join_runs)
    )
    table = means.merge(states.reset_index(), on=PER_BATCH_SIZE, how="outer")
    table = table.fillna({"metric": LOST, "n": 0}).astype({"n": int}).sort_values(keys, ignore_index=True)
    images = table["dataset"].map(metric_rows(results, "test_images").groupby("dataset")["value"].min())
    over_images = pd.DataFrame(map(accuracy_interval, table["mean"], images)).add_prefix("test_")
    return pd.concat([table.drop(columns="runs"), over_images, table["runs"]], axis=1)


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per data set, accuracy and loss, and a column per batch size."""
    table = points.assign(cell=[_cell(row) for _, row in points.iterrows()]).pivot_table(
        index=["dataset", "metric", "loss"], columns="batch_size", values="cell", aggfunc="first"
    )
    table = table.fillna("").rename(columns=lambda size: f"Batch size {size}").reset_index().rename_axis(columns=None)
    names = {"dataset": DATASET_NAMES, "metric": ACCURACIES, "loss": LOSS_NAMES}
    return for_print(table, names).rename(columns={"dataset": "Data set", "metric": "Accuracy", "loss": "Loss"})


def _cell(row: pd.Series) -> str:
    lost = {"diverged": row["diverged"], "not measured": row["ran"] - row["n"] - row["diverged"]}
    if not row["n"]:
        return ", ".join(f"{why} ({count} of {row['ran']} runs)" for why, count in lost.items() if count)
    on_images = interval(row["test_low"], row["test_high"]) if row["n"] == 1 else ""
    over_seeds = interval(row["low"], row["high"]) or (on_images and f"test {on_images}")
    others = "".join(f", {count} {why}" for why, count in lost.items() if count)
    seeds = f"n={row['n']}" if row["n"] == row["planned"] else f"{row['n']} of {row['planned']} seeds{others}"
    return " ".join(filter(None, [mean_and_std(row["mean"], row["std"]), over_seeds, f"({seeds})"]))
