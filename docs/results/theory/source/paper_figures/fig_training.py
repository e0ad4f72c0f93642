"""Training loss with its alignment and energy parts.

Mean of the training loss over each epoch (solid) and its alignment (dashed) and energy (dotted) parts, whose sum it
is, averaged over seeds. The losses have different scales, so each has its own panel and vertical axis. Each loss is
shown at the hyperparameters and batch size with the highest accuracy on the validation split of the training set.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.names import LOSS_NAMES
from dhel_kcl.results.robustness import metric_rows, seed_means

METRICS = ("training_loss", "training_alignment", "training_energy", "validation_top1")
PARTS: dict[str, tuple[str, LineStyleType]] = {
    "training_loss": ("loss", "-"),
    "training_alignment": ("alignment", "--"),
    "training_energy": ("energy", ":"),
}


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of the loss and of its parts per data set, loss and epoch."""
    return _by_epoch(best_of_each_loss(results, *PARTS))


def live_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the same for all runs in `rows`, which are still training, so validation cannot choose among them yet."""
    return _by_epoch(seed_means(metric_rows(rows, *PARTS), ["representation", "metric", "x"]))


def _by_epoch(means: pd.DataFrame) -> pd.DataFrame:
    return means.drop(columns="representation").rename(columns={"x": "epoch"})


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per loss, one curve for the loss and one for each part."""
    figure, panels = looks.facets(points, by="loss", names=LOSS_NAMES, aspect=0.6)
    for panel in panels:
        for metric, (_, dash) in PARTS.items():
            curve = panel.points[panel.points["metric"] == metric]
            look = looks.LOSSES[panel.row]
            marker = "" if len(curve) > 1 else look.marker
            panel.axes.plot(curve["epoch"], curve["mean"], color=look.colour, linestyle=dash, marker=marker)
        looks.whole_ticks(panel.axes)
    looks.label(panels, "value", "epoch")
    looks.legend(figure, [Line2D([], [], color="black", linestyle=dash, label=name) for name, dash in PARTS.values()])
    return figure
