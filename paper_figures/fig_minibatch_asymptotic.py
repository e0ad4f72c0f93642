"""Mini-batch loss against the batch size.

Left and middle: distance of the expected loss of aligned embeddings, drawn uniformly from the sphere, from its limit
for large batches, against the batch size M, with the 95% confidence band of the mean over the batches drawn. The loss
is taken less its growth: every sum inside a logarithm becomes a mean over its terms, M for InfoNCE, 2M - 1 for NT-Xent,
2M - 2 for DCL and M - 1 in each of the two logarithms of DHEL; nothing is taken from KCL. This normalisation is
invariant: if all similarities are equal, what is left does not depend on M. Right: distance of the mean over all mini-
batches of M pairs of one arbitrary population from the loss of the whole population, both less growth; distances below
1e-16 are drawn at 1e-16. At each M the losses are drawn side by side, so that none hides another.
"""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import t

from dhel_kcl.paper import looks
from dhel_kcl.results.robustness import join_runs

TABLES = ("theory",)
METRICS = ("loss", "growth", "asymptote")
KEYS = ["check", "loss", "embedding_dim", "batch_size"]
ROUNDING = 1e-16


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean minus growth with its confidence band and limit; for populations, the distance from the whole."""
    rows = results[results["check"].isin(["uniform", "mini_batches"])].sort_values(["run", "x"])
    scalars = rows[rows["metric"] != "loss"].pivot_table(index=KEYS, columns="metric", values="value")
    losses = rows[rows["metric"] == "loss"].groupby(KEYS)
    points: pd.DataFrame = losses["value"].agg(["mean", "sem", "count"]).join(scalars)
    points["mean"] -= points["growth"]
    half = points["sem"] * t.isf(0.025, points["count"] - 1)
    points = points.assign(low=points["mean"] - half, high=points["mean"] + half)
    points["runs"] = losses["run"].agg(join_runs)
    points = points.reset_index().drop(columns="growth")
    is_part = points["check"] == "mini_batches"
    whole = points.groupby(["check", "loss"])["mean"].transform("last")
    points["distance"] = (points["mean"] - whole).abs().where(is_part)
    points = points[~(is_part & (points["batch_size"] == points.loc[is_part, "batch_size"].max()))]
    return points[[*(column for column in points if column != "runs"), "runs"]]


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw uniform embeddings under the InfoNCE family and DHEL, then under KCL, then a population under all losses."""
    figure = Figure(figsize=(looks.TEXT_WIDTH, 2.4), layout="constrained")
    family, kernels, population = figure.subplots(1, 3)
    uniform = points[points["check"] == "uniform"]
    is_kernel = uniform["loss"].str.startswith("kcl")
    for axes, part in ((family, uniform[~is_kernel]), (kernels, uniform[is_kernel])):
        for look, curve, shift in _side_by_side(part):
            from_limit = curve.assign(**{name: curve[name] - curve["asymptote"] for name in ("mean", "low", "high")})
            looks.line_with_band(axes, curve["batch_size"] * 2**shift, from_limit, look)
        axes.axhline(0, color="black", linestyle="--", linewidth=0.8)
        axes.set_title(f"uniform embeddings, $d = {part['embedding_dim'].iloc[0]}$")
        axes.set_xscale("log", base=2)
    parts = points[points["check"] == "mini_batches"]
    for look, curve, shift in _side_by_side(parts):
        (line,) = population.plot(
            curve["batch_size"] + shift, curve["distance"].clip(lower=ROUNDING), color=look.colour, marker=look.marker
        )
        line.set(markeredgecolor="white", markeredgewidth=0.4, linewidth=0.8)
    population.set_title(
        f"all mini-batches of {parts['batch_size'].max() + 1} pairs, $d = {parts['embedding_dim'].iloc[0]}$"
    )
    population.set_yscale("log")
    looks.whole_ticks(population)
    family.set_ylabel("expected loss less growth and limit")
    kernels.set_ylabel("expected loss less limit")
    population.set_ylabel("distance from the full loss")
    for axes in (family, kernels, population):
        axes.set_xlabel("batch size $M$")
    limit = Line2D([], [], color="black", linestyle="--", linewidth=0.8, label="limit")
    looks.legend(figure, [*looks.loss_handles(points), limit])
    return figure


def _side_by_side(points: pd.DataFrame) -> list[tuple[looks.Look, pd.DataFrame, float]]:
    """Return the points of each loss with a small shift, in the fixed order."""
    losses = looks.losses_of(points)
    return [(look, curve, 0.1 * (place - (len(losses) - 1) / 2)) for place, (look, curve) in enumerate(losses)]
