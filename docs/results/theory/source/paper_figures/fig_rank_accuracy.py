"""Effective rank against linear accuracy.

Effective rank (RankMe) of the backbone's features h and of the projector's output z against the top-1 accuracy of
linear evaluation (in [0, 1]) on h: one point per loss, hyperparameter setting and batch size, averaged over seeds.
Spearman's rank correlation over the points of a panel is shown above it; points that share a loss or a setting are not
independent, so no p-value is given.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from dhel_kcl.paper import looks
from dhel_kcl.results.names import REPRESENTATION_NAMES
from dhel_kcl.results.robustness import CONFIGURATION, metric_rows, seed_means

METRICS = ("effective_rank", "linear_top1")
PANEL = ["dataset", "representation"]


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return both per configuration and representation, over runs with both; `spearman` is that of the panel."""
    accuracies = metric_rows(results, "linear_top1")
    ranks = metric_rows(results, "effective_rank")
    ranks = ranks[ranks["run"].isin(accuracies["run"])]
    accuracy = seed_means(accuracies[accuracies["run"].isin(ranks["run"])]).rename(columns={"mean": "accuracy"})
    rank = seed_means(ranks, ["representation"]).rename(columns={"mean": "effective_rank"})
    table = rank.drop(columns=["std", "runs"]).merge(accuracy.drop(columns=["std", "n"]), on=CONFIGURATION)
    varied = (group for group in table.groupby(PANEL) if group[1][["effective_rank", "accuracy"]].nunique().min() > 1)
    correlations = {key: float(spearmanr(group["effective_rank"], group["accuracy"])[0]) for key, group in varied}
    table["spearman"] = [
        correlations.get((d, r)) for d, r in zip(table["dataset"], table["representation"], strict=True)
    ]
    return table[[*CONFIGURATION, "representation", "effective_rank", "accuracy", "n", "spearman", "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation and one marker per configuration."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    looks.scatter(panels, "effective_rank", "accuracy")
    for panel in panels:
        rho = panel.points["spearman"].iloc[0]
        correlation = "one value" if pd.isna(rho) else rf"$\rho = {rho:.2f}$"
        panel.axes.set_title(", ".join(filter(None, [panel.axes.get_title(), correlation])))
    looks.label(panels, "linear top-1 accuracy", "effective rank")
    looks.legend(figure, looks.loss_handles(points, lines=False))
    return figure
