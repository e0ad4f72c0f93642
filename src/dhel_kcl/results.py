"""One tidy table of everything that was measured: a row for each run, metric and position."""

import math
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from dhel_kcl import declarations
from dhel_kcl.artifacts import atomic_path, read_json, sha256_file
from dhel_kcl.config import ExperimentConfig, Run
from dhel_kcl.data.beton import open_beton
from dhel_kcl.errors import InputError
from dhel_kcl.layout import Layout
from dhel_kcl.stages import run_stages

_TRAINING_METRICS = {
    "loss": ("training_loss", ""),
    "alignment": ("training_alignment", ""),
    "energy": ("training_energy", ""),
    "gradient_norm": ("gradient_norm", ""),
    "learning_rate": ("learning_rate", ""),
    "knn_top1": ("training_knn_top1", "h"),
    "effective_rank_h": ("training_effective_rank", "h"),
    "effective_rank_z": ("training_effective_rank", "z"),
}
"""Columns of a training log: the metric, and the representation that it is measured on."""

_THROUGHPUT_METRICS = ("images_per_second", "waiting_for_data")
_COLUMNS = ("metric", "representation", "corruption", "x", "value")

Measurement = dict[str, Any]


def collect(config: ExperimentConfig, layout: Layout) -> pd.DataFrame:
    """Read what every run of the experiment measured.

    Returns:
        Columns: the run's keys (``run``, ``dataset``, ``backbone``, ``width``, ``epochs``,
        ``train_images``, ``loss``, every hyperparameter of the losses (NaN where the run's loss has
        no such one), ``learning_rate``, ``batch_size``, ``seed``); ``metric``, ``representation``
        (``h``, ``z`` or empty); ``corruption`` (of the test images, or empty); ``x``, the position on
        a curve (NaN for a scalar); ``value``;
        ``source``, the file that holds the value, relative to the experiment's folder; and its
        ``source_sha256``.

    Raises:
        InputError: a file is missing or damaged.
    """
    train_images = {
        dataset.name: open_beton(layout.beton(dataset.name, dataset.data.pretrain_split)).num_images
        for dataset in config.datasets
    }
    parts = []
    for run in config.runs.values():
        keys = _run_keys(run, train_images[run.dataset.name])
        for source in layout.measurements(run.id, run_stages(config)):
            origin = {"source": str(source.relative_to(layout.root)), "source_sha256": sha256_file(_existing(source))}
            measurements = _table_of(source)
            parts.append(pd.DataFrame(keys, index=measurements.index).join(measurements.assign(**origin)))
    return pd.concat(parts, ignore_index=True)


def training_rows(run: Run, log: Path) -> pd.DataFrame:
    """What a run has logged so far, finished or not, in the columns of the results but for those of its origin.

    Raises:
        InputError: the log is not a table.
    """
    measurements = _table_of(log)
    return pd.DataFrame(_run_keys(run, train_images=0), index=measurements.index).join(measurements)


def write_results(table: pd.DataFrame, parquet: Path) -> None:
    """Write the table as Parquet and, beside it, as CSV."""
    with atomic_path(parquet.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary, index=False)


def _table_of(source: Path) -> pd.DataFrame:
    try:
        return pd.DataFrame(read_measurements(source), columns=_COLUMNS)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{source}: not what its stage writes ({reason}); delete it and run its rule again") from error


def read_measurements(source: Path) -> Iterator[Measurement]:
    """Every value in one run's file of measurements, as (metric, representation, corruption, x, value)."""
    match source.name:
        case "outcome.json":
            outcome = read_json(source)
            diverged = outcome["status"] == "diverged"
            yield _measurement("diverged", "", outcome["step"], diverged)
        case "evaluation.json" | "augmented_probe.json":
            for metric, value in read_json(source).items():
                yield _measurement(metric, "h", math.nan, value)
        case "corruptions.json":
            for corruption, accuracies in read_json(source).items():
                for severity, value in enumerate(accuracies):
                    yield _measurement("corrupted_top1", "h", severity, value, corruption)
        case "representation.json":
            for representation, content in read_json(source).items():
                for metric, value in content["scalars"].items():
                    yield _measurement(metric, representation, math.nan, value)
                for index, value in enumerate(content["singular_value"], start=1):
                    yield _measurement("singular_value", representation, index, value)
                density = content["similarity_density"]
                for x, value in zip(density["x"], density["value"], strict=True):
                    yield _measurement("similarity_density", representation, x, value)
        case "training_log.csv":
            for row in _read_csv(source):
                for column, (metric, representation) in _TRAINING_METRICS.items():
                    if not math.isnan(row[column]):
                        yield _measurement(metric, representation, row["epoch"], row[column])
        case "throughput.csv":
            for row in _read_csv(source):
                for metric in _THROUGHPUT_METRICS:
                    yield _measurement(metric, "", row["epoch"], row[metric])
        case _:
            raise ValueError(f"{source}: not a file of measurements")


def _measurement(metric: str, representation: str, x: float, value: float, corruption: str = "") -> Measurement:
    named = {"metric": metric, "representation": representation, "corruption": corruption}
    return {**named, "x": float(x), "value": float(value)}


def _run_keys(run: Run, train_images: int) -> dict[str, Any]:
    return {
        "run": run.id,
        "dataset": run.dataset.name,
        "backbone": run.dataset.encoder.backbone,
        "width": run.dataset.encoder.width,
        "epochs": run.dataset.epochs,
        "train_images": train_images,
        "loss": run.loss_label,
        **{name: run.hyperparameters.get(name, math.nan) for name in declarations.hyperparameters()},
        "learning_rate": run.learning_rate,
        "batch_size": run.batch_size,
        "seed": run.seed,
    }


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: missing; run the rule that writes it")
    return path


def _read_csv(path: Path) -> list[dict[Hashable, Any]]:
    try:
        return pd.read_csv(path).to_dict("records")
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: not a table ({error}); delete it and run its rule again") from error
