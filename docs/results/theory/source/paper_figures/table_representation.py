"""Geometry of the representations.

Alignment and uniformity (smaller is better), the Wasserstein distance of the pairwise similarities from the ideal law
on the sphere (smaller is more uniform), rank and effective rank, for the backbone's features h and the projector's
output z of dimension d; mean ± standard deviation over n seeds. Each loss is shown at the hyperparameters and batch
size with the highest accuracy on the validation split of the training set; the CSV beside this table names them.
"""

import pandas as pd

from dhel_kcl.paper.cells import mean_and_spread
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print

MEASURES = {
    "alignment": "Alignment",
    "uniformity": "Uniformity",
    "wasserstein_uniformity": "Wasserstein uniformity",
    "rank": "Rank",
    "effective_rank": "Effective rank",
}
METRICS = (*MEASURES, "embedding_dim", "validation_top1")
WHOLE_NUMBERS = {"rank", "effective_rank"}


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return seed means of every measure per data set, loss and representation."""
    return best_of_each_loss(results, *MEASURES, "embedding_dim").drop(columns="x")


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per data set, representation and loss, and a column per measure."""
    digits = [1 if metric in WHOLE_NUMBERS else 3 for metric in points["metric"]]
    cells = [
        f"{mean:g}" if metric == "embedding_dim" else mean_and_spread(mean, std, n, places)
        for metric, mean, std, n, places in zip(
            points["metric"], points["mean"], points["std"], points["n"], digits, strict=True
        )
    ]
    keys = ["dataset", "representation", "loss", "batch_size"]
    table = points.assign(cell=cells).pivot_table(index=keys, columns="metric", values="cell", aggfunc="first")
    table = table.reindex(columns=["embedding_dim", *MEASURES]).fillna("").reset_index()
    table["batch_size"] = table["batch_size"].astype(str)
    names = {"dataset": DATASET_NAMES, "representation": {"h": "h", "z": "z"}, "loss": LOSS_NAMES}
    return (
        for_print(table, names)
        .rename_axis(columns=None)
        .rename(
            columns={
                "dataset": "Data set",
                "representation": "Embedding",
                "loss": "Loss",
                "batch_size": "Batch size",
                "embedding_dim": "d",
                **MEASURES,
            }
        )
    )
