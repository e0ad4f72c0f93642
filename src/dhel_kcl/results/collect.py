"""Collect all measurements in one tidy table: a row for each run, metric and position."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from dhel_kcl import declarations
from dhel_kcl.data.beton import open_beton
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import Run
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.manifest import refuse_future
from dhel_kcl.jobs.stages import measurements, run_stages
from dhel_kcl.results.measurements import (
    AugmentedProbe,
    Corruptions,
    Evaluation,
    RepresentationOfZ,
    Representations,
    read_measured,
    read_throughput,
    read_training_log,
)
from dhel_kcl.results.table import write_results
from dhel_kcl.training.outcome import read_outcome

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
"""For each column of a training log, its metric and the representation on which it is measured."""

_THROUGHPUT_METRICS = ("images_per_second", "waiting_for_data")
_COLUMNS = ("metric", "representation", "corruption", "x", "value", "test_hits")

Measurement = dict[str, Any]


def collect(experiment: Experiment) -> pd.DataFrame:
    """Read the measurements of every run of the experiment.

    Returns:
        Columns: the run's keys (``run``, ``dataset``, ``backbone``, ``width``, ``epochs``,
        ``train_images``, ``loss``, every hyperparameter of the losses (NaN if the run's loss does not
        have it), ``learning_rate``, ``batch_size``, ``seed``); ``metric``, ``representation``
        (``h``, ``z`` or empty); ``corruption`` (of the test images, or empty); ``x``, the position on
        a curve, for ``knn_top1`` the number of neighbours (NaN for a scalar); ``value``; ``test_hits``, in the row of
        ``linear_top1`` alone: which labelled test images the linear probe classified correctly, packed by
        `evaluation.hits`, in the order of the test beton; ``source``, the file that holds the value, relative to the
        experiment's folder; and its ``source_sha256``. If a file gives a reason why a representation or a part of it
        could not be measured, there is a row of the metric ``not_measured`` with value 1.

    Raises:
        InputError: a file is missing or damaged, or the file of a finished run is empty.
    """
    config, layout = experiment.config, experiment.layout
    train_images = {
        dataset.name: open_beton(layout.beton(dataset.name, dataset.data.pretrain_split)).num_images
        for dataset in config.datasets
    }
    parts = []
    for run in config.runs.values():
        keys = _run_keys(run, train_images[run.dataset.name])
        diverged = read_outcome(layout.outcome(run.id)).diverged
        sources = measurements(layout, run.id, run_stages(config))
        of_training = measurements(layout, run.id, ("pretrain",))
        for source in sources:
            origin = {"source": str(source.relative_to(layout.root)), "source_sha256": sha256_file(_existing(source))}
            measured = _table_of(source)
            if problem := _contradiction(measured, run, diverged, source in of_training):
                raise InputError(f"{source}: {problem}; delete it and run its rule again")
            parts.append(pd.DataFrame(keys, index=measured.index).join(measured.assign(**origin)))
    return pd.concat(parts, ignore_index=True)


def _contradiction(measured: pd.DataFrame, run: Run, diverged: bool, of_training: bool) -> str | None:
    """Return why a file of measurements contradicts the way in which the run ended, or None if it does not."""
    if measured.empty:
        return None if diverged else "holds nothing, but the run finished"
    if not of_training:
        return "holds measurements, but the run diverged" if diverged else None
    logged, most = measured.loc[measured["metric"] == "training_loss", "x"], run.dataset.epochs
    if not logged.empty and (len(logged) > most or (len(logged) < most and not diverged)):
        return f"has {len(logged)} epochs, but the run {'has' if diverged else 'finished'} {most}"
    return None


def training_rows(run: Run, log: Path) -> pd.DataFrame:
    """Return what a run, finished or not, has logged so far, with the columns of the results except the source.

    Raises:
        InputError: the log cannot be read as a table.
    """
    logged = _table_of(log)
    return pd.DataFrame(_run_keys(run, train_images=0), index=logged.index).join(logged)


def _table_of(source: Path) -> pd.DataFrame:
    return pd.DataFrame(read_measurements(source), columns=_COLUMNS).astype({"test_hits": "str"})


def read_measurements(source: Path) -> Iterator[Measurement]:
    """Yield every value in one run's file of measurements as a mapping of `_COLUMNS`.

    Raises:
        InputError: the file is missing or damaged.
    """
    match source.name:
        case "outcome.json":
            outcome = read_outcome(source)
            yield _measurement("diverged", "", outcome.step, outcome.diverged)
        case "evaluation.json":
            evaluation = read_measured(source, Evaluation)
            for metric, value in evaluation.values():
                hits = evaluation.test_hits if metric == "linear_top1" else None
                yield _measurement(metric, "h", math.nan, value, test_hits=hits)
            for neighbours, value in (evaluation.knn_top1 or {}).items():
                yield _measurement("knn_top1", "h", int(neighbours), value)
        case "augmented_probe.json":
            for metric, value in read_measured(source, AugmentedProbe).values():
                yield _measurement(metric, "h", math.nan, value)
        case "corruptions.json":
            of_corruptions = read_measured(source, Corruptions)
            for corruption, accuracies in of_corruptions.accuracies():
                for severity, value in enumerate(accuracies):
                    yield _measurement("corrupted_top1", "h", severity, value, corruption)
            if of_corruptions.not_measured is not None:
                yield _measurement("not_measured", "h", math.nan, 1)
        case "representation.json":
            for representation, content in read_measured(source, Representations).contents():
                if content.scalars is None or content.singular_value is None:
                    yield _measurement("not_measured", representation, math.nan, 1)
                    continue
                for metric, value in content.scalars.model_dump().items():
                    yield _measurement(metric, representation, math.nan, value)
                for index, value in enumerate(content.singular_value, start=1):
                    yield _measurement("singular_value", representation, index, value)
                if isinstance(content, RepresentationOfZ) and (density := content.similarity_density) is not None:
                    for x, value in zip(density.x, density.value, strict=True):
                        yield _measurement("similarity_density", representation, x, value)
                if isinstance(content, RepresentationOfZ) and (curve := content.mini_batch_loss) is not None:
                    of_suffix = {"": curve.value, "_standard_error": curve.standard_error, "_growth": curve.growth}
                    for suffix, values in of_suffix.items():
                        for x, value in zip(curve.x, values or (), strict=values is not None):
                            yield _measurement(f"mini_batch_loss{suffix}", representation, x, value)
        case "training_log.csv":
            for row in read_training_log(source):
                for column, (metric, representation) in _TRAINING_METRICS.items():
                    if not math.isnan(row[column]):
                        yield _measurement(metric, representation, row["epoch"], row[column])
        case "throughput.csv":
            for row in read_throughput(source):
                for metric in _THROUGHPUT_METRICS:
                    yield _measurement(metric, "", row["epoch"], row[metric])
        case _:
            raise ValueError(f"{source}: not a file of measurements")


def _measurement(
    metric: str, representation: str, x: float, value: float, corruption: str = "", test_hits: str | None = None
) -> Measurement:
    named = {"metric": metric, "representation": representation, "corruption": corruption}
    return {**named, "x": float(x), "value": float(value), "test_hits": test_hits}


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


def run(job: Job) -> str:
    """Collect the measurements of every run and write them as the tidy table of results.

    Raises:
        InputError: as for `collect`.
    """
    refuse_future(path for path in job.asks_for if path.exists())
    with job.recorded():
        table = collect(job.experiment)
        write_results(table, job.writes["parquet"])
    return f"{job.writes['parquet']}: {len(table)} rows from {table['run'].nunique()} runs"
