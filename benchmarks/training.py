"""Measure images per second of training steps on the CPU, against a plain loop that does the same work."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from implementations import TEMPERATURE, plain_ntxent
from loading import OURS, Case, torchvision, write_pieces
from measure import interleaved, isolated, machine, rate_ratios
from report import Target, markdown, ratio
from rich.progress import track

from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.sources import open_source
from dhel_kcl.experiment.config import ComputeConfig, DataConfig, EncoderConfig, OptimizerConfig
from dhel_kcl.files import atomic_path, write_json
from dhel_kcl.seeding import derive_seed
from dhel_kcl.training.devices import prepare_device

PLAIN = "plain PyTorch loop"
WORKERS = THREADS = 2
COLUMNS = [
    *["images", "width", "batch_size", "implementation", "rounds", "images_per_second", "ratio", "ratio_low"],
    *["ratio_high", "waiting_for_data"],
]

PAGE = """# Speed of training

`make benchmark` measures everything on this page again and rewrites it. It cuts its images out of the two photographs
that scikit-learn ships; `python benchmarks/training.py --images FOLDER` takes another folder of 32x32 images.

## Targets

{targets}

## Measured

ResNet-18 with the CIFAR stem at several widths, NT-Xent, SGD, full SimCLR augmentation, {workers} loader workers and
{threads} threads of PyTorch for both.

{table}

## How to read this

- An image is a positive pair: two views of it pass through the encoder, forward and backward, and the optimiser steps.
- `ours / theirs` is how many times the images per second of an implementation dhel-kcl trains on, within the same
  round: median, and quartiles in parentheses. Each round runs both once, each in a process of its own, in random order.
- `waiting` is the share of the time that the loop waits for its next batch.
- **{plain}**: the same network in PyTorch's default layout, torchvision's transforms in a DataLoader, the formula of
  NT-Xent by autograd, and the loss read at each step.
- **dhel-kcl**: `pretrain.train_step` on `TwoViewLoader`, channels last, as the workflow trains; reading the log every
  20 steps is not part of these few steps.

## Machine

{machine}
"""


@dataclass(frozen=True)
class Measurement:
    """One run of one implementation."""

    images_per_second: float
    waiting_for_data: float


def ours(case: Case, width: float) -> tuple[Iterator[Any], Callable[[Any], object]]:
    """Return the batches and the step of this package."""
    from dhel_kcl.data.loader import TwoViewLoader
    from dhel_kcl.losses import NTXent
    from dhel_kcl.training.encoder import build_encoder
    from dhel_kcl.training.optimizer import build_optimizer
    from dhel_kcl.training.pretrain import train_step

    loader = TwoViewLoader(
        case.beton,
        batch_size=case.batch_size,
        image_size=case.image_size,
        augmentation=case.config,
        seed=0,
        num_workers=WORKERS,
    )
    encoder = build_encoder(EncoderConfig(width=width), 0).train()
    optimizer = build_optimizer(encoder, OptimizerConfig(learning_rate=0.1), 0.1)
    loss = NTXent(TEMPERATURE)

    def epochs() -> Iterator[Any]:
        while True:
            yield from loader

    return epochs(), lambda batch: train_step(encoder, loss, optimizer, batch[0], batch[1])


def plain(case: Case, width: float) -> tuple[Iterator[Any], Callable[[Any], object]]:
    """Return the batches and the step of a plain loop."""
    from dhel_kcl.training.encoder import build_encoder

    encoder = build_encoder(EncoderConfig(width=width), 0).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1, momentum=0.9, weight_decay=1e-6)

    def step(batch: Any) -> float:
        _, z = encoder(torch.cat(batch[:2]))
        loss = plain_ntxent(*z.chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return torchvision(case, WORKERS), step


IMPLEMENTATIONS = {OURS: ours, PLAIN: plain}


def measure(implementation: str, case: Case, width: float, steps: int) -> Measurement:
    """Time `steps` steps after two warm-up steps."""
    torch.set_num_threads(THREADS)
    if implementation == OURS:  # with deterministic algorithms, as the workflow trains
        prepare_device(ComputeConfig(device="cpu", threads=THREADS))
    batches, step = IMPLEMENTATIONS[implementation](case, width)
    for _ in range(2):
        step(next(batches))
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return Measurement(steps * case.batch_size / seconds, waited / seconds)


def compare(case: Case, width: float, rounds: int, steps: int) -> pd.DataFrame:
    """Return the columns of training.csv for one width; each round runs both implementations once, in random order."""
    seed = derive_seed(0, "order")
    runs = interleaved(IMPLEMENTATIONS, rounds, lambda name: isolated(measure, name, case, width, steps), seed)
    rates = pd.DataFrame({name: [run.images_per_second for run in of_name] for name, of_name in runs.items()})
    waits = pd.DataFrame({name: [run.waiting_for_data for run in of_name] for name, of_name in runs.items()})
    table = rate_ratios(rates, OURS).assign(images_per_second=rates.median(), waiting_for_data=waits.median())
    table = table.rename_axis("implementation").reset_index()
    return table.assign(images=case.images, width=width, batch_size=case.batch_size)[COLUMNS]


def targets(training: pd.DataFrame) -> Iterator[Target]:
    """Yield the targets: 1.25 times the images per second of the plain loop at each width, and hardly any waiting."""
    for width, rows in training.groupby("width"):
        measured = float(rows.loc[rows["implementation"] == PLAIN, "ratio"].iloc[0])
        aim = f"width {width:g}: at least 1.25 times as many images per second as a {PLAIN}"
        yield Target(aim, f"{measured:.3g}", measured >= 1.25)
    waiting = float(training.loc[training["implementation"] == OURS, "waiting_for_data"].max())
    yield Target("less than 2% of the time waiting for data", f"{100 * waiting:.2g}% at most", waiting < 0.02)


def page(training: pd.DataFrame, facts: dict[str, str]) -> str:
    """Return the page of the measurements as Markdown."""
    aims = [
        {"target": aim.aim, "measured": aim.measured, "met": "yes" if aim.met else "no"} for aim in targets(training)
    ]
    table = pd.DataFrame(
        {
            "images": training["images"],
            "width": training["width"].map("{:g}".format),
            "batch size": training["batch_size"].astype(str),
            "implementation": training["implementation"],
            "images per second": training["images_per_second"].map("{:,.1f}".format),
            "ours / theirs": training.apply(ratio, axis=1),
            "waiting": training["waiting_for_data"].map("{:.2%}".format),
        }
    )
    return PAGE.format(
        targets=markdown(pd.DataFrame(aims)),
        table=markdown(table),
        machine=markdown(pd.DataFrame(facts.items(), columns=["", "value"])),
        workers=WORKERS,
        threads=THREADS,
        plain=PLAIN,
    )


def main(
    output: Annotated[Path, typer.Option(help="Folder for training.csv; the page goes next to the folder.")] = Path(
        "docs/benchmarks"
    ),
    images: Annotated[
        Path | None, typer.Option(help="{train,test}/<class>/*.jpg of 32x32 pixels; default: pieces of photographs.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="One short round at a small width: under a minute.")] = False,
) -> None:
    """Measure each width, and write training.csv and the page."""
    start = time.monotonic()
    batch_size = 32 if quick else 256
    with tempfile.TemporaryDirectory() as temporary:
        name = "pieces of two photographs, 32x32" if images is None else images.name
        images = images or write_pieces(Path(temporary) / "images", 600 if quick else 6000, 32)
        beton = Path(temporary) / "images.beton"
        write_beton(open_source(DataConfig(kind="imagefolder", root=images), "train"), beton, num_workers=2)
        case = Case(name, images, beton, 32, batch_size, "simclr_cifar")
        plan = [(0.0625, 1, 2)] if quick else [(0.25, 3, 8), (1.0, 3, 2)]
        training = pd.concat([compare(case, *each) for each in track(plan, "measuring")])
    typer.echo(training.to_string(index=False, float_format="{:.4g}".format))
    with atomic_path(output / "training.csv") as path:
        training.to_csv(path, index=False, float_format="%.6g")
    minutes = (time.monotonic() - start) / 60
    versions = {package: version(package) for package in ("torchvision", "ffcv")}
    facts = {**machine(), **versions, "measuring the training": f"{minutes:.0f} minutes"}
    write_json(output / "training_machine.json", facts)
    written = (
        pd.read_csv(output / "training.csv"),
        json.loads((output / "training_machine.json").read_text(encoding="utf-8")),
    )
    with atomic_path(output.with_name(f"{output.name}_training.md")) as path:
        path.write_text(page(*written), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
