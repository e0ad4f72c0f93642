"""Linear accuracy against each loss's own hyperparameter.

Top-1 accuracy of linear evaluation (in [0, 1]) on the frozen backbone, averaged over seeds, against the temperature
of the InfoNCE family and DHEL, and the kernel scale and energy weight of KCL. At each value and batch size, the other
hyperparameters of the loss are those with the highest accuracy on the validation split of the training set. The line is
the mean over the batch sizes at which every value of the loss's hyperparameter has an accuracy, so that all points of a
line are over the same batch sizes, and the light band is their range. A hyperparameter for which a loss has only one
value, or no such batch size, is not shown.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import PER_BATCH_SIZE, chosen
from dhel_kcl.results.names import HYPERPARAMETER_NAMES
from dhel_kcl.results.robustness import CONFIGURATION, HYPERPARAMETERS, join_runs, metric_rows, seed_means

METRICS = ("linear_top1", "validation_top1")
NOTHING = "No loss has two values of a hyperparameter at one batch size."


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and range over batch sizes per data set, loss, hyperparameter and its value."""
    means = seed_means(metric_rows(results, "linear_top1"))
    parts = []
    for hyperparameter in HYPERPARAMETERS:
        own = results[results[hyperparameter].notna()]
        curve = means.merge(chosen(own, [*PER_BATCH_SIZE, hyperparameter]), on=CONFIGURATION)
        part = (
            _balanced(curve, hyperparameter)
            .rename(columns={hyperparameter: "hyperparameter_value"})
            .groupby(["dataset", "loss", "hyperparameter_value"])
            .agg(
                mean=("mean", "mean"),
                low=("mean", "min"),
                high=("mean", "max"),
                batch_sizes=("mean", "size"),
                runs=("runs", join_runs),
            )
            .reset_index()
        )
        part.insert(2, "hyperparameter", hyperparameter)
        parts.append(part)
    points = pd.concat([part for part in parts if not part.empty] or parts)
    values = points.groupby(["dataset", "loss", "hyperparameter"])["hyperparameter_value"]
    return points[values.transform("size") > 1].reset_index(drop=True)


def _balanced(curve: pd.DataFrame, hyperparameter: str) -> pd.DataFrame:
    """Return the rows at the batch sizes at which each value of a loss's hyperparameter has an accuracy."""
    values = curve.groupby(["dataset", "loss"])[hyperparameter].transform("nunique")
    here = curve.groupby(["dataset", "loss", "batch_size"])[hyperparameter].transform("nunique")
    return curve[here == values]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per hyperparameter and one line and band per loss that has it."""
    figure, panels = looks.facets(
        points, by="hyperparameter", names=HYPERPARAMETER_NAMES, share_y=True, name_rows=False
    )
    for panel in panels:
        for look, part in looks.losses_of(panel.points):
            looks.line_with_band(panel.axes, part["hyperparameter_value"], part, look)
        panel.axes.set_xlabel(HYPERPARAMETER_NAMES.get(panel.row, panel.row))
        looks.log_ticks(panel.axes, panel.points["hyperparameter_value"], base=10)
    looks.label(panels, "linear top-1 accuracy")
    looks.legend(figure, looks.loss_handles(points))
    return figure
