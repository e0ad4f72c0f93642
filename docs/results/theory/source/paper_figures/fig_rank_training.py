"""Effective rank along training.

Effective rank (RankMe) of the backbone's features h and of the projector's output z on a sample of unaugmented training
images, measured by the monitor as the encoder trains, against the epoch; averaged over seeds, with a light band of one
standard deviation (none for one seed). Each loss is shown at the hyperparameters and batch size with the highest
accuracy on the validation split of the training set.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.names import REPRESENTATION_NAMES

METRICS = ("validation_top1",)
OPTIONAL_METRICS = ("training_effective_rank",)
NOTHING = "The monitor was off (monitor.every_epochs), so no effective rank was measured along training."


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and band per data set, loss, representation and epoch."""
    table = best_of_each_loss(results, *OPTIONAL_METRICS).rename(columns={"x": "epoch"})
    table["low"], table["high"] = table["mean"] - table["std"], table["mean"] + table["std"]
    return table[[*(column for column in table if column != "runs"), "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation and one line and band per loss."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    for panel in panels:
        for look, curve in looks.losses_of(panel.points):
            looks.line_with_band(panel.axes, curve["epoch"], curve, look)
        looks.whole_ticks(panel.axes)
    looks.label(panels, "effective rank", "epoch")
    looks.legend(figure, looks.loss_handles(points))
    return figure
