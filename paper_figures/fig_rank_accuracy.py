"""Effective rank against linear accuracy.

Effective rank (RankMe) of the backbone's features h and of the projector's output z against the top-1 accuracy of
linear evaluation (in [0, 1]) on h: one point per loss, hyperparameter setting and batch size, averaged over seeds. No
correlation is given: points that share a loss or a setting are not independent, so it would have no honest interval.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.names import REPRESENTATION_NAMES
from dhel_kcl.results.robustness import CONFIGURATION, metric_rows, seed_means

METRICS = ("effective_rank", "linear_top1")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return both per configuration and representation, over runs with both."""
    accuracies = metric_rows(results, "linear_top1")
    ranks = metric_rows(results, "effective_rank")
    ranks = ranks[ranks["run"].isin(accuracies["run"])]
    accuracy = seed_means(accuracies[accuracies["run"].isin(ranks["run"])]).rename(columns={"mean": "accuracy"})
    rank = seed_means(ranks, ["representation"]).rename(columns={"mean": "effective_rank"})
    table = rank.drop(columns=["std", "runs"]).merge(accuracy.drop(columns=["std", "n"]), on=CONFIGURATION)
    return table[[*CONFIGURATION, "representation", "effective_rank", "accuracy", "n", "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation and one marker per configuration."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    looks.scatter(panels, "effective_rank", "accuracy")
    looks.label(panels, "linear top-1 accuracy", "effective rank")
    looks.legend(figure, looks.loss_handles(points, lines=False))
    return figure
