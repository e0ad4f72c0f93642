"""Verdicts on the claims.

Each row is a claim about a loss against one baseline: the estimate with its interval, positive where the claim holds,
in units of the smallest effect of interest (the grey band is one such effect on both sides). Colour is the verdict on
the claim, which needs all baselines; the ends of the intervals are those that decide, corrected for the size of the
family. Hollow markers have no interval, because there is one seed. Exploratory claims are in panels of their own,
uncorrected. Claims for which nothing could be compared are not shown.
"""

from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dhel_kcl.paper import looks
from dhel_kcl.results.claims import CLAIMS, in_reading_order
from dhel_kcl.results.decision import STATES
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, in_order

TABLES = ("results", "verdicts")
METRICS = ("linear_top1",)
OPTIONAL_METRICS = ("effective_rank",)
NOTHING = "No two losses have cells in common."
COLOURS = dict(zip(STATES, ("#117733", "#0077bb", "#777777", "#cc3311", "#bbbbbb"), strict=True))
MOST = 6.0
"""Estimates and intervals end here, in smallest effects; an arrow marks what lies beyond."""


def points(results: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons that have an estimate, in units of the smallest effect."""
    shown = in_reading_order(verdicts[verdicts["estimate"].notna()])
    units = {name: shown[name] / shown["smallest_effect"] for name in ("estimate", "low", "high")}
    columns = ["dataset", "role", "claim", "loss", "baseline"]
    return pd.concat(
        [shown[columns], pd.DataFrame(units), shown[["smallest_effect", "seeds", "state", "runs"]]], axis=1
    )


@mpl.rc_context({**looks.RC, "axes.grid": False})
def draw(points: pd.DataFrame) -> Figure:
    """Draw a column per data set, and a panel per claim with a row per loss and baseline."""
    points = points.assign(baseline=points["baseline"].fillna(""))
    panels = points[["role", "claim"]].drop_duplicates().sort_values("role", kind="stable")
    heights = [_rows(points, claim) for claim in panels["claim"]]
    datasets = in_order(points["dataset"], {**DATASET_NAMES, "all": "all"})
    titles = [fill(_title(role, claim), 100 // len(datasets)) for role, claim in panels.itertuples(index=False)]
    lines = sum(title.count("\n") for title in titles)
    height = 0.8 + 0.105 * sum(map(len, heights)) + 0.3 * len(heights) + 0.11 * lines
    figure = Figure((looks.TEXT_WIDTH, height), layout="constrained")
    ratios = [len(each) + 1.2 for each in heights]
    grid = figure.subplots(len(panels), len(datasets), squeeze=False, sharex=True, height_ratios=ratios)
    for line, claim, title, rows in zip(grid, panels["claim"], titles, heights, strict=True):
        for axes, dataset in zip(line, datasets, strict=True):
            part = points[(points["claim"] == claim) & (points["dataset"] == dataset)]
            axes.axvspan(-1, 1, color="#eeeeee", linewidth=0)
            axes.axvline(0, color="#999999", linewidth=0.6)
            for row in part.itertuples():
                _draw_row(axes, rows.index((row.loss, row.baseline)), row)
            labels = [LOSS_NAMES[a] + (f" against {LOSS_NAMES[b]}" if b else "") for a, b in rows]
            axes.set_yticks(range(len(rows)), labels if axes is line[0] else [""] * len(rows), fontsize=6)
            axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-MOST, MOST))
            axes.tick_params(axis="y", length=0)
        line[0].set_title(title, loc="left", fontsize=7)
    for axes, dataset in zip(grid[-1], datasets, strict=True):
        axes.set_xlabel(DATASET_NAMES.get(dataset, f"{dataset} data sets" if dataset == "all" else dataset))
    figure.supxlabel("effect / smallest effect of interest", fontsize=8)
    present = [state for state in STATES if state in set(points["state"])]
    handles: list[Artist] = [Line2D([], [], color=COLOURS[state], marker="o", label=state) for state in present]
    if points["low"].isna().any():
        handles.append(
            Line2D([], [], color="#777777", marker="o", markerfacecolor="white", linestyle="", label="no interval")
        )
    looks.legend(figure, handles)
    return figure


def _title(role: str, claim: str) -> str:
    return CLAIMS[claim].statement + (" (exploratory)" if role == "exploratory" else "")


def _rows(points: pd.DataFrame, claim: str) -> list[tuple[str, str]]:
    """Return the losses and baselines of a panel, from the top."""
    own = points[points["claim"] == claim][["loss", "baseline"]].drop_duplicates()
    return [*own.itertuples(index=False, name=None)]


def _draw_row(axes: mpl.axes.Axes, y: int, row: Any) -> None:
    colour, estimate = COLOURS[row.state], float(np.clip(row.estimate, -MOST, MOST))
    known = not pd.isna(row.low)
    if known:
        low, high = np.clip([row.low, row.high], -MOST, MOST)
        axes.plot([low, high], [y, y], color=colour, linewidth=1.1)
    beyond = abs(row.estimate) > MOST
    marker = (">" if row.estimate > 0 else "<") if beyond else "o"
    axes.plot(
        estimate, y, marker, color=colour, markersize=3, markerfacecolor=colour if known else "white", clip_on=False
    )
