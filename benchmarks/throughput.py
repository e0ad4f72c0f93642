"""Measure images per second of training and encoding on this machine, from which `dhel-kcl plan` estimates a grid.

Every distinct encoder and image size of a configuration is trained with the package's own step and loader.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from loading import write_pieces
from measure import isolated
from rich.progress import track

from dhel_kcl.experiment.config import ComputeConfig, DataConfig, DatasetConfig
from dhel_kcl.experiment.grid import Run, load_config
from dhel_kcl.files import atomic_path
from dhel_kcl.plan import COLUMNS, MEASURED, device_name, load_measured, shape

TEMPERATURE = 0.5
MOST_IMAGES = 20_000


def _rate(steps: Iterator[int], device: torch.device, seconds: float) -> float:
    """Measure images per second over `seconds`, after three warm-up steps."""
    synchronise: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        next(steps)
    synchronise()
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or images == 0:
        images += next(steps)
        synchronise()
    return images / (time.perf_counter() - start)


def measure(run: Run, compute: ComputeConfig, batch_size: int, beton: Path, seconds: float) -> dict[str, Any]:
    """Return one row of the table: training, then encoding, with one batch size."""
    from dhel_kcl.data.loader import OneViewLoader, TwoViewLoader
    from dhel_kcl.evaluation.features import BATCH_SIZE
    from dhel_kcl.losses import NTXent
    from dhel_kcl.training.devices import prepare_device, training_dtype
    from dhel_kcl.training.encoder import build_encoder
    from dhel_kcl.training.optimizer import build_optimizer
    from dhel_kcl.training.pretrain import train_step

    dataset, device = run.dataset, prepare_device(compute)
    dtype, workers = training_dtype(compute, device), compute.loader_workers
    encoder = build_encoder(dataset.encoder, 0).to(device).train()
    optimizer = build_optimizer(encoder, dataset.optimizer, 0.1)
    loss = NTXent(TEMPERATURE)
    views = TwoViewLoader(
        beton,
        batch_size=batch_size,
        image_size=dataset.image_size,
        augmentation=run.dataset.augmentation,
        seed=0,
        num_workers=workers,
        device=device,
    )

    def training() -> Iterator[int]:
        while True:
            for view1, view2, _, _ in views:
                train_step(encoder, loss, optimizer, view1, view2, dtype=dtype)
                yield batch_size

    def encoding() -> Iterator[int]:
        images = OneViewLoader(
            beton, batch_size=BATCH_SIZE, image_size=dataset.image_size, num_workers=workers, device=device
        )
        with torch.inference_mode():
            while True:
                for image, _, _ in images:
                    encoder(image)
                    yield len(image)

    trained = _rate(training(), device, seconds)
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else float("nan")
    encoder.eval()
    encoded = _rate(encoding(), device, seconds / 2)
    measured = [device_name(device), str(dtype).removeprefix("torch."), *shape(dataset).values()]
    return dict(zip(COLUMNS, [*measured, batch_size, trained, encoded, memory], strict=True))


def _attempt(*arguments: Any) -> dict[str, Any] | None:
    try:
        return isolated(measure, *arguments)
    except torch.cuda.OutOfMemoryError as error:
        typer.echo(f"does not fit: {str(error).splitlines()[0]}", err=True)
        return None


def main(
    config: Annotated[Path, typer.Argument(help="The configuration whose encoders are measured.")] = Path(
        "config/config.yaml"
    ),
    output: Annotated[
        Path, typer.Option(help="The table; its rows for other devices and encoders are kept.")
    ] = MEASURED,
    batch_sizes: Annotated[
        list[int] | None, typer.Option("--batch-size", help="Repeatable; default: all of the configuration.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seconds: Annotated[float, typer.Option(help="Seconds of training for each row.")] = 10,
) -> None:
    """Measure this machine, and write the table that `dhel-kcl plan --measured` reads."""
    experiment = load_config(config)
    compute = ComputeConfig.model_validate({**experiment.compute.model_dump(), "device": device})
    sizes = batch_sizes or experiment.batch_sizes
    distinct = {tuple(shape(run.dataset).values()): run for run in experiment.runs.values()}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        cases = []
        for number, run in enumerate(distinct.values()):
            beton = isolated(_write_pieces, Path(temporary) / str(number), run.dataset, max(sizes), compute)
            cases += [(run, compute, size, beton, seconds) for size in sizes]
        for case in track(cases, "measuring"):
            if row := _attempt(*case):
                rows.append(row)
                typer.echo(", ".join(f"{key} {value}" for key, value in row.items()))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if output.exists():
        both = pd.concat([load_measured(output), table])
        table = both.drop_duplicates([*COLUMNS[:-3]], keep="last")
    with atomic_path(output) as path:
        table.to_csv(path, index=False, float_format="%.5g")


def _write_pieces(folder: Path, dataset: DatasetConfig, batch_size: int, compute: ComputeConfig) -> Path:
    from dhel_kcl.data.beton import write_beton
    from dhel_kcl.data.sources import open_source

    data = dataset.data
    side = dataset.image_size if data.storage == "raw" else None
    images = write_pieces(folder, min(8 * batch_size, MOST_IMAGES) + 4, side)
    beton = folder / "images.beton"
    write_beton(
        open_source(DataConfig(kind="imagefolder", root=images), "train"),
        beton,
        storage=data.storage,
        jpeg_quality=data.jpeg_quality,
        max_resolution=data.max_resolution,
        num_workers=compute.loader_workers,
    )
    return beton


if __name__ == "__main__":
    typer.run(main)
