"""Estimating the cost of an experiment before it is run: runs, device hours and disk space for each data set.

Times are based on a table of measured images per second, which `benchmarks/throughput.py` can write on any machine.
"""

import functools
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from rich import box
from rich.table import Column, Table

from dhel_kcl import declarations
from dhel_kcl.data.corrupt import SEVERITIES
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ComputeConfig, DataConfig, DatasetConfig, EncoderConfig
from dhel_kcl.experiment.grid import ExperimentConfig, OnlyConfig, Run, load_config
from dhel_kcl.experiment.strict_yaml import read_scalar
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.training.encoder import Encoder

MEASURED = Path(__file__).with_name("throughput.csv")
"""The table that comes with the package."""

SHAPE = ("backbone", "stem", "width", "image_size", "storage")
COLUMNS = ("device", "precision", *SHAPE, "batch_size", "train_per_second", "encode_per_second", "gpu_memory_mib")

_TEXTS = {"device", "precision", "backbone", "stem", "storage"}
_OTHER_BYTES = 100_000  # of a run, without weights, features and TensorBoard's files; measured
_BYTES_PER_STEP = 210  # in TensorBoard's files; measured
_JPEG_BYTES = 52_700  # mean of 100 ImageNet photographs, reduced to a longer side of 500 pixels, at quality 90
_JPEG_SIDE = 500


def shape(dataset: DatasetConfig) -> dict[str, Any]:
    """Return the values of the columns `SHAPE`: all that a data set's speed depends on besides the batch size."""
    encoder = dataset.encoder
    values = (encoder.backbone, encoder.stem, encoder.width, dataset.image_size, dataset.data.storage)
    return dict(zip(SHAPE, values, strict=True))


def device_name(device: torch.device) -> str:
    """Return the name under which the table lists a device of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {psutil.cpu_count()} cores"


def load_measured(path: Path) -> pd.DataFrame:
    """Read a table of measured speeds.

    Raises:
        InputError: it is missing or malformed.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); python benchmarks/throughput.py writes one") from error
    numbers = [name for name in table if name in COLUMNS and name not in _TEXTS]
    are_numbers = all(pd.api.types.is_numeric_dtype(table[name]) for name in numbers)
    if list(table) != list(COLUMNS) or table.empty or not are_numbers:
        raise InputError(f"{path}: not a table of measured speeds; python benchmarks/throughput.py writes one")
    return table


def choose_device(measured: pd.DataFrame, device: str | None) -> str:
    """Choose the requested device, else this machine's device if it was measured, else the first one in the table.

    Raises:
        InputError: the requested device is not in the table.
    """
    known = list(measured["device"].unique())
    if device is None:
        here = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return here if here in known else str(known[0])
    if device not in known:
        raise InputError(f"device {device!r} was not measured; choose one of {', '.join(known)}")
    return device


@dataclass(frozen=True)
class Cost:
    """The cost of the runs of one data set.

    Attributes:
        dataset: the name of the data set.
        runs: the number of runs.
        pretrain_hours: hours of one device; NaN if the encoder was not measured on it.
        evaluation_hours: hours of one device for all uses of the frozen encoder; NaN likewise.
        disk_gib: disk space that the results take.
    """

    dataset: str
    runs: int
    pretrain_hours: float
    evaluation_hours: float
    disk_gib: float

    @property
    def hours(self) -> float:
        """Total hours of one device."""
        return self.pretrain_hours + self.evaluation_hours


def estimate(config: ExperimentConfig, measured: pd.DataFrame, device: str) -> list[Cost]:
    """Estimate the cost of each data set of an experiment.

    Speeds at batch sizes between the measured ones are interpolated. Fitting the linear classifiers, which runs on the
    CPU, is not counted.

    Args:
        config: the experiment.
        measured: speeds, as read by `load_measured`.
        device: one of the devices in `measured`.

    Raises:
        InputError: the number of a data set's images is unknown, because their folder does not exist yet.
    """
    costs = []
    for dataset in config.datasets:
        runs = [run for run in config.runs.values() if run.dataset.name == dataset.name]
        images = count_images(dataset.data)
        speeds = _speeds(measured[measured["device"] == device], dataset, config.compute)
        disk = _beton_bytes(config, dataset, images) + sum(_run_bytes(config, run, images) for run in runs)
        costs.append(
            Cost(
                dataset=dataset.name,
                runs=len(runs),
                pretrain_hours=sum(_pretrain_seconds(run, images, speeds) for run in runs) / 3600,
                evaluation_hours=len(runs) * _evaluation_seconds(config, dataset, images, speeds) / 3600,
                disk_gib=disk / 2**30,
            )
        )
    return costs


def count_images(data: DataConfig) -> dict[str, int]:
    """Count the images in each split of a data set.

    Raises:
        InputError: the images are needed to count them, but they are missing.
    """
    images: dict[str, int] = dict(declarations.kinds()[data.kind].constants["images"])
    if not images:
        from dhel_kcl.data.sources import open_source

        images = {split: len(open_source(data, split)) for split in data.splits}
    if data.train_images is not None:
        images[data.pretrain_split] = data.train_images
    return images


def _speeds(of_device: pd.DataFrame, dataset: DatasetConfig, compute: ComputeConfig) -> pd.DataFrame:
    fits = pd.Series(True, index=of_device.index)
    wanted = shape(dataset) | ({} if compute.precision == "auto" else {"precision": compute.precision})
    for column, value in wanted.items():
        fits &= of_device[column] == value
    return of_device[fits].sort_values("batch_size")


def _pretrain_seconds(run: Run, images: Mapping[str, int], speeds: pd.DataFrame) -> float:
    if speeds.empty:
        return math.nan
    # Speed saturates as batches grow, so it is closer to linear in the logarithm of the batch size.
    sizes = np.log2(speeds["batch_size"].to_numpy(dtype=float))
    rate = float(np.interp(math.log2(run.batch_size), sizes, speeds["train_per_second"].to_numpy(dtype=float)))
    whole_batches = images[run.dataset.data.pretrain_split] // run.batch_size
    return run.dataset.epochs * whole_batches * run.batch_size / rate


def _evaluation_seconds(
    config: ExperimentConfig, dataset: DatasetConfig, images: Mapping[str, int], speeds: pd.DataFrame
) -> float:
    train, test = images["train"], images["test"]
    encoded = train + 3 * test  # the test images are also encoded as two views
    if config.evaluation.corruptions:
        encoded += (1 + sum(map(len, SEVERITIES.values()))) * test  # the clean images too
    if config.evaluation.augmented_images and dataset.probe is not None:
        encoded += dataset.probe.epochs * train + test
    return encoded / float(speeds["encode_per_second"].median()) if len(speeds) else math.nan


def _beton_bytes(config: ExperimentConfig, dataset: DatasetConfig, images: Mapping[str, int]) -> float:
    data = dataset.data
    scale = (data.max_resolution or _JPEG_SIDE) / _JPEG_SIDE
    image = _JPEG_BYTES * scale**2 if data.storage == "jpg" else 3 * dataset.image_size**2
    layout = Layout(Path("results") / config.name)
    betons = {layout.beton(dataset.name, split): count * image for split, count in images.items()}
    return sum(beton.stat().st_size if beton.exists() else expected for beton, expected in betons.items())


def _run_bytes(config: ExperimentConfig, run: Run, images: Mapping[str, int]) -> float:
    weights, outputs = _encoder_size(run.dataset.encoder)
    total = weights + _OTHER_BYTES
    if config.compute.keep_features:
        total += 4 * outputs * (images["train"] + 3 * images["test"])
    if config.compute.tensorboard:
        steps = run.dataset.epochs * (images[run.dataset.data.pretrain_split] // run.batch_size)
        total += _BYTES_PER_STEP * steps
    return total


@functools.cache
def _encoder_size(config: EncoderConfig) -> tuple[int, int]:
    """Return the bytes of the weights, and how many numbers the encoder outputs for an image."""
    with torch.device("meta"):
        encoder = Encoder(config)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    return weights, int(encoder.backbone.output_dim) + config.embedding_dim


def describe(costs: Sequence[Cost], device: str, devices: int) -> list[Table | str]:
    """Format an estimate for printing.

    Args:
        costs: the return value of `estimate`.
        device: the device of the estimate.
        devices: how many of these devices work at the same time.
    """
    unit = "hours" if "CPU" in device else "GPU-hours"
    headings = ("runs", f"{unit} of pretraining", f"{unit} of evaluation", "disk, GiB")
    columns = [Column("data set"), *[Column(name, justify="right") for name in headings]]
    table = Table(*columns, title=f"on {device}", box=box.SIMPLE)
    for cost in costs:
        table.add_row(*_cells(cost))
    runs = sum(cost.runs for cost in costs)
    pretrain, evaluation = sum(cost.pretrain_hours for cost in costs), sum(cost.evaluation_hours for cost in costs)
    table.add_section()
    table.add_row(*_cells(Cost("all", runs, pretrain, evaluation, sum(cost.disk_gib for cost in costs))))
    unmeasured = [cost.dataset for cost in costs if math.isnan(cost.hours)]
    if unmeasured:
        advice = "python benchmarks/throughput.py CONFIG measures a machine"
        return [table, f"{', '.join(unmeasured)}: not measured on {device}; {advice}"]
    hours = (pretrain + evaluation) / devices
    time = f"{hours:.3g} hours" if hours < 48 else f"{hours / 24:,.3g} days"
    return [
        table,
        f"{time} on {devices} of them, if nothing else uses them; fitting linear classifiers on CPUs takes extra time, "
        "for which a device waits",
    ]


def _cells(cost: Cost) -> list[str]:
    amounts = (cost.pretrain_hours, cost.evaluation_hours, cost.disk_gib)
    return [
        cost.dataset,
        f"{cost.runs:,}",
        *("?" if math.isnan(amount) else f"{amount:,.3g}" if amount < 100 else f"{amount:,.0f}" for amount in amounts),
    ]


def parts(filters: Sequence[str]) -> dict[str, list[Any]]:
    """Return the part of a grid that filters such as ``loss=dhel,ntxent`` name, as values by axis."""
    values: dict[str, list[Any]] = {}
    for each in filters:
        axis, _, named = each.partition("=")
        values.setdefault(axis, []).extend(map(read_scalar, named.split(",")))
    return values


def plan(
    path: Path, only: dict[str, list[Any]], device: str | None, devices: int, measured: Path | None
) -> list[Table | str]:
    """Say what an experiment will cost, and the command that runs it.

    Args:
        path: a configuration file.
        only: the part of its grid, as `parts` gives it; nothing for all of it.
        device: a device of the table; None for this machine's, else the first.
        devices: how many of them work at the same time.
        measured: a table of measured speeds; None for the one in the package.

    Raises:
        InputError: a file cannot be read, or the grid has no such part.
    """
    config, table = load_config(path, only or None), load_measured(measured or MEASURED)
    chosen = choose_device(table, device)
    lines = describe(estimate(config, table, chosen), chosen, devices)
    restriction = f" --config 'only={OnlyConfig(**only).model_dump_json(exclude_none=True)}'" if only else ""
    resources = "" if config.compute.device == "cpu" else f" --resources gpu={devices * config.compute.runs_per_gpu}"
    if only and (there := Layout(Path("results") / config.name)).config.exists():
        lines.append(f"{there.root} exists, and keeps its tables and figures if the part has a name of its own:")
        restriction += f" name={config.name}_part"
    return [*lines, f"snakemake --cores all{resources} --configfile {shlex.quote(str(path))}{restriction}"]
