"""The look of every figure: the palette, sizes, panels and legends."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.typing import LineStyleType

from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, in_order

COLUMN_WIDTH = 3.25
TEXT_WIDTH = 6.75
MAX_COLUMNS = 4
MAX_PANEL_HEIGHT = 2.1
MAX_MARKERS = 15

RC: dict[Any, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlepad": 4,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.8,
}


@dataclass(frozen=True)
class Look:
    """The appearance of one loss in every figure."""

    name: str
    colour: str
    marker: str
    dash: LineStyleType


# After Paul Tol's colour-blind safe hues: cool for the InfoNCE family, warm for DHEL and KCL.
_APPEARANCES: dict[str, tuple[str, str, LineStyleType]] = {
    "infonce": ("#332288", "o", (0, (1, 1))),
    "ntxent": ("#0077bb", "s", (0, (4, 1.5))),
    "dcl": ("#33bbee", "^", (0, (5, 1.5, 1, 1.5))),
    "dhel": ("#cc3311", "D", "-"),
    "kcl_gaussian": ("#ee8866", "v", "-"),
    "kcl_log": ("#aa3377", "P", (0, (4, 1.5))),
    "kcl_imq": ("#cca300", "X", (0, (5, 1.5, 1, 1.5))),
}
# For losses added later; the two lengths have no common factor, so there are 30 different combinations.
_MORE_COLOURS = ("#117733", "#777777", "#882255", "#44aa99", "#000000")
_MORE_MARKERS = ("<", ">", "h", "d", "p", "8")


def _looks(names: Mapping[str, str]) -> dict[str, Look]:
    """Return a look for each loss label, in the order of `names`; losses not in the paper get one from the reserve."""
    reserve = zip(itertools.cycle(_MORE_COLOURS), itertools.cycle(_MORE_MARKERS), strict=False)
    return {label: Look(name, *(_APPEARANCES.get(label) or (*next(reserve), "-"))) for label, name in names.items()}


LOSSES = _looks(LOSS_NAMES)


@dataclass(frozen=True)
class Facet:
    """One panel: its axes and points, the value of the row variable and its name on the axis, its place in the grid."""

    axes: Axes
    points: pd.DataFrame
    row: str
    row_name: str
    place: tuple[int, int]


def facets(
    points: pd.DataFrame,
    by: str | None = None,
    names: dict[str, str] | None = None,
    aspect: float = 0.75,
    share_y: bool = False,
    name_rows: bool = True,
) -> tuple[Figure, list[Facet]]:
    """Make a grid of panels: a column for each data set, a row for each value of `by`.

    With a single data set the panels of `by` are side by side, at most `MAX_COLUMNS` in a line. A combination without
    points has no panel.

    Args:
        points: the points of the whole figure.
        by: the column whose values are the rows.
        names: the values of `by`, in order, with the names that readers see.
        aspect: height of a panel divided by its width.
        share_y: whether all panels of a data set have the same vertical range.
        name_rows: whether the name of a row is in the titles (one data set) or the vertical labels (several).
    """
    names = names or {}
    datasets = in_order(points["dataset"], DATASET_NAMES)
    rows = in_order(points[by], names) if by else [""]
    several = len(datasets) > 1
    lines = len(rows) if several else math.ceil(len(rows) / MAX_COLUMNS)
    columns = len(datasets) if several else math.ceil(len(rows) / lines)
    width = COLUMN_WIDTH if columns == 1 else TEXT_WIDTH
    height = 0.35 + lines * (min(aspect * width / columns, MAX_PANEL_HEIGHT) + 0.25)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels: list[Facet] = []
    first: dict[str, Axes] = {}
    for index, (row, dataset) in enumerate([(row, dataset) for row in rows for dataset in datasets]):
        part = points[(points["dataset"] == dataset) & ((points[by] == row) if by else True)]
        if part.empty:
            continue
        axes = figure.add_subplot(lines, columns, index + 1, sharey=first.get(dataset) if share_y else None)
        name = names.get(row, row) if name_rows else ""
        title = DATASET_NAMES.get(dataset, dataset)
        if not several:
            axes.set_title(f"{title}, {name}" if name else title)
        elif dataset not in first:
            axes.set_title(title)
        first.setdefault(dataset, axes)
        panels.append(Facet(axes, part, row, name if several else "", divmod(index, columns)))
    return figure, panels


def label(panels: list[Facet], y: str, x: str | None = None) -> None:
    """Label the axes: the vertical one once per line of panels, the horizontal one (unless None) below each column."""
    for panel in panels:
        line, column = panel.place
        if column == min(other.place[1] for other in panels if other.place[0] == line):
            panel.axes.set_ylabel("\n".join(filter(None, [panel.row_name, y])))
        if x is not None and line == max(other.place[0] for other in panels if other.place[1] == column):
            panel.axes.set_xlabel(x)


def legend(figure: Figure, handles: list[Artist]) -> None:
    """Put the legend above the panels, where it covers no data."""
    fits = 3 if figure.get_figwidth() <= COLUMN_WIDTH else 7
    lines = math.ceil(len(handles) / fits)
    figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / lines))


def loss_handles(points: pd.DataFrame, markers: bool = True, lines: bool = True) -> list[Artist]:
    """Make the legend entries for the losses in `points`, in the fixed order."""
    return [
        Line2D(
            [],
            [],
            label=look.name,
            color=look.colour,
            linestyle=(("-" if markers else look.dash) if lines else ""),
            marker=look.marker if markers else "",
        )
        for look, _ in losses_of(points)
    ]


def losses_of(points: pd.DataFrame) -> list[tuple[Look, pd.DataFrame]]:
    """Split points by loss, in the fixed order."""
    return [(LOSSES[loss], points[points["loss"] == loss]) for loss in in_order(points["loss"], LOSS_NAMES)]


def scatter(panels: list[Facet], x: str, y: str) -> None:
    """Plot one marker for each point in its panel, in the look of its loss."""
    for panel in panels:
        for look, part in losses_of(panel.points):
            panel.axes.scatter(part[x], part[y], s=15, color=look.colour, marker=look.marker, alpha=0.7, lw=0)


def line_with_band(axes: Axes, x: pd.Series, curve: pd.DataFrame, look: Look) -> None:
    """Draw `mean` as a line with markers over a light band from `low` to `high`."""
    axes.fill_between(x, curve["low"], curve["high"], color=look.colour, alpha=0.1, linewidth=0)
    (line,) = axes.plot(x, curve["mean"], color=look.colour, marker=look.marker)
    line.set(markeredgecolor="white", markeredgewidth=0.4, markevery=math.ceil(len(curve) / MAX_MARKERS))


def log_ticks(axes: Axes, values: Iterable[float], base: float) -> None:
    """Make the horizontal axis logarithmic, with a tick at each value and some room at both ends."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}".removeprefix("0") for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    room = (ticks[-1] / ticks[0]) ** 0.06 if len(ticks) > 1 else 1.5
    axes.set_xlim(ticks[0] / room, ticks[-1] * room)


def whole_ticks(axes: Axes) -> None:
    """Put horizontal ticks at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def draw_against_batch_size(figure: Figure, panels: list[Facet], y: str) -> Figure:
    """Plot one line per loss against the batch size in each panel; a missing batch size is a gap.

    A thick light bar is the range over the settings, and a thin error bar is the spread over seeds. At each batch size
    the losses are drawn side by side.
    """
    columns = 1 + max(panel.place[1] for panel in panels)
    for panel in panels:
        sizes = sorted(set(panel.points["batch_size"]))
        bar = min(4, 30 / (len(sizes) * columns))
        losses = losses_of(panel.points)
        for place, (look, part) in enumerate(losses):
            curve = part.set_index("batch_size").reindex(sizes).reset_index()
            x = curve["batch_size"] * 2 ** (0.09 * (place - (len(losses) - 1) / 2))
            panel.axes.vlines(x, curve["low"], curve["high"], color=look.colour, alpha=0.3, linewidth=bar)
            panel.axes.errorbar(x, curve["mean"], curve["std"], fmt="none", ecolor=look.colour, elinewidth=0.8)
            (line,) = panel.axes.plot(x, curve["mean"], color=look.colour, marker=look.marker, linewidth=0.8)
            line.set(markeredgecolor="white", markeredgewidth=0.4)
        log_ticks(panel.axes, sizes, base=2)
        panel.axes.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
    label(panels, y, "batch size")
    points = pd.concat([panel.points for panel in panels])
    handles = loss_handles(points)
    if (points["high"] > points["low"]).any():
        handles.append(Line2D([], [], color="#bbbbbb", linewidth=4, label="range over settings"))
    if points["std"].notna().any():
        handles.append(Line2D([], [], color="#666666", linewidth=0.8, label="± std over seeds"))
    legend(figure, handles)
    return figure
