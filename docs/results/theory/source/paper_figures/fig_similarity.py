"""Pairwise similarities against the ideal law on the sphere.

Density of the cosine similarity of two different test images, for the backbone's features h and the projector's output
z, averaged over seeds. The black curve is the law of the similarity of two independent uniform points on the sphere of
the same dimension d, that is, (x + 1) / 2 follows Beta((d - 1) / 2, (d - 1) / 2). Each loss is shown at the
hyperparameters and batch size with the highest accuracy on the validation split of the training set. The horizontal
range is cut where every density is below 1% of the panel's highest.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import beta

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import best_of_each_loss
from dhel_kcl.results.names import REPRESENTATION_NAMES
from dhel_kcl.results.robustness import join_runs

METRICS = ("similarity_density", "embedding_dim", "validation_top1")
IDEAL = "ideal"
IDEAL_GRID = np.linspace(-1, 1, 803)[1:-1]


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean density per data set, representation, loss and bin centre, then the ideal law as loss `ideal`."""
    measured = best_of_each_loss(results, "similarity_density", "embedding_dim")
    density = measured[measured["metric"] == "similarity_density"]
    dimensions = measured[measured["metric"] == "embedding_dim"]
    keys = ["dataset", "representation", "mean"]
    spheres = dimensions.groupby(keys)["runs"].agg(join_runs).reset_index().rename(columns={"mean": "dimension"})
    laws = spheres.merge(pd.DataFrame({"x": IDEAL_GRID}), how="cross").assign(loss=IDEAL)
    shape = (laws["dimension"] - 1) / 2
    laws["mean"] = beta.pdf((laws["x"] + 1) / 2, shape, shape) / 2
    return pd.concat([density, laws], ignore_index=True)[density.columns].drop(columns="metric")


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation, one curve per loss and one for the ideal law."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    for panel in panels:
        is_ideal = panel.points["loss"] == IDEAL
        ideal = panel.points[is_ideal]
        panel.axes.plot(ideal["x"], ideal["mean"], color="black", linewidth=0.9)
        for look, part in looks.losses_of(panel.points[~is_ideal]):
            panel.axes.plot(part["x"], part["mean"], color=look.colour, linestyle=look.dash)
        visible = panel.points.loc[panel.points["mean"] >= 0.01 * panel.points["mean"].max(), "x"]
        panel.axes.set_xlim(visible.min(), visible.max())
        panel.axes.set_ylim(bottom=0)
    looks.label(panels, "density", "cosine similarity")
    ideal_law = Line2D([], [], color="black", linewidth=0.9, label="ideal law")
    looks.legend(figure, [*looks.loss_handles(points[points["loss"] != IDEAL], markers=False), ideal_law])
    return figure
