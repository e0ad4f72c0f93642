"""Write the loader's measurements as a page with tables and a figure, computed from loading.csv only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import pandas as pd
import typer
from loading import FREE, LIGHTLY, OURS, STOCK, TORCHVISION
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report import Target, markdown, ratio

from dhel_kcl.files import atomic_path
from dhel_kcl.paper import looks

LOOKS = {
    OURS: looks.Look(OURS, "#cc3311", "D", "-"),
    TORCHVISION: looks.Look(TORCHVISION, "#0077bb", "s", "-"),
    LIGHTLY: looks.Look(LIGHTLY, "#332288", "o", "-"),
}
SMALL, WORKERS = 32, 2

PAGE = """# Speed of the loader

`make benchmark` measures everything on this page again and rewrites it. It cuts its images out of the two photographs
that scikit-learn ships; `python benchmarks/loading.py --small FOLDER --photographs FOLDER` takes other image folders.
The tables name the images that were used.

## Targets

With {workers} workers. Small images are {small}x{small} pixels, batches of 256, full SimCLR augmentation for CIFAR;
photographs become 224x224 pixels, batches of 32, with the augmentation for ImageNet, blur included.

{targets}

## Small images

{small_table}

## Photographs

{large_table}

![Pairs of views per second](benchmarks/loading.png)

## How to read this

- A pair is two random views of one image, ready as float32 tensors of PyTorch.
- `ours / theirs` is how many times the pairs per second of an implementation dhel-kcl makes, within the same round:
  median, and quartiles in parentheses. Each round runs every implementation once, each in a process of its own and in
  random order; the rate is taken after three batches.
- `first batch` is from making the loader to its first batch, imports excluded, with kernels compiled at set-up.
- `MiB` is the private memory of the process and its workers, above what the process had before.
- **{torchvision}** is its transforms on PIL images in PyTorch's DataLoader, **{lightly}** its SimCLR transform there.
  Both read the JPEG files; **dhel-kcl** reads a beton of the same images, raw pixels for the small ones.
- **{free}**: threads that draw random images and random keys and hand batches over as they come, without
  order, epoch, state or a check of the file. What dhel-kcl needs above this is the price of determinism.
- **{stock}**: two views without colour operations, resized without antialiasing, as uint8, which
  cannot be repeated. It shows how much of the time colour takes, and is no peer.

## Machine

{machine}
"""


def targets(loading: pd.DataFrame) -> Iterator[Target]:
    """Yield the targets at two workers, for small images and for photographs of 224 pixels."""
    rows = loading[loading["workers"] == WORKERS]
    ratios = dict(zip(zip(rows["image_size"], rows["implementation"], strict=True), rows["ratio"], strict=True))
    for size, peer, least in ((SMALL, TORCHVISION, 20), (SMALL, LIGHTLY, 15), (224, TORCHVISION, 3)):
        if (size, peer) in ratios:
            measured = ratios[size, peer]
            yield Target(
                f"{size}x{size}: at least {least} times as many pairs per second as {peer}",
                f"{measured:.3g}",
                bool(measured >= least),
            )
    if (SMALL, FREE) in ratios:
        slower = 1 / ratios[SMALL, FREE]
        yield Target(
            f"{SMALL}x{SMALL}: the {FREE} at most 1.5 times as fast", f"{slower:.3g} times as fast", bool(slower <= 1.5)
        )
    first = loading.loc[loading["implementation"] == OURS, "first_batch_seconds"].max()
    yield Target("first batch within 2 s", f"{first:.2g} s at most", bool(first < 2))


def table(loading: pd.DataFrame) -> str:
    """Return a Markdown table with one row for each measurement."""
    return markdown(
        pd.DataFrame(
            {
                "images": loading["images"],
                "pixels": loading["image_size"].astype(str),
                "workers": loading["workers"].astype(str),
                "implementation": loading["implementation"],
                "pairs per second": loading["pairs_per_second"].map("{:,.0f}".format),
                "ours / theirs": loading.apply(ratio, axis=1),
                "first batch (s)": loading["first_batch_seconds"].map("{:.2g}".format),
                "MiB": loading["memory_mib"].map("{:,.0f}".format),
            }
        )
    )


@mpl.rc_context(looks.RC)
def draw(loading: pd.DataFrame) -> Figure:
    """Plot pairs per second against workers (small images) and against the size of the views (photographs)."""
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    small = loading["image_size"] == SMALL
    _lines(left, loading[small], "workers", f"{SMALL}x{SMALL} pixels")
    _lines(right, loading[~small & (loading["workers"] == WORKERS)], "image_size", f"photographs, {WORKERS} workers")
    left.set(xlabel="workers", ylabel="pairs of views per second")
    right.set(xlabel="side of the views (pixels)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, column: str, title: str) -> None:
    for name, look in LOOKS.items():
        line = rows[rows["implementation"] == name].sort_values(column)
        axes.plot(
            line[column], line["pairs_per_second"], color=look.colour, marker=look.marker, ls=look.dash, label=name
        )
    axes.set(title=title, yscale="log", xscale="log")
    ticks = sorted(rows[column].unique())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def main(
    measurements: Annotated[Path, typer.Argument(help="Folder of loading.csv.")] = Path("docs/benchmarks"),
) -> None:
    """Write loading.png to the folder of the measurements, and the page next to the folder as FOLDER_loading.md."""
    missing = [name for name in ("loading.csv", "loading_machine.json") if not (measurements / name).exists()]
    if missing:
        raise typer.BadParameter(f"{measurements} lacks {', '.join(missing)}; `make benchmark` measures everything")
    loading = pd.read_csv(measurements / "loading.csv")
    machine = json.loads((measurements / "loading_machine.json").read_text(encoding="utf-8"))
    with atomic_path(measurements / "loading.png") as path:
        draw(loading).savefig(path, dpi=200, metadata={"Software": None})
    aims = pd.DataFrame(
        {"target": aim.aim, "measured": aim.measured, "met": "yes" if aim.met else "no"} for aim in targets(loading)
    )
    small = loading["image_size"] == SMALL
    page = PAGE.format(
        targets=markdown(aims),
        small_table=table(loading[small]),
        large_table=table(loading[~small]) if (~small).any() else "Not measured.",
        machine=markdown(pd.DataFrame(machine.items(), columns=["", "value"])),
        workers=WORKERS,
        small=SMALL,
        torchvision=TORCHVISION,
        lightly=LIGHTLY,
        free=FREE,
        stock=STOCK,
    )
    with atomic_path(measurements.with_name(f"{measurements.name}_loading.md")) as path:
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
