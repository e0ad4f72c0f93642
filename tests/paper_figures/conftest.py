"""Synthetic tidy tables: what the pipeline collects and the theory stage computes, without either."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dhel_kcl.data.corrupt import SEVERITIES
from dhel_kcl.experiment.config import StudyConfig
from dhel_kcl.paper.render import RESULT_COLUMNS, THEORY_COLUMNS
from dhel_kcl.results.claims import judge

SCRIPTS = Path(__file__).parent.parent.parent / "paper_figures"
TEMPERATURE_LOSSES = ("infonce", "ntxent", "dcl", "dhel")
KERNEL_SCALES = {"kcl_gaussian": "t", "kcl_log": "t", "kcl_imq": "c"}


class ResultsBuilder:
    """Collects tidy rows run by run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def run(
        self,
        dataset: str = "cifar10",
        loss: str = "dhel",
        batch_size: int = 256,
        seed: int = 0,
        epochs: int = 200,
        width: float = 1.0,
        train_images: int = 50_000,
        backbone: str = "resnet18",
        **hyperparameters: float,
    ) -> Callable[..., None]:
        """Declare a run; the function returned adds a value to it."""
        values = "-".join(f"{key}{value:g}" for key, value in hyperparameters.items())
        nan = dict.fromkeys(("temperature", "t", "c", "gamma"), math.nan)
        run = {
            "run": f"{dataset}-{loss}-{values}-bs{batch_size}-seed{seed}",
            "dataset": dataset,
            "backbone": backbone,
            "width": width,
            "epochs": epochs,
            "train_images": train_images,
            "loss": loss,
            **nan,
            **hyperparameters,
            "learning_rate": 1.0,
            "batch_size": batch_size,
            "seed": seed,
        }

        def add(metric: str, value: float, representation: str = "", x: float = math.nan, corruption: str = "") -> None:
            source = {"source": f"results/{run['run']}/{metric}.json", "source_sha256": "0" * 64}
            place = {"representation": representation, "corruption": corruption, "x": x}
            self.rows.append({**run, "metric": metric, **place, "value": value, "test_hits": None, **source})

        return add

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)[RESULT_COLUMNS]


def whole_experiment(
    datasets: tuple[str, ...] = ("cifar10", "cifar100"),
    losses: tuple[str, ...] = (*TEMPERATURE_LOSSES, *KERNEL_SCALES),
    batch_sizes: tuple[int, ...] = (32, 256),
    temperatures: tuple[float, ...] = (0.1, 0.5),
    scales: tuple[float, ...] = (1.0, 2.0),
    gammas: tuple[float, ...] = (4.0, 16.0),
    seeds: tuple[int, ...] = (0, 1),
    epochs: int = 5,
    dimensions: tuple[int, int] = (24, 16),
    diverged: Callable[..., bool] = lambda **_: False,
) -> pd.DataFrame:
    """Every metric of a grid of runs; runs for which `diverged` holds have training curves only."""
    builder = ResultsBuilder()
    for dataset, loss, batch_size, seed in itertools.product(datasets, losses, batch_sizes, seeds):
        if loss in KERNEL_SCALES:
            grid = [{KERNEL_SCALES[loss]: scale, "gamma": gamma} for scale in scales for gamma in gammas]
        else:
            grid = [{"temperature": temperature} for temperature in temperatures]
        for hyperparameters in grid:
            add = builder.run(dataset, loss, batch_size, seed, epochs, **hyperparameters)
            random = np.random.default_rng(len(builder.rows))
            failed = diverged(dataset=dataset, loss=loss, batch_size=batch_size, seed=seed, **hyperparameters)
            _train(add, random, loss, epochs, 1 if failed else epochs)
            add("diverged", float(failed), x=epochs)
            if not failed:
                _evaluate(add, random, loss, batch_size, hyperparameters, dataset)
                for representation, dimension in zip("hz", dimensions, strict=True):
                    _analyse(add, random, representation, dimension, loss, batch_size)
    return builder.table()


def _train(add: Callable[..., None], random: np.random.Generator, loss: str, epochs: int, reached: int) -> None:
    scale = 20.0 if loss == "kcl_log" else 2.0
    for epoch in range(1, reached + 1):
        progress = 1 - math.exp(-3 * epoch / epochs)
        alignment = -scale * progress + 0.02 * random.normal()
        energy = scale * (1.5 - 0.4 * progress)
        add("training_alignment", alignment, x=epoch)
        add("training_energy", energy, x=epoch)
        add("training_loss", alignment + energy, x=epoch)
        add("learning_rate", 1 - epoch / epochs, x=epoch)
        for representation in "hz":
            add("training_effective_rank", 10 * progress + random.normal(), representation, epoch)
        add("images_per_second", 900.0, x=epoch)


def _evaluate(
    add: Callable[..., None],
    random: np.random.Generator,
    loss: str,
    batch_size: int,
    hyperparameters: dict[str, float],
    dataset: str,
) -> None:
    robust = loss == "dhel" or loss.startswith("kcl")
    distance = sum(
        abs(math.log(value / (0.3 if key == "temperature" else 4))) for key, value in hyperparameters.items()
    )
    accuracy = {"cifar10": 0.86, "cifar100": 0.57, "imagenet100": 0.7}.get(dataset, 0.78)
    accuracy -= (0.008 if robust else 0.02) * (distance + abs(math.log2(batch_size / 256))) + 0.004 * random.normal()
    add("validation_top1", accuracy + 0.004 * random.normal())
    add("linear_top1", accuracy, "h")
    add("linear_top5", 0.5 + accuracy / 2, "h")
    add("knn_top1", accuracy - 0.03, "h")
    add("test_images", 10_000, "h")
    for corruption, severity in itertools.product(SEVERITIES, range(6)):
        add("corrupted_top1", accuracy - 0.01 * len(corruption) / 4 * severity, "h", severity, corruption)


def _analyse(
    add: Callable[..., None],
    random: np.random.Generator,
    representation: str,
    dimension: int,
    loss: str,
    batch_size: int,
) -> None:
    strength = 0.6 + 0.08 * len(loss) / 4 + 0.02 * random.normal()
    add("alignment", 0.3 * strength + 0.02 * random.normal(), representation)
    add("uniformity", -3.5 * strength + 0.1 * random.normal(), representation)
    add("wasserstein_uniformity", 0.05 / strength, representation)
    add("rank", dimension - 1, representation)
    add("effective_rank", dimension * 0.7 * strength * (1 - 4 / batch_size), representation)
    add("embedding_dim", dimension, representation)
    for index in range(1, dimension + 1):
        add("singular_value", 0.2 * math.exp(-8 * (index / dimension) ** 2 / strength) / index, representation, index)
    centres = np.linspace(-1, 1, 41)[:-1] + 0.025
    centre, width = (0.25, 0.25) if representation == "h" else (0.0, 1.2 * strength / math.sqrt(dimension))
    for x in centres:
        density = math.exp(-(((x - centre) / width) ** 2) / 2) / width / math.sqrt(2 * math.pi)
        add("similarity_density", density, representation, float(x))
    for pairs in (16, 64, 256, 1024, 4096) if representation == "z" else ():
        growth = 0.0 if loss.startswith("kcl") else math.log(2 * pairs - 1)
        value = -20.0 if loss.startswith("kcl") else growth - 3 - 2 / pairs
        add("mini_batch_loss", value + 0.01 * random.normal(), representation, pairs)
        add("mini_batch_loss_growth", growth, representation, pairs)
        add("mini_batch_loss_standard_error", 0.01, representation, pairs)


def _add_populations(add: Callable[..., None], loss: str) -> None:
    """Populations of three and eight pairs; the second start of the latter ends in a local minimum."""
    for n, m in [*itertools.product((3,), (2, 3)), *itertools.product((8,), range(2, 9))]:
        undecided = loss in ("dhel", "dcl") and m == 2 and n > 3
        beaten = loss == "ntxent" and n == 8 and m < 8
        excess = [0.5 if undecided else 1e-4 if beaten else 0.0, 2.0, 0.0 if undecided or not beaten else 1e-4]
        ends = {"mini_batch_loss": [1.0, 1.2, 1.0], "full_loss": [3 + value for value in excess]}
        full = {"mini_batch_loss_of_full_minimiser": 1.0 + 1e-5 * beaten, "full_minimum": 3.0}
        add("population", loss, m, 0, pairs=n, **ends, **full)


def whole_theory(
    dimension: int = 3, starts: int = 3, population: int = 5, batch_sizes: tuple[int, ...] = (2, 16, 128, 1024)
) -> pd.DataFrame:
    """Every metric of all checks, as if each theorem held; start 1 of the gaussian kernel is stuck."""
    rows: list[dict[str, Any]] = []

    def add(check: str, loss: str, batch_size: int, seed: int, /, **values: Any) -> None:
        scale = KERNEL_SCALES.get(loss)
        numbers = {scale: 2.0, "gamma": 1.0} if scale else {"temperature": 0.5}
        detail = next(iter(values)).split("_")[0] if check == "uniformity_of_laws" else values.get("pairs", "")
        keys = {"run": f"{check}-{loss}{detail}-bs{batch_size}-seed{seed}", "check": check, "loss": loss}
        keys |= dict.fromkeys(("temperature", "t", "c", "gamma"), math.nan) | numbers
        keys |= {"batch_size": batch_size, "embedding_dim": dimension, "seed": seed}
        for metric, content in values.items():
            numbered = enumerate(content) if isinstance(content, list) else [(math.nan, content)]
            for x, value in content.items() if isinstance(content, dict) else numbered:
                rows.append({**keys, "metric": metric, "x": float(x), "value": float(value)})

    for loss in (*TEMPERATURE_LOSSES, *KERNEL_SCALES):
        kernel = loss in KERNEL_SCALES
        for m, seed in itertools.product((dimension + 1, 2 * dimension) if kernel else (dimension + 1,), range(starts)):
            stuck = loss == "kcl_gaussian" and seed == 1
            path = [-1.5 + (0.3 if stuck else 0) + 10.0**-k for k in range(15)]
            if m == dimension + 1:
                gram = np.full((m, m), -1 / dimension) + (1 + 1 / dimension) * np.eye(m)
            else:
                gram = np.kron(np.eye(dimension), [[1, -1], [-1, 1]])
            end = {"alignment": 0.4 if stuck else 1e-9, "gram": [*(gram.ravel() + 1e-7)]}
            add("minimise", loss, m, seed, loss=path, minimum=-1.5, **end, minimiser_gram=[*gram.ravel()])
        for m in range(2, population + 1):
            growth = 0 if kernel else math.log(m)
            add("mini_batches", loss, m, 0, loss=2.5 + growth - (0 if kernel else 1 / m), growth=growth)
        for m in batch_sizes:
            growth = 0 if kernel else math.log(m)
            spread = 0.1 * np.random.default_rng(m).standard_normal(8) / m
            sampled = -2 + growth + spread - spread.mean() + (0 if kernel else 1 / m)
            add("uniform", loss, m, 0, loss=[*sampled], growth=growth, asymptote=-2.0)
        _add_populations(add, loss)
        limit = {"asymptote": -2.0, "mises_fisher": {0: -2.0, 1: -1.5, 8: -0.5}}
        add("limit_functional", loss, 0, 0, **limit, sub_sphere={2: -1.0, dimension + 1: -2.0})
        for n in (8, 64):
            add("w1_of_minimisers", loss, n, 0, wasserstein=1.5 / n, random_wasserstein=3 / n)
        for m in range(2, population + 1):
            add("gradients", loss, m, 0, distance=0 if kernel else 1 / m - 1 / population)
    for law, parameters in (("sub_sphere", (2, dimension + 1)), ("point", (0, 0.5, 1)), ("antipodes", (0, 0.5, 1))):
        measures = {"wasserstein": {p: p / (dimension + 1) for p in parameters}}
        measures["uniformity"] = {p: -2.0 * p / (dimension + 1) for p in parameters}
        exact = {f"{law}_exact_{name}": values for name, values in measures.items()}
        measured = {f"{law}_{name}": values for name, values in measures.items()}
        add("uniformity_of_laws", "", 256, 0, **measured, **exact)
    return pd.DataFrame(rows)[THEORY_COLUMNS]


@pytest.fixture(scope="session")
def theory() -> pd.DataFrame:
    return whole_theory()


@pytest.fixture(scope="session")
def make_theory() -> Callable[..., pd.DataFrame]:
    return whole_theory


@pytest.fixture(scope="session")
def tables(experiment: pd.DataFrame, theory: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each tidy table by the name that scripts give it."""
    return {"results": experiment, "theory": theory, "verdicts": judge(experiment, StudyConfig())}


@pytest.fixture
def builder() -> ResultsBuilder:
    return ResultsBuilder()


@pytest.fixture(scope="session")
def experiment() -> pd.DataFrame:
    """Two data sets, seven losses, two batch sizes, two seeds; DHEL at temperature 0.1 and batch 32 diverged."""
    return whole_experiment(
        diverged=lambda **run: run["loss"] == "dhel" and run["temperature"] == 0.1 and run["batch_size"] == 32
    )


@pytest.fixture(scope="session")
def make_experiment() -> Callable[..., pd.DataFrame]:
    return whole_experiment


@pytest.fixture(scope="session")
def scripts() -> Path:
    return SCRIPTS
