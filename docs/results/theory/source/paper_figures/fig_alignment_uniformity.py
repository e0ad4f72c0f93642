"""Alignment and uniformity of the embeddings.

Alignment (mean squared distance of the two views of an image) against uniformity (logarithm of the mean gaussian
potential of different images), on l2-normalised backbone features h and projector outputs z; both are better when
smaller, so the best corner is the lower left. One point per hyperparameter setting and batch size, averaged over
seeds. The black ring marks each loss's setting and batch size with the highest accuracy on the validation split of the
training set.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import chosen
from dhel_kcl.results.names import REPRESENTATION_NAMES
from dhel_kcl.results.robustness import CONFIGURATION, join_runs, metric_rows, seed_means

METRICS = ("alignment", "uniformity", "validation_top1")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return both measures per configuration and representation; `chosen` marks the ring."""
    keys = [*CONFIGURATION, "representation"]
    alignment, uniformity = (
        seed_means(metric_rows(results, metric), ["representation"])[[*keys, "mean", "n", "runs"]].rename(
            columns={"mean": metric}
        )
        for metric in ("alignment", "uniformity")
    )
    both = alignment.merge(uniformity.drop(columns="n"), on=keys, suffixes=("", "_uniformity"))
    both = both.merge(chosen(results, ["dataset", "loss"]).assign(chosen=True), on=CONFIGURATION, how="left")
    both["chosen"] = both["chosen"].notna()
    both["runs"] = [join_runs(pd.Series(cells)) for cells in zip(both["runs"], both["runs_uniformity"], strict=True)]
    return both[[*keys, "alignment", "uniformity", "n", "chosen", "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation and one marker per configuration."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    looks.scatter(panels, "uniformity", "alignment")
    for panel in panels:
        best = panel.points[panel.points["chosen"]]
        panel.axes.scatter(
            best["uniformity"], best["alignment"], s=55, facecolors="none", edgecolors="black", linewidths=0.8, zorder=3
        )
    looks.label(panels, "alignment", "uniformity")
    best_handle = Line2D(
        [], [], linestyle="", marker="o", color="black", fillstyle="none", label="chosen", markersize=7
    )
    looks.legend(figure, [*looks.loss_handles(points, lines=False), best_handle])
    return figure
