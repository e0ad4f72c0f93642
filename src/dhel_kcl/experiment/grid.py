"""The experiment as data: a grid of data sets, losses, batch sizes and seeds, and the runs that it defines.

Each loss has its own grid of hyperparameters. Every combination is one run, named by `Run.id`. No value is rescaled or
filled in silently: the resolved configuration shows what a run uses.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import (
    STRENGTHS,
    AnalysisConfig,
    BatchSize,
    ComputeConfig,
    DatasetConfig,
    EvaluationConfig,
    Integer,
    LossGrid,
    MonitorConfig,
    Name,
    Positive,
    Seed,
    StrictModel,
    StudyConfig,
    TheoryConfig,
    built_in_augmentations,
)
from dhel_kcl.experiment.strict_yaml import read_yaml, write_yaml
from dhel_kcl.files import atomic_path, read_regular

Model = TypeVar("Model", bound=BaseModel)


def loss_label(loss: Mapping[str, float | str]) -> str:
    """Return the name of a loss with its kernel, such as ``dhel`` or ``kcl_gaussian``."""
    return "_".join(str(loss[key]) for key in ("name", "kernel") if key in loss)


class Run(StrictModel):
    """One pretraining run, fully resolved."""

    dataset: DatasetConfig
    loss: dict[str, float | str]
    batch_size: BatchSize
    learning_rate: Positive
    seed: Seed

    @property
    def loss_label(self) -> str:
        """The name of the loss with its kernel, such as ``dhel`` or ``kcl_gaussian``."""
        return loss_label(self.loss)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """The loss's numeric hyperparameters."""
        return {key: value for key, value in self.loss.items() if not isinstance(value, str)}

    @cached_property
    def id(self) -> str:
        """Name that is safe in paths, such as ``cifar10-dhel-temperature0.3-bs256-seed0``."""
        values = [f"{key}{value:g}" for key, value in self.hyperparameters.items()]
        return "-".join([self.dataset.name, self.loss_label, *values, f"bs{self.batch_size}", f"seed{self.seed}"])


class ExperimentConfig(StrictModel):
    """A whole experiment; see `config/README.md` for each key."""

    model_config = ConfigDict(defer_build=True)  # see `LossGrid`

    name: Name
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    losses: Annotated[list[LossGrid], Field(min_length=1)]
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    evaluation: EvaluationConfig = EvaluationConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    monitor: MonitorConfig = MonitorConfig()
    theory: TheoryConfig | None = TheoryConfig()
    study: StudyConfig = Field(default_factory=StudyConfig)  # later, because it reads the losses
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _augmentations_stand_where_they_are_used(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "augmentations" not in values:
            return values
        # The configurations of early releases list the built-in augmentations that their data sets refer to.
        built_in = {name: each.model_dump(mode="json") for name, each in built_in_augmentations().items()}
        listed = values["augmentations"]
        if not isinstance(listed, Mapping) or any(built_in.get(name) != each for name, each in listed.items()):
            raise ValueError(
                "augmentations: unknown key; write the mapping in place of its name, in each data set's augmentation "
                "and probe.augmentation"
            )
        return {key: value for key, value in values.items() if key != "augmentations"}

    @model_validator(mode="after")
    def _the_grid_is_possible(self) -> Self:
        _refuse_repeats("datasets", [dataset.name for dataset in self.datasets])
        _refuse_repeats("batch_sizes", self.batch_sizes)
        for number, grid in enumerate(self.losses):
            if absent := sorted(set(grid.batch_sizes or ()).difference(self.batch_sizes)):
                raise ValueError(f"losses.{number}.batch_sizes: {absent} not in the experiment's batch_sizes")
        _refuse_repeats("seeds", self.seeds)
        if theory := self.theory:
            _refuse_repeats("theory.uniform.batch_sizes", theory.uniform.batch_sizes)
            _refuse_repeats("theory.population.sizes", [(s.pairs, s.embedding_dim) for s in theory.population.sizes])
            _refuse_repeats("theory.limit_functional.concentrations", theory.limit_functional.concentrations)
            _refuse_repeats("theory.w1_of_minimisers.pairs", theory.w1_of_minimisers.pairs)
            _refuse_repeats("theory.uniformity_of_laws.embedding_dims", theory.uniformity_of_laws.embedding_dims)
        names = [dataset.name for dataset in self.datasets]
        for key in ("datasets", "baselines", "proposals"):
            _refuse_repeats(f"study.{key}", getattr(self.study, key) or [])
        for key in ("datasets", "chance"):
            if absent := sorted(set(getattr(self.study, key) or ()).difference(names)):
                raise ValueError(f"study.{key}: {absent[0]} is not in the experiment; it has {', '.join(names)}")
        for loss, centre in self.study.centres.items():
            own = [run.hyperparameters for run in self._enumerate() if run.loss_label == loss]
            strengths = {next((each[name] for name in STRENGTHS if name in each), None) for each in own}
            if own and centre not in strengths:
                raise ValueError(f"study.centres.{loss}: {centre:g} is no {' or '.join(STRENGTHS)} of its grid")
        for dataset in self.datasets:
            if self.evaluation.augmented_images and dataset.probe is None:
                raise ValueError(f"datasets.{dataset.name}.probe: missing, and evaluation.augmented_images needs it")
            rate = dataset.optimizer.learning_rate
            if isinstance(rate, dict) and (missing := [size for size in self.batch_sizes if size not in rate]):
                raise ValueError(f"datasets.{dataset.name}.optimizer.learning_rate: no value for batch sizes {missing}")
            limit = dataset.data.train_images
            if limit is not None and max(self.batch_sizes) > limit:
                raise ValueError(
                    f"batch_sizes: {max(self.batch_sizes)} is larger than the {limit} training images of {dataset.name}"
                )
        _refuse_repeats("losses", [run.id for run in self._enumerate()])
        return self

    def _enumerate(self) -> Iterator[Run]:
        for dataset, grid, batch_size, seed in itertools.product(
            self.datasets, self.losses, self.batch_sizes, self.seeds
        ):
            if batch_size not in (grid.batch_sizes or self.batch_sizes):
                continue
            entry = grid.model_dump(exclude={"batch_sizes"})
            axes = {key: value for key, value in entry.items() if isinstance(value, list)}
            fixed = {key: value for key, value in entry.items() if isinstance(value, str)}
            rate = dataset.optimizer.learning_rate
            for values in itertools.product(*axes.values()):
                yield Run.model_construct(
                    dataset=dataset,
                    loss={**fixed, **dict(zip(axes, values, strict=True))},
                    batch_size=batch_size,
                    learning_rate=rate[batch_size] if isinstance(rate, dict) else rate,
                    seed=seed,
                )

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All runs of the grid by id, in a fixed order."""
        return {run.id: run for run in self._enumerate()}

    def run(self, run_id: str) -> Run:
        """Look up one run.

        Raises:
            InputError: the grid has no such run.
        """
        try:
            return self.runs[run_id]
        except KeyError as error:
            example = next(iter(self.runs))
            raise InputError(
                f"run {run_id!r} is not in experiment {self.name!r}; one of its runs is {example}"
            ) from error

    def dataset(self, name: str) -> DatasetConfig:
        """Look up one data set.

        Raises:
            InputError: the experiment has no such data set.
        """
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        known = ", ".join(dataset.name for dataset in self.datasets)
        raise InputError(f"data set {name!r} is not in experiment {self.name!r}; it has {known}")


OneOrSeveral = BeforeValidator(lambda value: value if isinstance(value, list) else [value])


class OnlyConfig(StrictModel):
    """Part of a grid: the values that each axis is restricted to.

    The name of a loss selects all its kernels (``kcl``) or one of them (``kcl_log``).
    """

    dataset: Annotated[list[str], Field(min_length=1), OneOrSeveral] | None = None
    loss: Annotated[list[str], Field(min_length=1), OneOrSeveral] | None = None
    batch_size: Annotated[list[Integer], Field(min_length=1), OneOrSeveral] | None = None
    seed: Annotated[list[Integer], Field(min_length=1), OneOrSeveral] | None = None

    def of(self, config: ExperimentConfig) -> ExperimentConfig:
        """Return the experiment with only the selected runs; no trace of the others remains.

        Raises:
            ValueError: a value is not in the grid, or no run is left.
        """
        labels = {name for grid in config.losses for name in _names_of_loss(grid)}
        there: dict[str, list[Any]] = {
            "dataset": [dataset.name for dataset in config.datasets],
            "loss": sorted(labels),
            "batch_size": config.batch_sizes,
            "seed": config.seeds,
        }
        for axis, known in there.items():
            if absent := [value for value in getattr(self, axis) or () if value not in known]:
                raise ValueError(f"{axis}: {absent} not in the experiment; it has {', '.join(map(str, known))}")
        sizes = [size for size in config.batch_sizes if size in (self.batch_size or config.batch_sizes)]
        losses = []
        for grid in config.losses:
            own = [size for size in grid.batch_sizes or sizes if size in sizes]
            if own and (self.loss is None or _names_of_loss(grid) & set(self.loss)):
                losses.append(grid.model_copy(update={"batch_sizes": own if grid.batch_sizes else None}))
        if not losses:
            raise ValueError("leaves no run")
        kept = set(self.dataset or there["dataset"])
        judged = [name for name in config.study.datasets or () if name in kept] or None
        chance = {name: share for name, share in config.study.chance.items() if name in kept}
        parts = {
            "datasets": [each for each in config.datasets if each.name in kept],
            "study": config.study.model_copy(update={"datasets": judged, "chance": chance}),
            "losses": losses,
            "batch_sizes": sizes,
            "seeds": [seed for seed in config.seeds if seed in (self.seed or config.seeds)],
        }
        return ExperimentConfig.model_validate(config.model_copy(update=parts).model_dump(mode="json"))


def _names_of_loss(grid: LossGrid) -> set[str]:
    return {grid.name, loss_label({key: value for key, value in grid.model_dump().items() if isinstance(value, str)})}


def _refuse_repeats(key: str, values: list[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1}) if len(values) < 100 else []
    if len(set(values)) != len(values):
        raise ValueError(f"{key}: repeated values {', '.join(repeated)}".rstrip(" ,"))


def parse_config(values: Any, origin: str) -> ExperimentConfig:
    """Validate a mapping read from `origin`. Its key `only`, an `OnlyConfig`, restricts it to a part of its grid.

    Raises:
        InputError: a value is unknown, missing or impossible; the message has one line for each.
    """
    only = None
    if isinstance(values, Mapping) and "only" in values:
        only, values = values["only"], {key: value for key, value in values.items() if key != "only"}
    config = _validated(ExperimentConfig, values, origin)
    if only is None:
        return config
    try:
        return _validated(OnlyConfig, only, f"{origin}: only").of(config)
    except ValueError as error:
        raise InputError(f"{origin}: only: {error}") from error


def _validated(model: type[Model], values: Any, origin: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{origin}: {_explain(dict(problem))}" for problem in error.errors()]
        raise InputError("\n".join(lines)) from error


def _explain(problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if problem["type"] == "extra_forbidden":
        message = "unknown key; see config/README.md for the keys"
    shown = problem["input"]
    given = f" (given: {shown!r})" if isinstance(shown, str | int | float) else ""
    return f"{place}: {message}{given}" if place else message


def load_config(path: Path, only: Any = None) -> ExperimentConfig:
    """Read and validate a YAML configuration; `only`, an `OnlyConfig`, restricts it to a part of its grid.

    Raises:
        InputError: the file is missing or not YAML, or it has an unknown key or an impossible value.
    """
    return parse_yaml(_read_text(path), str(path), only)


def load_combined(paths: Sequence[Path], assignments: Sequence[str] = ()) -> ExperimentConfig:
    """Read and validate a configuration combined from several files and Snakemake's `--config`.

    Each file, and finally `--config`, replaces whole top-level keys of the files before it.

    Args:
        paths: configuration files, at least one.
        assignments: the arguments of `--config`, each ``KEY=YAML``.

    Raises:
        InputError: see `load_config`; also if a key is assigned twice.
    """
    values: dict[str, Any] = {}
    for path in paths:
        content = read_yaml(_read_text(path), str(path))
        if not isinstance(content, Mapping):
            return parse_config(content, str(path))  # raises an error
        values |= content
    assigned: dict[str, Any] = {}
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        if key in assigned:
            raise InputError(f"--config {key}: given twice; give it once")
        assigned[key] = read_yaml(text, f"--config {key}")
    return parse_config(values | assigned, " and ".join([*map(str, paths), *(["--config"] if assigned else [])]))


def _read_text(path: Path) -> str:
    try:
        return read_regular(path).decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a configuration file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error


def parse_yaml(text: str, origin: str, only: Any = None) -> ExperimentConfig:
    """Validate a configuration given as YAML or JSON text read from `origin`; `only` is as for `load_config`.

    Raises:
        InputError: the text is not YAML, or it has an unknown key or an impossible value.
    """
    values = read_yaml(text, origin)
    if only is not None and isinstance(values, Mapping):
        values = {**values, "only": only}
    return parse_config(values, origin)


def write_resolved_config(config: ExperimentConfig, path: Path) -> None:
    """Write the configuration with every default filled in, as YAML that `load_config` reads back unchanged."""
    with atomic_path(path) as temporary:
        temporary.write_text(resolved_text(config), encoding="utf-8")


def resolved_text(config: ExperimentConfig) -> str:
    """Return the text of a resolved configuration; equal configurations give equal text."""
    return write_yaml(config.model_dump(mode="json"))
