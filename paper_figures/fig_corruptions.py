"""Differences of linear accuracy on corrupted test images.

Top-1 accuracy of linear evaluation on test images with one of five corruptions of CIFAR-10-C (Hendrycks & Dietterich,
2019), against its severity; 0 is the clean image, and "mean" is the mean over the five. Shown is the difference from
the mean over all losses at the same seed, in percentage points, because the losses differ by far less than the
severities; table_corruptions has the accuracies. Encoder and classifier have seen clean training images only, apart
from the jitter of brightness and contrast and the blur that the training augmentation may include. Each loss is shown
at the hyperparameters and batch size with the highest accuracy on the validation split of the training set, on the
seeds that all losses have; the light band is one standard deviation of the difference over seeds.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import best_rows, with_mean_corruption
from dhel_kcl.results.names import corruption_names
from dhel_kcl.results.robustness import CONFIGURATION, seed_means

METRICS = ("validation_top1",)
OPTIONAL_METRICS = ("corrupted_top1",)
NOTHING = "No two losses were evaluated on corrupted images at the same seed (evaluation.corruptions)."


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the difference in points per data set, loss, corruption (including `mean`) and severity."""
    rows = with_mean_corruption(best_rows(results, "corrupted_top1"))
    there = rows.groupby(["dataset", "seed"])["loss"].transform("nunique")
    losses = rows.groupby("dataset")["loss"].transform("nunique")
    rows = rows[(there == losses) & (losses > 1)]
    level = rows.groupby(["dataset", "corruption", "x", "seed"])["value"].transform("mean")
    means = seed_means(rows.assign(value=100 * (rows["value"] - level)), ["corruption", "x"])
    return means.rename(columns={"x": "severity"})[
        [*CONFIGURATION, "corruption", "severity", "mean", "std", "n", "runs"]
    ]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, a row per corruption and one line and band per loss."""
    spread = points["std"].fillna(0)
    points = points.assign(low=points["mean"] - spread, high=points["mean"] + spread)
    names = corruption_names(points["corruption"], points["dataset"])
    figure, panels = looks.facets(points, by="corruption", names=names, share_y=True)
    for panel in panels:
        for look, part in looks.losses_of(panel.points):
            looks.line_with_band(panel.axes, part["severity"], part, look)
        panel.axes.set_xticks(sorted(set(panel.points["severity"])))
    looks.label(panels, "difference (points)", "severity")
    looks.legend(figure, looks.loss_handles(points))
    return figure
