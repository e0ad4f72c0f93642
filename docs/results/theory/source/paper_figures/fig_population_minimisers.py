"""Minimisers of mini-batch losses of a population.

The mean loss over all mini-batches of M out of N free pairs of points on the sphere of R^d was minimised by L-BFGS from
random starts and from the best minimiser of the full loss, for every M. The full loss's excess over its minimum is
shown at the best minimisers found; where several are equally good, a bar spans their excesses. A loss on the line 0
identifies the full minimiser from mini-batches. Proven: KCL is at 0 for every M, N and d; for N <= d + 1 so is every
loss for M >= 3; at M = 2 every aligned population of zero mean minimises DHEL and DCL, so the bar shows only a part of
what is possible. Everything else is numerical. The scale is linear up to 1e-8, which rounding does not reach.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dhel_kcl.paper import looks
from dhel_kcl.results.theorems import EXCESS, excess_over_full_minimum

TABLES = ("theory",)
METRICS = ("mini_batch_loss", "full_loss", "mini_batch_loss_of_full_minimiser", "full_minimum", "pairs")


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the excess for each loss, population and M."""
    return excess_over_full_minimum(results[results["check"] == "population"])


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a panel per population, with the losses side by side at each M."""
    sizes = sorted(set(zip(points["pairs"], points["embedding_dim"], strict=True)))
    figure = Figure(figsize=(looks.TEXT_WIDTH, 2.5), layout="constrained")
    widths = {"width_ratios": [n for n, _ in sizes]}
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False, gridspec_kw=widths)[0]
    for (n, d), axes in zip(sizes, panels, strict=True):
        of_size = points[(points["pairs"] == n) & (points["embedding_dim"] == d)]
        losses = looks.losses_of(of_size)
        for place, (look, curve) in enumerate(losses):
            x = curve["batch_size"] + 0.8 * (place / max(1, len(losses) - 1) - 0.5)
            least, most = curve["least"].clip(lower=0), curve["most"].clip(lower=0)
            axes.vlines(x, least, most, color=look.colour, linewidth=1)
            axes.scatter(x, most, s=7, color=look.colour, marker=look.marker, linewidth=0, clip_on=False, zorder=3)
        axes.set_title(f"$N = {n}$, $d = {d}$")
        axes.set_yscale("symlog", linthresh=EXCESS, linscale=0.5)
        axes.set(xlabel="mini-batch size $M$", ylim=(-EXCESS / 2, 20), xlim=(1.4, n + 0.6))
        axes.set_yticks([0, 1e-8, 1e-6, 1e-4, 1e-2, 1])
        axes.yaxis.set_minor_locator(NullLocator())
        looks.whole_ticks(axes)
    panels[0].set_ylabel("excess of the full loss")
    looks.legend(figure, looks.loss_handles(points, lines=False))
    return figure
