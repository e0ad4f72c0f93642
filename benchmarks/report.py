"""Write the measurements as a page with tables and figures, computed from the CSV files only."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import pandas as pd
import typer
from implementations import COMPILED, LIGHTLY, METRIC_LEARNING, ORDER, OURS, PLAIN, PUBLIC
from losses import GRADIENT_TOLERANCE, VALUE_TOLERANCE
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from measure import MEMORY_LIMIT_GIB

from dhel_kcl.files import atomic_path
from dhel_kcl.paper import looks
from dhel_kcl.results.names import LOSS_NAMES, in_order

LOOKS = {
    OURS: looks.Look(OURS, "#cc3311", "D", "-"),
    PLAIN: looks.Look(PLAIN, "#0077bb", "s", "-"),
    COMPILED: looks.Look(COMPILED, "#33bbee", "^", "--"),
    PUBLIC: looks.Look(PUBLIC, "#bb9900", "v", "-"),
    LIGHTLY: looks.Look(LIGHTLY, "#332288", "o", "-"),
    METRIC_LEARNING: looks.Look(METRIC_LEARNING, "#aa3377", "X", "-"),
}


@dataclass(frozen=True)
class Target:
    """A property that we aim for, the measurement, and whether it holds."""

    aim: str
    measured: str
    met: bool


def peers(losses: pd.DataFrame, loss: str, batch_size: int) -> pd.DataFrame:
    """Return the other implementations that ran, fastest first; torch.compile is not a peer (see the page)."""
    rows = losses[(losses["loss"] == loss) & (losses["batch_size"] == batch_size) & (losses["status"] == "ok")]
    return rows[~rows["implementation"].isin([OURS, COMPILED])].sort_values("ratio")


def targets(losses: pd.DataFrame, metrics: pd.DataFrame) -> Iterator[Target]:
    """Yield the targets at the smallest and the largest measured batch size, without those of unmeasured losses."""
    small, large = losses["batch_size"].min(), losses["batch_size"].max()
    aims = {"ntxent": 2.5, "dhel": 3.0, "kcl_gaussian": 6.0, "kcl_log": 6.0, "kcl_imq": 6.0}
    for loss, aim in aims.items():
        if loss in set(losses["loss"]):
            ratios = peers(losses, loss, large).set_index("implementation")["ratio"]
            yield Target(
                f"{LOSS_NAMES[loss]} at M = {large}: at least {aim:g} times as fast as the best peer",
                ", ".join(f"{times:.3g} ({name})" for name, times in ratios.items()),
                bool(ratios.min() >= aim),
            )
    ours = losses[(losses["implementation"] == OURS) & (losses["batch_size"] == large)]
    most = ours.sort_values("memory_mib").iloc[-1]
    yield Target(
        f"every loss at M = {large}: less than 150 MiB above its inputs",
        f"at most {most['memory_mib']:.3g} MiB ({LOSS_NAMES[most['loss']]})",
        bool(most["memory_mib"] < 150),
    )
    plain = losses[(losses["implementation"] == PLAIN) & (losses["batch_size"] == small)]
    least = plain.sort_values("ratio").iloc[0]
    yield Target(
        f"every loss at M = {small}: not slower than plain autograd",
        f"plain autograd takes at least {least['ratio']:.3g} times as long ({LOSS_NAMES[least['loss']]})",
        bool(least["ratio"] >= 1),
    )
    samples = metrics["samples"].iloc[0]
    wasserstein = metrics[metrics["metric"] == "wasserstein_uniformity"].set_index("implementation").loc[OURS]
    yield Target(
        f"`wasserstein_uniformity` of {samples:,} embeddings: less than 1 s and 200 MiB",
        f"{wasserstein['milliseconds'] / 1000:.2g} s, {wasserstein['memory_mib']:.3g} MiB",
        bool(wasserstein["milliseconds"] < 1000 and wasserstein["memory_mib"] < 200),
    )
    rank = metrics[(metrics["metric"] == "effective_rank") & (metrics["implementation"] != OURS)]
    fastest = rank.sort_values("ratio").iloc[0]
    yield Target(
        f"`effective_rank` of {samples:,} embeddings: not slower than a plain SVD",
        f"{fastest['implementation']} takes {fastest['ratio']:.3g} times as long",
        bool(fastest["ratio"] >= 1),
    )


def ratio(row: pd.Series) -> str:
    """Format median and quartiles, as in ``3.1 (3.0 to 3.2)``."""
    if row["implementation"] == OURS:
        return "1"
    return f"{row['ratio']:.3g} ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})"


def loss_table(losses: pd.DataFrame) -> str:
    """Tabulate time, ratio and memory of each implementation at the smallest and the largest batch size."""
    sizes = sorted({losses["batch_size"].min(), losses["batch_size"].max()})
    rows = []
    for (loss, implementation), part in losses.groupby(["loss", "implementation"], sort=False):
        cells = {"loss": LOSS_NAMES[str(loss)], "implementation": implementation}
        for size in sizes:
            row = part[part["batch_size"] == size].iloc[0]
            ran = row["status"] == "ok"
            cells[f"ms, M = {size}"] = f"{row['milliseconds']:.3g}" if ran else row["status"]
            cells[f"time / ours, M = {size}"] = ratio(row) if ran else ""
            cells[f"MiB, M = {size}"] = f"{row['memory_mib']:.3g}" if ran else ""
        rows.append(cells)
    return markdown(pd.DataFrame(rows))


def metric_table(metrics: pd.DataFrame) -> str:
    """Tabulate time, ratio, memory and value of each implementation of each metric."""
    return markdown(
        pd.DataFrame(
            {
                "metric": "`" + metrics["metric"] + "`",
                "implementation": metrics["implementation"],
                "ms": metrics["milliseconds"].map("{:.3g}".format),
                "time / ours": metrics.apply(ratio, axis=1),
                "MiB": metrics["memory_mib"].map("{:.3g}".format),
                "value": metrics["value"].map("{:.4g}".format),
            }
        )
    )


def markdown(table: pd.DataFrame) -> str:
    """Return a Markdown table without the index."""
    return table.to_markdown(index=False, disable_numparse=True)


@mpl.rc_context(looks.RC)
def draw(losses: pd.DataFrame, column: str, label: str) -> Figure:
    """Plot `column` against the batch size on log axes, with a panel for each loss and a line per implementation."""
    names = in_order(losses["loss"], LOSS_NAMES)
    columns = min(len(names) + 1, looks.MAX_COLUMNS)
    lines = -(-(len(names) + 1) // columns)
    sizes = list(losses["batch_size"])
    figure = Figure(figsize=(looks.TEXT_WIDTH, 0.3 + 1.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel, name in zip(axes, names, strict=False):
        for implementation, part in losses[losses["loss"] == name].groupby("implementation", sort=False):
            look = LOOKS[str(implementation)]
            panel.plot(part["batch_size"], part[column], look.marker, color=look.colour, linestyle=look.dash)
        panel.set_title(LOSS_NAMES[name])
        panel.set_xlabel("batch size $M$")
        panel.set_yscale("log")
        looks.log_ticks(panel, sizes, base=2)
        panel.tick_params(axis="x", labelbottom=True, labelrotation=45)
    for index in range(0, len(names), columns):
        axes[index].set_ylabel(label)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    shown = [LOOKS[name] for name in ORDER if name in set(losses["implementation"])]
    handles = [Line2D([], [], label=e.name, color=e.colour, marker=e.marker, linestyle=e.dash) for e in shown]
    axes[len(names)].legend(handles=handles, loc="center left", fontsize=6.5)
    return figure


PAGE = """\
# Speed and memory

`make benchmark` installs the peers, measures everything on this page again and rewrites it. The last section names the
machine and how long it took.

## Targets

M is the number of positive pairs, the embedding dimension is 128, numbers are float32.

{targets}

## Losses

Forward and backward pass, two views. `time / ours` is the time of an implementation over that of dhel-kcl: median, and
quartiles in parentheses. MiB is the peak memory above the inputs.

{losses}

![Time against batch size]({folder}/losses_time.png)

![Memory against batch size]({folder}/losses_memory.png)

All batch sizes are in [losses.csv]({folder}/losses.csv).

## Metrics

{samples:,} embeddings of dimension 128.

{metrics}

The value of the public formula depends on its random draw.

## How to read this

- **{ours}** is this package. **{plain}** is the textbook formula in a few lines of PyTorch: a Gram matrix and its
  logsumexp, or a kernel of it. **{public}** is the way in which the paper's repository computes the loss or metric.
  Both are written from the definitions, in `benchmarks/implementations.py` and `benchmarks/metrics.py`. **{lightly}**
  and **{metric_learning}** are the libraries, at their defaults except for the temperature; InfoNCE with the latter
  is the mean of both directions. Lightly has no InfoNCE whose negatives are the batch's other view, and neither has
  DHEL or KCL.
- **{compiled}** is the plain formula compiled with `dynamic=True`; the compilation itself is not timed. It is shown
  but does not count as a peer in the targets, because it is a tool to apply rather than an implementation to install.
- All implementations of a loss are given the same views and hyperparameters. Before any is timed, its value must
  agree with ours to {value_tolerance:.5f}, and its gradient to {gradient_tolerance:.4f} of the largest entry; one that
  does not is reported as "another value". `losses.csv` has the differences.
- Time: all implementations of a loss run in one process, once each per round and in random order. A ratio is taken
  within a round, so that a machine that slows down slows all of them. Times differ between machines far more than
  ratios do.
- Memory: each implementation runs in a process of its own. After one call to warm up, the freed heap is returned to
  the system, the high-water mark of resident memory is reset, and its rise during a second call is read. The two
  gradients are part of it: 8 MiB at M = 8192.
- An implementation that would take more than {limit} GiB is stopped and reported as such.

## Machine

{machine}
"""


def main(
    measurements: Annotated[Path, typer.Argument(help="Folder of the CSV files.")] = Path("docs/benchmarks"),
) -> None:
    """Write the figures to the folder of the measurements, and the page next to the folder as FOLDER.md."""
    missing = [name for name in ("losses.csv", "metrics.csv", "machine.json") if not (measurements / name).exists()]
    if missing:
        raise typer.BadParameter(f"{measurements} lacks {', '.join(missing)}; `make benchmark` measures everything")
    losses = pd.read_csv(measurements / "losses.csv")
    metrics = pd.read_csv(measurements / "metrics.csv")
    machine = json.loads((measurements / "machine.json").read_text(encoding="utf-8"))
    for column, label in (("milliseconds", "time (ms)"), ("memory_mib", "memory (MiB)")):
        name = {"milliseconds": "time", "memory_mib": "memory"}[column]
        with atomic_path(measurements / f"losses_{name}.png") as path:
            draw(losses, column, label).savefig(path, dpi=200, metadata={"Software": None})
    aims = pd.DataFrame(
        {"target": aim.aim, "measured": aim.measured, "met": "yes" if aim.met else "no"}
        for aim in targets(losses, metrics)
    )
    page = PAGE.format(
        targets=markdown(aims),
        losses=loss_table(losses),
        metrics=metric_table(metrics),
        machine=markdown(pd.DataFrame(machine.items(), columns=["", "value"])),
        folder=measurements.name,
        samples=metrics["samples"].iloc[0],
        ours=OURS,
        plain=PLAIN,
        public=PUBLIC,
        lightly=LIGHTLY,
        metric_learning=METRIC_LEARNING,
        compiled=COMPILED,
        limit=MEMORY_LIMIT_GIB,
        value_tolerance=VALUE_TOLERANCE,
        gradient_tolerance=GRADIENT_TOLERANCE,
    )
    with atomic_path(measurements.with_suffix(".md")) as path:
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
