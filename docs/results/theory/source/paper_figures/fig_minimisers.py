"""Minimisers of the losses.

Top: excess of the loss over the predicted minimum against the iteration of L-BFGS, for each loss and random start, with
M free pairs of points on the sphere of R^d; values below 1e-16 are drawn at 1e-16. A curve that stays higher is in a
local minimum. Bottom: cosine similarities of the images where the best start of each loss ended, beside those of the
predicted minimiser. Points are ordered so that each is followed by the most opposite one.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from dhel_kcl.paper import looks
from dhel_kcl.results.names import LOSS_NAMES, in_order

TABLES = ("theory",)
METRICS = ("loss", "minimum", "gram", "minimiser_gram")
PREDICTED = "predicted"
CASE = ["batch_size", "embedding_dim"]
ROUNDING = 1e-16


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the excess per loss, start and iteration; cosines of best starts and, as `predicted`, of minimisers."""
    rows = results[results["check"] == "minimise"].sort_values(["run", "x"])
    rows = rows[["metric", "loss", *CASE, "seed", "x", "value", "run"]]
    minimum = rows[rows["metric"] == "minimum"].set_index("run")["value"]
    excess = rows[rows["metric"] == "loss"].assign(metric="excess")
    excess["value"] -= excess["run"].map(minimum)
    final = excess.groupby(["loss", *CASE, "run"])["value"].last()
    best = final.groupby(["loss", *CASE]).idxmin().str[-1]
    gram = rows[(rows["metric"] == "gram") & rows["run"].isin(best)]
    ideal = rows[(rows["metric"] == "minimiser_gram") & rows["run"].isin(best.groupby(CASE).first())]
    shown = pd.concat([excess, gram, ideal.assign(metric="gram", loss=PREDICTED)], ignore_index=True)
    return shown.rename(columns={"run": "runs"})


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column of curves and a line of heat maps per case."""
    cases = sorted(set(zip(points["batch_size"], points["embedding_dim"], strict=True)))
    figure = Figure(figsize=(looks.TEXT_WIDTH, 4.2), layout="constrained")
    curves, maps = figure.subfigures(2, 1, squeeze=False)[:, 0]
    above = curves.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    grid = maps.subplots(len(cases), points["loss"].nunique(), squeeze=False)
    for (m, d), axes, line in zip(cases, above, grid, strict=True):
        case = points[(points["batch_size"] == m) & (points["embedding_dim"] == d)]
        _curves(axes, case[case["metric"] == "excess"])
        axes.set_title(f"$M = {m}$, $d = {d}$ ({'simplex' if m <= d + 1 else 'cross-polytope'})")
        image = _maps(line, case[case["metric"] == "gram"], m)
        line[0].set_ylabel(f"$M = {m}$")
    above[0].set_ylabel("excess over the minimum")
    bar = grid[-1, -3].inset_axes((0, 0.45, 3, 0.12))  # in the last line, which has kernels only
    bar.set_in_layout(False)
    maps.colorbar(image, cax=bar, orientation="horizontal", label="cosine similarity", ticks=[-1, 0, 1])
    looks.legend(figure, looks.loss_handles(points[points["loss"] != PREDICTED], markers=False))
    return figure


def _curves(axes: Axes, descents: pd.DataFrame) -> None:
    for look, part in looks.losses_of(descents):
        for _, run in part.assign(value=part["value"].clip(lower=ROUNDING)).groupby("seed"):
            axes.plot(run["x"], run["value"], color=look.colour, linestyle=look.dash, linewidth=0.8)
    axes.set(yscale="log", xlabel="iteration")


def _maps(line: np.ndarray, gram: pd.DataFrame, m: int) -> ScalarMappable:
    names = {PREDICTED: "predicted", **LOSS_NAMES}
    losses = in_order(gram["loss"], names)
    for axes, loss in zip(line, losses, strict=False):
        cosines = gram.loc[gram["loss"] == loss, "value"].to_numpy().reshape(m, m)
        image: ScalarMappable = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(names[loss])
    for axes in line[len(losses) :]:
        axes.axis("off")
    return image
