"""Effective rank against the batch size.

Effective rank (RankMe: the exponential of the entropy of the normalised singular values of the embedding matrix) of
the backbone's features h and of the projector's output z, averaged over seeds, against the pretraining batch size.
The line shows, at each batch size, the hyperparameters with the highest accuracy on the validation split of the
training set, with an error bar of one standard deviation over seeds (none for one seed). The thick light bar is the
range of the seed means over all hyperparameters of the grid. The losses stand side by side at each batch size. The
effective rank is at most the dimension d named above each panel.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import by_batch_size
from dhel_kcl.results.names import REPRESENTATION_NAMES
from dhel_kcl.results.robustness import metric_rows

METRICS = ("effective_rank", "embedding_dim", "validation_top1")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the effective rank at the chosen hyperparameters, its range over all, and the dimension."""
    dimension = (
        metric_rows(results, "embedding_dim")
        .groupby(["dataset", "representation"])["value"]
        .max()
        .rename("embedding_dim")
        .reset_index()
    )
    table = by_batch_size(metric_rows(results, "effective_rank"), results).merge(dimension, how="left")
    return table[[*(column for column in table if column != "runs"), "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per representation and one line per loss."""
    figure, panels = looks.facets(points, by="representation", names=REPRESENTATION_NAMES)
    for panel in panels:
        dimension = f"$d$ = {panel.points['embedding_dim'].max():g}"
        panel.axes.set_title(", ".join(filter(None, [panel.axes.get_title(), dimension])))
    return looks.draw_against_batch_size(figure, panels, "effective rank")
