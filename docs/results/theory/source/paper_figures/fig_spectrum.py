"""Singular-value spectrum of the embeddings.

Base-10 logarithm of the singular values of the covariance of the embeddings, sorted, for the backbone's features h and
the projector's output z (the plot of dimensional collapse of Jing et al., 2022). The values are averaged over seeds
before the logarithm; a mean that is not positive is left out. The light band is one standard deviation over seeds
around the mean (none for one seed, nor where it reaches 0). Each loss is shown at the hyperparameters and batch size
with the highest accuracy on the validation split of the training set.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.names import REPRESENTATION_NAMES
from dhel_kcl.results.robustness import CONFIGURATION

METRICS = ("singular_value", "validation_top1")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the logarithm of the mean singular value per data set, representation, loss and index."""
    spectrum = best_of_each_loss(results, "singular_value").query("mean > 0").reset_index(drop=True)
    spectrum["log10_mean"] = np.log10(spectrum["mean"])
    keys = [*CONFIGURATION, "representation"]
    return spectrum.rename(columns={"x": "index"})[[*keys, "index", "log10_mean", "mean", "std", "n", "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation and one curve per loss."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    for panel in panels:
        for look, part in looks.losses_of(panel.points):
            low, high = (np.log10((part["mean"] + sign * part["std"]).where(lambda v: v > 0)) for sign in (-1, 1))
            panel.axes.fill_between(part["index"], low, high, color=look.colour, alpha=0.15, linewidth=0)
            panel.axes.plot(part["index"], part["log10_mean"], color=look.colour, linestyle=look.dash)
        panel.axes.set_xlim(1, max(2, panel.points["index"].max()))
        looks.whole_ticks(panel.axes)
    looks.label(panels, r"$\log_{10}$ singular value", "index, from the largest")
    looks.legend(figure, looks.loss_handles(points, markers=False))
    return figure
