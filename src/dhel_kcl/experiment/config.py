"""The experiment as data: what a YAML file may say, and the runs that it stands for.

A configuration is a grid: data sets x losses (each with its own hyperparameter grid) x batch sizes
x seeds. Every combination is one run, named by `Run.id`. Nothing is rescaled or filled in behind
the file's back: what a run uses is what the resolved configuration shows.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    Strict,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.strict_yaml import read_scalars, read_yaml, write_yaml
from dhel_kcl.files import atomic_path

# Bounds stand well beyond what anyone needs, and before what libraries answer with a crash, a file that cannot be
# named, or a number that another program reads as its neighbour. A Boolean or a string is no number.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Probability = Annotated[Number, Field(ge=0, le=1)]
NonNegative = Annotated[Number, Field(ge=0, le=1e6)]
Positive = Annotated[Number, Field(gt=0, le=1e9)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[Integer, Field(ge=1, le=10**9)]
BatchSize = Annotated[Integer, Field(ge=2, le=2**20)]
BatchSizeKey = Annotated[
    BatchSize, BeforeValidator(lambda key: int(key) if re.fullmatch("[1-9][0-9]*", str(key)) else key)
]
"""JSON, and hence a resolved configuration, has keys of text only."""
Epochs = Annotated[Integer, Field(ge=1, le=10**6)]
Neighbours = Annotated[Integer, Field(ge=1, le=10**6)]
Pixels = Annotated[Integer, Field(ge=1, le=4096)]
EmbeddingDim = Annotated[Integer, Field(ge=2, le=2**16)]
Seed = Annotated[Integer, Field(ge=0, lt=2**53)]  # from there on, floating point merges neighbours
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Strength = Annotated[Number, Field(ge=1e-12, le=1e12)]
OneOrMore = Annotated[list[Positive], Field(min_length=1)]


def _not_empty(path: Any) -> Any:
    if path == "":
        raise ValueError("a path is empty; for the current folder write .")
    return path


def _expanded(path: Path) -> Path:
    if any(ord(character) < ord(" ") for character in str(path)):
        raise ValueError("a path with control characters cannot be used")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"its ~ stands for no folder ({error}); write the folder out") from error


UserPath = Annotated[Path, AfterValidator(_expanded), BeforeValidator(_not_empty)]
"""A path in which `~` is the home folder; the resolved configuration has it written out."""


Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CropConfig(_Strict):
    """Random resized crop: the crop's share of the image area, its aspect ratio, the resampling filter."""

    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        if not (self.scale[0] <= self.scale[1] <= 1 and self.ratio[0] <= self.ratio[1]):
            raise ValueError("scale and ratio are [low, high] with low <= high, and scale is at most 1")
        return self


class JitterConfig(_Strict):
    """Colour jitter: strengths as in torchvision's ColorJitter, four operations in random order."""

    probability: Probability = 0.8
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.0


class BlurConfig(_Strict):
    """Gaussian blur with a standard deviation (pixels) drawn uniformly from `sigma`."""

    probability: Probability = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError("sigma is [low, high] with low <= high")
        return self


class SolarisationConfig(_Strict):
    """Inversion of the grey levels from `threshold` on (BYOL, Grill et al., NeurIPS 2020)."""

    probability: Probability = 0.2
    threshold: Annotated[Integer, Field(ge=0, le=255)] = 128


class AugmentationConfig(_Strict):
    """Random view of an image; an operation left out, or with probability 0, is not applied.

    The operations follow one another in the order of the fields.
    """

    crop: CropConfig | None = None
    shift: Annotated[Integer, Field(ge=0, le=4096)] = 0
    flip_probability: Probability = 0.0
    jitter: JitterConfig | None = None
    grayscale_probability: Probability = 0.0
    blur: BlurConfig | None = None
    solarisation: SolarisationConfig | None = None


@cache
def built_in_augmentations() -> Mapping[str, AugmentationConfig]:
    """The augmentations of `augmentations.yaml`, which gives the source of each value, by name."""
    text = resources.files("dhel_kcl.experiment").joinpath("augmentations.yaml").read_text(encoding="utf-8")
    values = read_yaml(text, "augmentations.yaml")
    return {name: AugmentationConfig.model_validate(each) for name, each in values.items()}


@cache
def built_in_protocols() -> Mapping[str, Mapping[str, Any]]:
    """The training protocols of `protocols.yaml`, which gives the source of each value, by name."""
    text = resources.files("dhel_kcl.experiment").joinpath("protocols.yaml").read_text(encoding="utf-8")
    protocols: dict[str, dict[str, Any]] = read_yaml(text, "protocols.yaml")
    return protocols


def _with_protocol(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """An unvalidated data set, with what it does not say itself from the protocol that it names, if there is one."""
    name = dataset.get("protocol")
    return {**(built_in_protocols().get(name, {}) if isinstance(name, str) else {}), **dataset}


class DataConfig(_Strict):
    """Where a data set's images come from and how its beton stores them."""

    kind: str
    root: UserPath | None = None
    class_list: UserPath | None = None
    train_images: Count | None = None
    storage: Literal["raw", "jpg"] = "raw"
    jpeg_quality: Annotated[Integer, Field(ge=1, le=100)] = 90
    max_resolution: Annotated[Integer, Field(ge=1, le=2**16 - 1)] | None = None
    on_corrupt: Literal["fail", "skip"] = "fail"

    @field_validator("kind")
    @classmethod
    def _there_is_such_a_kind(cls, kind: str) -> str:
        if kind not in declarations.kinds():
            raise ValueError(f"unknown kind; there are {', '.join(declarations.kinds())}")
        return kind

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        needs = {name: kind.constants["needs"] for name, kind in declarations.kinds().items()}
        if "root" in needs[self.kind] and self.root is None:
            raise ValueError(f"root: kind {self.kind} needs the folder that holds (or receives) the images")
        if ("class_list" in needs[self.kind]) != (self.class_list is not None):
            needing = ", ".join(name for name in needs if "class_list" in needs[name])
            raise ValueError(f"class_list: needed for kind {needing}, and only there")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the betons: STL-10 pretrains on its unlabelled images too, so it has a third one."""
        splits: tuple[str, ...] = declarations.kinds()[self.kind].constants["splits"]
        return splits

    @property
    def pretrain_split(self) -> str:
        """The split that pretraining reads."""
        return self.splits[0]


class EncoderConfig(_Strict):
    """Backbone and projector. `width` multiplies every channel count of the backbone."""

    backbone: Literal["resnet18", "resnet50"] = "resnet18"
    stem: Literal["cifar", "imagenet"] = "cifar"
    width: Annotated[Number, Field(gt=0, le=16)] = 1.0
    embedding_dim: EmbeddingDim = 128

    @model_validator(mode="after")
    def _every_layer_has_channels(self) -> Self:
        if round(64 * self.width) < 1:
            raise ValueError(f"width: {self.width} leaves no channel of 64; use at least 0.01")
        return self


class OptimizerConfig(_Strict):
    """Optimiser; `learning_rate` is one number, or one number for each batch size of the grid."""

    name: Literal["sgd", "lars"] = "sgd"
    learning_rate: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[dict[BatchSizeKey, Positive], Tag("mapping")],
        Discriminator(lambda rate: "mapping" if isinstance(rate, Mapping) else "number"),
    ]
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 1e-6
    warmup_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.01


class ProbeConfig(_Strict):
    """Linear evaluation on augmented images: SGD on the frozen encoder's features, the rate falling linearly to 0."""

    augmentation: str | AugmentationConfig
    epochs: Epochs
    batch_size: BatchSize
    learning_rate: Positive
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 0.0


class DatasetConfig(_Strict):
    """One data set with the protocol it is trained by.

    `protocol` names the entry of `protocols.yaml` that the other values come from where the file says none.
    """

    name: Name
    protocol: str | None = None
    data: DataConfig
    image_size: Pixels
    augmentation: str | AugmentationConfig
    encoder: EncoderConfig
    optimizer: OptimizerConfig
    epochs: Epochs
    probe: ProbeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _protocol_is_spelt_out(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(name := values.get("protocol"), str):
            if name not in built_in_protocols():
                raise ValueError(f"protocol: unknown {name!r}; there are {', '.join(built_in_protocols())}")
            return _with_protocol(values)
        return values

    @property
    def augmentations(self) -> dict[str, str | AugmentationConfig]:
        """The augmentations that the data set uses, by the key that says which."""
        used = {"augmentation": self.augmentation}
        return used | ({"probe.augmentation": self.probe.augmentation} if self.probe else {})


class LossGrid(_Strict):
    """A loss by name, and a list of values for each hyperparameter, as its class in `losses/` declares them.

    `batch_sizes` leaves out those of the experiment that it does not list.
    """

    model_config = ConfigDict(defer_build=True)  # the losses are looked up at the first validation, which shows errors
    name: str
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1)] | None = None

    @model_serializer(mode="wrap")
    def _all_batch_sizes_are_not_spelt_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(_any_loss()) if cls is LossGrid else handler(source)


def _any_loss() -> Any:
    """One model for each loss, and for each kernel of a loss that has one."""
    declarations.loss_titles()  # refuses what cannot be told apart
    choices = []
    for loss in declarations.losses().values():
        kernels = declarations.trainable_kernels().values() if loss.takes_kernel else ()
        models = [_model(loss, kernel) for kernel in kernels] or [_model(loss)]
        choices.append(Annotated[Union[*models], Field(discriminator="kernel")] if kernels else models[0])
    return Annotated[Union[*choices], Field(discriminator="name")]


def _model(loss: declarations.Declared, kernel: declarations.Declared | None = None) -> type[LossGrid]:
    fields: dict[str, Any] = {"name": Literal[loss.name]}
    numbers = dict(loss.hyperparameters)
    if kernel is not None:
        fields["kernel"] = Literal[kernel.name]
        numbers = {**kernel.hyperparameters, **numbers}
    for name, default in numbers.items():
        fields[name] = OneOrMore if default is None else (OneOrMore, [default])
    return create_model(f"{loss.class_name}Grid", __base__=LossGrid, **fields)


class EvaluationConfig(_Strict):
    """Linear evaluation on cached features: the grid of inverse regularisation strengths, and k-NN.

    `validation_fraction` of the training set chooses the strength; the classifier is then refitted on all of it.
    `augmented_images` adds the other protocol, each data set's `probe`; `corruptions` adds corrupted test images.
    """

    regularisation_c: Annotated[list[Strength], Field(min_length=1)] = [0.01, 0.1, 1.0, 10.0, 100.0]
    validation_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    max_iterations: Count = 200
    neighbours: Neighbours = 20
    augmented_images: Switch = False
    corruptions: Switch = False

    def validation_images(self, total: int) -> int:
        """How many of `total` training images choose the strength, as scikit-learn rounds."""
        return math.ceil(self.validation_fraction * total)


class MonitorConfig(_Strict):
    """Watching the encoder while it trains, on a random sample of the pretraining images; the test set is not read.

    Every `every_epochs` epochs: accuracy of `neighbours` nearest neighbours (nine tenths of the sample vote on the last
    tenth; not without labels), and effective rank.
    """

    every_epochs: Epochs | None = None
    images: Annotated[Integer, Field(ge=20, le=10**7)] = 5000
    neighbours: Neighbours = 20


class AnalysisConfig(_Strict):
    """Representation analysis: the number of bins of the histogram of pairwise similarities."""

    similarity_bins: Annotated[Integer, Field(ge=1, le=10_000)] = 100


class MinimiseConfig(_Strict):
    """Direct minimisation of each loss in `embedding_dim` dimensions, from `starts` random starts."""

    embedding_dim: Annotated[Integer, Field(ge=2, le=256)] = 4
    starts: Annotated[Integer, Field(ge=1, le=10_000)] = 6
    max_iterations: Count = 500


class MiniBatchesConfig(_Strict):
    """All mini-batches of a population of pairs; their number doubles with each pair."""

    population: Annotated[Integer, Field(ge=3, le=14)] = 10
    embedding_dim: EmbeddingDim = 4


class UniformConfig(_Strict):
    """Uniform embeddings: each batch size gets `embeddings` random ones, in 4 to 256 batches."""

    embedding_dim: EmbeddingDim = 16
    batch_sizes: Annotated[list[Annotated[Integer, Field(ge=2, le=2**17)]], Field(min_length=2)] = [
        2**k for k in range(1, 14)
    ]
    embeddings: Annotated[Integer, Field(ge=1, le=2**24)] = 8192


class TheoryConfig(_Strict):
    """Numerical verification of the theorems: hyperparameters of the losses, and the size of each check."""

    seed: Seed = 0
    temperature: Positive = 0.5
    t: Positive = 2.0
    c: Positive = 1.0
    gamma: Positive = 1.0
    minimise: MinimiseConfig = MinimiseConfig()
    mini_batches: MiniBatchesConfig = MiniBatchesConfig()
    uniform: UniformConfig = UniformConfig()


class ComputeConfig(_Strict):
    """What a job runs on.

    `precision`, `tf32`, `compile`, `threads` and `gpus_per_run` are part of the result: with other ones, sums round
    differently. `precision` auto is bfloat16 autocast on GPUs that have it, and float32 elsewhere.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tf32: Switch = False
    compile: Switch = False
    threads: Annotated[Integer, Field(ge=1, le=512)] = 1
    loader_workers: Annotated[Integer, Field(ge=1, le=512)] = 1
    gpus_per_run: Annotated[Integer, Field(ge=0, le=64)] = 0
    runs_per_gpu: Annotated[Integer, Field(ge=1, le=64)] = 1
    memory_mb: Annotated[Integer, Field(ge=1, le=10**8)] = 4000
    runtime_minutes: Annotated[Integer, Field(ge=1, le=366 * 24 * 60)] = 60
    keep_features: Switch = True
    checkpoint_every_steps: Count = 500
    checkpoints_kept: Annotated[Integer, Field(ge=1, le=10_000)] = 2
    log_every_steps: Annotated[Integer, Field(ge=1, le=10**6)] = 20
    tensorboard: Switch = True

    @model_validator(mode="after")
    def _a_device_is_whole_or_shared(self) -> Self:
        if self.runs_per_gpu > 1 and self.gpus_per_run > 1:
            raise ValueError("runs_per_gpu: a run on several GPUs has them to itself; set one of the two to 1")
        return self


def loss_label(loss: Mapping[str, float | str]) -> str:
    """A loss with its kernel: ``dhel``, ``kcl_gaussian``."""
    return "_".join(str(loss[key]) for key in ("name", "kernel") if key in loss)


class Run(_Strict):
    """One pretraining run, fully resolved."""

    dataset: DatasetConfig
    augmentation: AugmentationConfig
    probe_augmentation: AugmentationConfig | None
    loss: dict[str, float | str]
    batch_size: BatchSize
    learning_rate: Positive
    seed: Seed

    @property
    def loss_label(self) -> str:
        """The loss with its kernel: ``dhel``, ``kcl_gaussian``."""
        return loss_label(self.loss)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """The loss's numeric hyperparameters."""
        return {key: value for key, value in self.loss.items() if not isinstance(value, str)}

    @cached_property
    def id(self) -> str:
        """File-system name: ``cifar10-dhel-temperature0.3-bs256-seed0``."""
        values = [f"{key}{value:g}" for key, value in self.hyperparameters.items()]
        return "-".join([self.dataset.name, self.loss_label, *values, f"bs{self.batch_size}", f"seed{self.seed}"])


class ExperimentConfig(_Strict):
    """A whole experiment; see `config/README.md` for each key."""

    model_config = ConfigDict(defer_build=True)  # as `LossGrid`

    name: Name
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    augmentations: dict[Name, AugmentationConfig] = {}
    losses: Annotated[list[LossGrid], Field(min_length=1)]
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    evaluation: EvaluationConfig = EvaluationConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    monitor: MonitorConfig = MonitorConfig()
    theory: TheoryConfig = TheoryConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _named_built_in_augmentations_are_spelt_out(cls, values: Any) -> Any:
        match values:
            case {"datasets": [*datasets]}:
                named = [name for dataset in datasets for name in _augmentation_names(dataset)]
                used = {name: each for name, each in built_in_augmentations().items() if name in named}
                own = values.get("augmentations", {})
                return {**values, "augmentations": {**used, **own}} if isinstance(own, Mapping) else values
        return values  # of a wrong form, which validation will name

    @model_validator(mode="after")
    def _the_grid_is_possible(self) -> Self:
        _refuse_repeats("datasets", [dataset.name for dataset in self.datasets])
        _refuse_repeats("batch_sizes", self.batch_sizes)
        for number, grid in enumerate(self.losses):
            if absent := sorted(set(grid.batch_sizes or ()).difference(self.batch_sizes)):
                raise ValueError(f"losses.{number}.batch_sizes: {absent} not in the experiment's batch_sizes")
        _refuse_repeats("seeds", self.seeds)
        _refuse_repeats("theory.uniform.batch_sizes", self.theory.uniform.batch_sizes)
        for name, augmentation in self.augmentations.items():
            if augmentation != built_in_augmentations().get(name, augmentation):
                raise ValueError(f"augmentations.{name}: this name is built in with other values; choose another name")
        for dataset in self.datasets:
            for key, used in dataset.augmentations.items():
                if isinstance(used, str) and used not in self.augmentations:
                    raise ValueError(
                        f"datasets.{dataset.name}.{key}: unknown {used!r}; "
                        f"there are {', '.join(sorted({*built_in_augmentations(), *self.augmentations}))}"
                    )
                if self._resolved(used).shift >= dataset.image_size:
                    raise ValueError(f"datasets.{dataset.name}.{key}: shift must be below image_size")
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
                    augmentation=self._resolved(dataset.augmentation),
                    probe_augmentation=self._resolved(dataset.probe.augmentation) if dataset.probe else None,
                    loss={**fixed, **dict(zip(axes, values, strict=True))},
                    batch_size=batch_size,
                    learning_rate=rate[batch_size] if isinstance(rate, dict) else rate,
                    seed=seed,
                )

    def _resolved(self, augmentation: str | AugmentationConfig) -> AugmentationConfig:
        return self.augmentations[augmentation] if isinstance(augmentation, str) else augmentation

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Every run of the grid by its id, in a fixed order."""
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


class OnlyConfig(_Strict):
    """Part of a grid: what each axis is restricted to. A loss means all its kernels, or one of them: ``kcl_log``."""

    dataset: Annotated[list[str], Field(min_length=1), OneOrSeveral] | None = None
    loss: Annotated[list[str], Field(min_length=1), OneOrSeveral] | None = None
    batch_size: Annotated[list[Integer], Field(min_length=1), OneOrSeveral] | None = None
    seed: Annotated[list[Integer], Field(min_length=1), OneOrSeveral] | None = None

    def of(self, config: ExperimentConfig) -> ExperimentConfig:
        """The experiment with the runs that are left; it says nothing of the others.

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
        parts = {
            "datasets": [each for each in config.datasets if each.name in (self.dataset or there["dataset"])],
            "losses": losses,
            "batch_sizes": sizes,
            "seeds": [seed for seed in config.seeds if seed in (self.seed or config.seeds)],
        }
        return ExperimentConfig.model_validate(config.model_copy(update=parts).model_dump(mode="json"))


def _names_of_loss(grid: LossGrid) -> set[str]:
    return {grid.name, loss_label({key: value for key, value in grid.model_dump().items() if isinstance(value, str)})}


def _augmentation_names(dataset: Any) -> list[Any]:
    """What an unvalidated data set, with its protocol, says its augmentations are."""
    if not isinstance(dataset, Mapping):
        return []
    values = _with_protocol(dataset)
    probe = values.get("probe")
    return [values.get("augmentation"), probe.get("augmentation") if isinstance(probe, Mapping) else None]


def _refuse_repeats(key: str, values: list[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1}) if len(values) < 100 else []
    if len(set(values)) != len(values):
        raise ValueError(f"{key}: repeated values {', '.join(repeated)}".rstrip(" ,"))


def parse_config(values: Any, origin: str) -> ExperimentConfig:
    """Validate a mapping read from `origin`. Its key `only`, an `OnlyConfig`, restricts it to a part of its grid.

    Raises:
        InputError: one line for each unknown, missing or impossible value.
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
    """Read and validate a YAML configuration, restricted to a part of its grid by `only`, an `OnlyConfig`.

    Raises:
        InputError: the file is missing, is not YAML, or says something unknown or impossible.
    """
    return parse_yaml(_read_text(path), str(path), only)


_CONFIG_OPTION = r"--config(?==|$)|-[nkpfFqt]*C"
"""How an argument begins that is Snakemake's option `--config`, or `-C`, which may stand behind other letters."""


def load_combined(paths: Sequence[Path], given: Mapping[str, Any], arguments: Sequence[str] = ()) -> ExperimentConfig:
    """Read and validate the configuration that several files and Snakemake's `--config` make up.

    Each file, and then `--config`, replaces the top-level keys that it gives, as a whole.

    Args:
        paths: configuration files, at least one.
        given: what Snakemake made of `--config`.
        arguments: the command line, in which the values of `given` are read as they were written, if they are there.

    Raises:
        InputError: as `load_config`; or a key, or `--config`, is given twice on the command line.
    """
    values: dict[str, Any] = {}
    for path in paths:
        content = read_yaml(_read_text(path), str(path))
        if not isinstance(content, Mapping):
            return parse_config(content, str(path))  # which says what is wrong
        values |= content
    if sum(re.match(_CONFIG_OPTION, argument) is not None for argument in arguments) > 1:
        raise InputError("--config: given twice, of which Snakemake takes the last; give all values after one")
    # What is written in one word with the option is a value like those after it.
    words = [re.sub(rf"^({_CONFIG_OPTION})=?", "", argument) for argument in arguments]
    for key, value in given.items():
        written = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
        if len(written) > 1:
            raise InputError(f"--config {key}: given twice; give it once")
        values[key] = read_yaml(written[0], f"--config {key}") if written else read_scalars(value)
    return parse_config(values, " and ".join([*map(str, paths), *(["--config"] if given else [])]))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a configuration file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error


def parse_yaml(text: str, origin: str, only: Any = None) -> ExperimentConfig:
    """Validate a configuration given as YAML (or JSON) text read from `origin`, restricted by `only` as `load_config`.

    Raises:
        InputError: it is not YAML, or says something unknown or impossible.
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
    """The one form in which a configuration with every default filled in is written."""
    return write_yaml(config.model_dump(mode="json"))
