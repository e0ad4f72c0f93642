"""Measures of uniformity where the deviation is known.

Top: Wasserstein uniformity (W1) and uniformity on samples of laws whose deviation from the uniform law is known:
uniform on a sub-sphere of k dimensions, and a share of points collapsed to one point or to two antipodes, the rest
uniform. Curves are the exact values, markers the measured ones. Both measures are given as shares of their range, from
0 at the uniform law to 1 at total collapse; below the diagonal, uniformity rates the deviation lower than W1 does.
Bottom left and middle: excess of the limit functional over its value at the uniform law, for von Mises-Fisher laws and
for uniform laws on sub-spheres; every curve ends at 0 for the uniform law, which a logarithmic scale cannot show.
InfoNCE, NT-Xent and DCL have one functional, so their curves coincide. Bottom right: W1 of aligned minimisers of N
pairs, and of the uniform random points where their descents started (grey), which is lower: a minimiser has no close
pairs, and the cosines of N points of zero mean have the mean -1 / (N - 1).
"""

import math

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import hyp0f1

from dhel_kcl.paper import looks

TABLES = ("theory",)
LOOKS = {
    "sub_sphere": ("sub-sphere", "o"),
    "point": ("share at a point", "s"),
    "antipodes": ("share at antipodes", "^"),
}
EXACT = ("wasserstein", "uniformity")
METRICS = (
    *(f"{law}_{exact}{measure}" for law in LOOKS for exact in ("", "exact_") for measure in EXACT),
    *("mises_fisher", "sub_sphere", "asymptote", "wasserstein", "random_wasserstein"),
)
ROUNDING = 1e-12
COLUMNS = ["metric", "loss", "embedding_dim", "batch_size", "x"]


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return both measures of each law as shares of their ranges, the excess of the limit functional, and W1."""
    laws = results[results["check"] == "uniformity_of_laws"].copy()
    # log E exp(-2 |x - y|^2) of the uniform law, with E exp(a x.y) = 0F1(d / 2; a^2 / 4) at a = 4
    lowest = {d: math.log(hyp0f1(d / 2, 4)) - 4 for d in laws["embedding_dim"].unique()}
    is_log = laws["metric"].str.endswith("uniformity")
    laws.loc[is_log, "value"] = 1 - laws["value"] / laws["embedding_dim"].map(lowest)
    functional = results[results["check"] == "limit_functional"]
    limit = functional[functional["metric"] == "asymptote"].set_index("run")["value"]
    families = functional[functional["metric"] != "asymptote"].copy()
    families["value"] -= families["run"].map(limit)
    distances = results[results["check"] == "w1_of_minimisers"]
    shown = pd.concat([laws, families, distances])[[*COLUMNS, "value", "run"]]
    return shown.sort_values([*COLUMNS, "run"]).rename(columns={"run": "runs"}).reset_index(drop=True)


@mpl.rc_context(looks.RC)
def draw(points: pd.DataFrame) -> Figure:
    """Draw a panel of laws per dimension above the limit functional and the minimisers."""
    dims = sorted(points.loc[points["metric"] == "point_wasserstein", "embedding_dim"].unique())
    figure = Figure(figsize=(looks.TEXT_WIDTH, 4.8), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for d, axes in zip(dims, above.subplots(1, len(dims), squeeze=False)[0], strict=True):
        for law, (name, marker) in LOOKS.items():
            of_law = points[(points["embedding_dim"] == d) & points["metric"].str.startswith(f"{law}_")]
            value = of_law.pivot_table(index="x", columns="metric", values="value")
            exact, measured = ([value[f"{law}_{kind}{name}"] for name in EXACT] for kind in ("exact_", ""))
            (line,) = axes.plot(*exact, linewidth=0.8)
            axes.plot(*measured, marker, color=line.get_color(), fillstyle="none", clip_on=False, label=name)
        axes.axline((0, 0), slope=1, color="black", linestyle=":", linewidth=0.8)
        axes.set(title=f"laws in $d = {d}$", xlabel="$W_1$", xlim=(0, 1), ylim=(0, 1))
        axes.set_ylabel("uniformity, as a share of its range")
        axes.legend(loc="lower right")
    panels = below.subplots(1, 3)
    for axes, metric in zip(panels, ("mises_fisher", "sub_sphere", "wasserstein"), strict=True):
        for look, curve in looks.losses_of(points[points["metric"] == metric]):
            x = curve["batch_size"] if metric == "wasserstein" else curve["x"]
            style = {"color": look.colour, "linestyle": look.dash, "marker": look.marker, "markersize": 2.5}
            axes.plot(x, curve["value"].where((x > 0) & (curve["value"] > ROUNDING)), linewidth=0.9, **style)
        axes.set_yscale("log")
        axes.set_xscale("log", base=2)
    random = points[points["metric"] == "random_wasserstein"].drop_duplicates("batch_size")
    panels[2].plot(random["batch_size"], random["value"], color="#999999")
    panels[0].set(xlabel="concentration", ylabel="excess of the limit functional", title="von Mises-Fisher laws")
    panels[1].set(xlabel="dimension $k$", title="uniform on sub-spheres")
    panels[2].set(xlabel="pairs $N$", ylabel="$W_1$", title=f"minimisers, $d = {random['embedding_dim'].iloc[0]}$")
    grey = Line2D([], [], color="#999999", label="random")
    looks.legend(figure, [*looks.loss_handles(points[points["loss"] != ""].dropna(subset="loss"), markers=True), grey])
    return figure
