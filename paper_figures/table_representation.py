"""Geometry of the representations.

Alignment and uniformity of the two views of each test image (smaller is better). Of the unaugmented test images, with
unit rows: uniformity, the Wasserstein distance of the pairwise similarities from the ideal law on the sphere (smaller
is more uniform), rank (directions whose variance is above 1e-5 of the largest, or above 1e-5 in results without a
centred effective rank), effective rank, the same after the mean is subtracted, and the participation ratio of the
variances. RankMe is the effective rank of raw rows of that many training images. All are for the backbone's features h
and the projector's output z of dimension d, except the Wasserstein distance and RankMe, which are for z; mean ±
standard deviation over n seeds. Each loss is shown at the hyperparameters and batch size with the highest accuracy on
the validation split of the training set; the CSV beside this table names them.
"""

import pandas as pd

from dhel_kcl.paper.cells import mean_and_spread
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print

MEASURES = {
    "alignment": "Alignment",
    "uniformity_of_views": "Uniformity of views",
    "uniformity": "Uniformity",
    "wasserstein_uniformity": "Wasserstein uniformity",
    "rank": "Rank",
    "effective_rank": "Effective rank",
    "centred_effective_rank": "Centred effective rank",
    "participation_ratio": "Participation ratio",
    "rankme": "RankMe",
    "rankme_images": "RankMe's images",
}
OPTIONAL_METRICS = (
    *("uniformity_of_views", "wasserstein_uniformity", "centred_effective_rank", "participation_ratio"),
    *("rankme", "rankme_images"),
)
METRICS = (*(metric for metric in MEASURES if metric not in OPTIONAL_METRICS), "embedding_dim", "validation_top1")
RANKS = {"rank", "effective_rank", "centred_effective_rank", "participation_ratio", "rankme"}
COUNTS = {"embedding_dim", "rankme_images"}


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return seed means of every measure per data set, loss and representation."""
    return best_of_each_loss(results, *MEASURES, "embedding_dim").drop(columns="x")


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per data set, representation and loss, and a column per measure."""
    digits = [1 if metric in RANKS else 3 for metric in points["metric"]]
    cells = [
        f"{mean:.0f}" if metric in COUNTS else mean_and_spread(mean, std, n, places)
        for metric, mean, std, n, places in zip(
            points["metric"], points["mean"], points["std"], points["n"], digits, strict=True
        )
    ]
    keys = ["dataset", "representation", "loss", "batch_size"]
    table = points.assign(cell=cells).pivot_table(index=keys, columns="metric", values="cell", aggfunc="first")
    shown = [metric for metric in MEASURES if metric in METRICS or metric in table]
    table = table.reindex(columns=["embedding_dim", *shown]).fillna("").reset_index()
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
