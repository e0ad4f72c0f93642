"""Accuracy of linear evaluation and of nearest neighbours.

Test accuracy in [0, 1] on the frozen backbone's features: linear top-1 and top-5, and k nearest neighbours; mean ±
standard deviation over n seeds. "Augmented" is the public protocol, a linear classifier trained by SGD on augmented
images, where the experiment asks for it; the others are multinomial logistic regression on cached features. Each cell
uses the hyperparameters with the highest accuracy on the validation split
of the training set at that batch size; the CSV beside this table names them. An empty cell has no finished run.
"""

import pandas as pd
import style
from aggregate import PER_BATCH_SIZE, chosen

from dhel_kcl.robustness import CONFIGURATION, metric_rows, seed_means

AUGMENTED = {"augmented_top1": "augmented linear top-1", "augmented_top5": "augmented linear top-5"}
ACCURACIES = {"linear_top1": "linear top-1", "linear_top5": "linear top-5", **AUGMENTED, "knn_top1": "k-NN top-1"}
METRICS = ("linear_top1", "linear_top5", "knn_top1", "validation_top1")
OPTIONAL_METRICS = tuple(AUGMENTED)


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of the chosen hyperparameters, per data set, loss and batch size."""
    means = seed_means(metric_rows(results, *ACCURACIES), ["metric"])
    return means.merge(chosen(results, PER_BATCH_SIZE), on=CONFIGURATION)


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """A row per data set, accuracy and loss; a column per batch size."""
    cells = map(style.mean_and_spread, points["mean"], points["std"], points["n"])
    table = points.assign(cell=list(cells)).pivot_table(
        index=["dataset", "metric", "loss"], columns="batch_size", values="cell", aggfunc="first"
    )
    table = table.fillna("").rename(columns=lambda size: f"Batch size {size}").reset_index().rename_axis(columns=None)
    names = {"dataset": style.DATASET_NAMES, "metric": ACCURACIES, "loss": style.LOSS_NAMES}
    return style.for_print(table, names).rename(columns={"dataset": "Data set", "metric": "Accuracy", "loss": "Loss"})
