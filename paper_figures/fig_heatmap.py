"""Linear accuracy of every setting.

Top-1 accuracy of linear evaluation on the frozen backbone, in percent and averaged over seeds, for each loss and
hyperparameter setting (rows) and each batch size (columns). The colour scale is the same for all losses of a data set
and spans at least ten points, so that small differences look small. A hatched cell has no accuracy because all its runs
diverged or could not be measured; an empty cell was not run. A star marks a cell with some such runs; its mean is over
the others.
"""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from dhel_kcl.paper import looks
from dhel_kcl.results.choice import not_measured
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, in_order
from dhel_kcl.results.robustness import CONFIGURATION, HYPERPARAMETERS, join_runs, metric_rows, seed_means

METRICS = ("linear_top1",)
OPTIONAL_METRICS = ("diverged", "not_measured")
ROW = ["loss", *HYPERPARAMETERS]
SYMBOLS = {"temperature": r"$\tau$", "t": "$t$", "c": "$c$", "gamma": r"$\gamma$"}
LEAST_SPAN = 10
"""Percentage points that the colour scale spans at least."""
HATCH: dict[str, Any] = {"facecolor": "white", "edgecolor": "#888888", "hatch": "//////"}


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy in percent and counts of seeds, diverged and (if any) unmeasured runs, per configuration."""
    means = seed_means(metric_rows(results, "linear_top1")).drop(columns="runs")
    ended = metric_rows(results, "diverged")
    lost = ended[ended["value"] == 1].groupby(CONFIGURATION, dropna=False).size().rename("diverged").reset_index()
    runs = results.groupby(CONFIGURATION, dropna=False)["run"].agg(runs=join_runs).reset_index()
    without = not_measured(results, "linear_top1").groupby(CONFIGURATION, dropna=False).size().rename("not_measured")
    table = runs.merge(means, on=CONFIGURATION, how="left").merge(lost, on=CONFIGURATION, how="left")
    table = table.merge(without.reset_index(), on=CONFIGURATION, how="left")
    counts = ["n", "diverged", "not_measured"]
    table = table.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))
    table[["mean", "std"]] *= 100
    table = table[table[counts].any(axis="columns")]
    shown = counts if len(without) else counts[:2]
    return table[[*CONFIGURATION, "mean", "std", *shown, "runs"]]


@mpl.rc_context({**looks.RC, "axes.grid": False, "axes.linewidth": 0, "hatch.linewidth": 0.4})
def draw(points: pd.DataFrame) -> Figure:
    """Draw a panel per data set with the settings of all losses stacked; a white gap separates losses."""
    points = points.assign(lost=points["diverged"] + points.get("not_measured", 0))
    rows = points[ROW].drop_duplicates()
    rows = rows.assign(rank=rows["loss"].map([*LOSS_NAMES].index)).sort_values(["rank", *HYPERPARAMETERS])
    rows["y"] = [i + 0.4 * loss for i, loss in enumerate((rows["loss"] != rows["loss"].shift()).cumsum())]
    datasets = in_order(points["dataset"], DATASET_NAMES)
    width = looks.TEXT_WIDTH if len(datasets) > 1 else looks.COLUMN_WIDTH
    figure = Figure((width, 1.3 + 0.13 * rows["y"].max()), layout="constrained")
    panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        cells = points[points["dataset"] == dataset].merge(rows, on=ROW)
        sizes = sorted(set(cells["batch_size"]))
        low, high = cells["mean"].min(), cells["mean"].max()
        room = max(0, LEAST_SPAN - (high - low)) / 2
        norm = Normalize(low - room, high + room)
        colours = ScalarMappable(norm, "viridis")
        for x, y, mean, n, lost in cells[["batch_size", "y", "mean", "n", "lost"]].to_numpy():
            look = {"facecolor": colours.to_rgba(mean)} if n else HATCH
            axes.add_patch(Rectangle((sizes.index(x) - 0.5, y - 0.5), 1, 1, linewidth=0, **look))
            text = f"{mean:.1f}{'*' * bool(lost)}" if n else ""
            colour = "white" if n and float(norm(mean)) < 0.6 else "black"
            axes.text(sizes.index(x), y, text, ha="center", va="center", fontsize=5.5, color=colour)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_yticks(rows["y"], [_setting(row) for _, row in rows.iterrows()])
        axes.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(rows["y"].max() + 0.5, rows["y"].min() - 0.5))
        axes.set(title=DATASET_NAMES.get(dataset, dataset), xlabel="batch size")
        axes.tick_params(length=0, labelsize=6.5)
        if cells["n"].any():
            bar = figure.colorbar(colours, ax=axes, orientation="horizontal", pad=0.01, aspect=25, format="{x:.3g}")
            bar.set_label("linear top-1 accuracy (%)")
    without_accuracy = points[points["n"] == 0]
    all_diverged = (without_accuracy["diverged"] == without_accuracy["lost"]).all()
    said = "diverged" if all_diverged else "diverged or not measured"
    notes: list[Artist] = [] if without_accuracy.empty else [Patch(**HATCH, label=said)]
    if len(points) < len(rows) * points.groupby("dataset")["batch_size"].nunique().sum():
        notes.append(Patch(facecolor="white", edgecolor="#888888", label="not run"))
    if notes:
        looks.legend(figure, notes)
    return figure


def _setting(row: pd.Series) -> str:
    values = [f"{SYMBOLS.get(name, name)} = {row[name]:g}" for name in HYPERPARAMETERS if pd.notna(row[name])]
    return ", ".join([LOSS_NAMES[row["loss"]], *values])
