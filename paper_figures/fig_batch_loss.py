"""Loss of trained networks against the size of mini-batches.

The loss that a run was trained with, on the projector's outputs for two augmented views of each test image, averaged
over random mini-batches of M pairs. It is taken less its growth, which turns every sum inside a logarithm into a mean
and is 0 for KCL, and less its own value at the largest M. A loss whose expectation does not depend on M stays at 0; the
theory predicts this for KCL at every M, and for the other losses only as a limit. The light band is two standard errors
of each mean over mini-batches, at the largest M too. Each loss is shown at the hyperparameters and pretraining batch
size with the highest accuracy on the validation split of the training set, averaged over seeds, all of which see the
same mini-batches. A loss whose growth is not known is left out.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.robustness import CONFIGURATION

METRICS = ("validation_top1",)
OPTIONAL_METRICS = ("mini_batch_loss", "mini_batch_loss_standard_error", "mini_batch_loss_growth")
NOTHING = "No run has the loss of mini-batches of its test images, or the growth of the losses is not known."


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean loss, its growth and the distance of their difference from that at the largest M."""
    means = best_of_each_loss(results, *OPTIONAL_METRICS).rename(columns={"x": "pairs"})
    points, errors, growths = (means[means["metric"] == metric] for metric in OPTIONAL_METRICS)
    # Seeds see the same mini-batches, so their errors may be alike: the mean of the errors is an upper bound.
    for name, column in {"standard_error": errors, "growth": growths}.items():
        column = column.rename(columns={"mean": name})[[*CONFIGURATION, "pairs", name]]
        points = points.merge(column, on=[*CONFIGURATION, "pairs"])
    rest = points["mean"] - points["growth"]
    points["distance"] = rest - rest.groupby([points["dataset"], points["loss"]]).transform("last")
    shown = ["pairs", "mean", "standard_error", "growth", "distance", "n", "runs"]
    return points[[*CONFIGURATION, *shown]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a panel per data set with one curve and band per loss."""
    band = 2 * points["standard_error"]
    points = points.assign(mean=points["distance"], low=points["distance"] - band, high=points["distance"] + band)
    figure, panels = looks.facets(points)
    for panel in panels:
        panel.axes.axhline(0, color="black", linestyle="--", linewidth=0.8)
        for look, curve in looks.losses_of(panel.points):
            looks.line_with_band(panel.axes, curve["pairs"], curve, look)
        looks.log_ticks(panel.axes, panel.points["pairs"], base=2)
    looks.label(panels, "loss less growth,\nfrom its value at the largest $M$", "pairs in a mini-batch, $M$")
    looks.legend(figure, looks.loss_handles(points))
    return figure
