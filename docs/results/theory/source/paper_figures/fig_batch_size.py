"""Linear accuracy against the batch size.

Top-1 accuracy of linear evaluation (in [0, 1]) on the frozen backbone, averaged over seeds, against the pretraining
batch size. The line shows, at each batch size, the hyperparameters with the highest accuracy on the validation split of
the training set, with an error bar of one standard deviation over seeds (none for one seed). The thick light bar is the
range of the seed means over all hyperparameters of the grid. The losses stand side by side at each batch size. A gap is
a batch size at which no run has an accuracy.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import by_batch_size
from dhel_kcl.results.robustness import metric_rows

METRICS = ("linear_top1", "validation_top1")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy at the chosen hyperparameters and its range over all, per data set, loss and batch size."""
    return by_batch_size(metric_rows(results, "linear_top1"), results)


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw one panel per data set with one line per loss."""
    figure, panels = looks.facets(points)
    return looks.draw_against_batch_size(figure, panels, "linear top-1 accuracy")
