"""Accuracy of all settings, sorted.

Top-1 accuracy of linear evaluation (in [0, 1]) on the frozen backbone, averaged over seeds, of every hyperparameter
setting and batch size of a loss, from the best to the worst, against the fraction of the settings that are as good or
better. A flat, high curve is a robust loss. The light band is one standard deviation over seeds (none for one seed).
Settings all of whose runs diverged come last and have no accuracy, so the curve ends early. Nothing is selected, so
these are test accuracies of the whole grid.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.robustness import CONFIGURATION, metric_rows, seed_means

METRICS = ("linear_top1",)
OPTIONAL_METRICS = ("diverged",)
CURVE = ["dataset", "loss"]


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy per data set, loss and rank; `fraction` is rank over settings, diverged ones included."""
    settings = results[CONFIGURATION].drop_duplicates().groupby(CURVE).size().rename("settings").reset_index()
    means = seed_means(metric_rows(results, "linear_top1"))
    table = means.sort_values([*CURVE, "mean"], ascending=[True, True, False], kind="stable").merge(settings, on=CURVE)
    table["rank"] = table.groupby(CURVE).cumcount() + 1
    table["fraction"] = table["rank"] / table["settings"]
    table["low"], table["high"] = table["mean"] - table["std"], table["mean"] + table["std"]
    return table[[*(column for column in table if column != "runs"), "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a panel per data set with one curve and band per loss."""
    figure, panels = looks.facets(points)
    for panel in panels:
        for look, curve in looks.losses_of(panel.points):
            looks.line_with_band(panel.axes, curve["fraction"], curve, look)
        panel.axes.set_xlim(0, 1.04)
    looks.label(panels, "linear top-1 accuracy", "fraction of settings")
    looks.legend(figure, looks.loss_handles(points))
    return figure
