"""Schema of the parts of a configuration; `grid` puts the parts together."""

import math
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union

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
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from dhel_kcl import declarations
from dhel_kcl.experiment.strict_yaml import read_yaml
from dhel_kcl.files import sha256_json

# The bounds are far beyond any practical need. They exclude values that would crash a library, make a file name
# impossible, or be rounded by another program. Booleans and strings are not accepted as numbers.
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
"""A batch size as a key: in JSON, and hence in a resolved configuration, keys are strings."""
Epochs = Annotated[Integer, Field(ge=1, le=10**6)]
Neighbours = Annotated[Integer, Field(ge=1, le=10**6)]
OneOrMoreNeighbours = Annotated[
    list[Neighbours], Field(min_length=1), BeforeValidator(lambda k: [k] if isinstance(k, int) else k)
]
"""Numbers of neighbours; older configurations give one."""
Pixels = Annotated[Integer, Field(ge=1, le=4096)]
EmbeddingDim = Annotated[Integer, Field(ge=2, le=2**16)]
Seed = Annotated[Integer, Field(ge=0, lt=2**53)]  # larger integers are not all exact in floating point
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
"""A path in which `~` is the home folder; the resolved configuration has the expanded path."""


class StrictModel(BaseModel):
    """A part of a configuration, which refuses unknown keys, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CropConfig(StrictModel):
    """Random resized crop: the crop's share of the image area, its aspect ratio and the resampling filter."""

    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        if not (self.scale[0] <= self.scale[1] <= 1 and self.ratio[0] <= self.ratio[1]):
            raise ValueError("scale and ratio are [low, high] with low <= high, and scale is at most 1")
        return self


class JitterConfig(StrictModel):
    """Colour jitter: strengths as in torchvision's ColorJitter, with the four operations in random order."""

    probability: Probability = 0.8
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.0


class BlurConfig(StrictModel):
    """Gaussian blur with a standard deviation (pixels) drawn uniformly from `sigma`."""

    probability: Probability = 0.5
    sigma: tuple[Positive, Positive] = (0.1, 2.0)

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError("sigma is [low, high] with low <= high")
        return self


class SolarisationConfig(StrictModel):
    """Inversion of the grey levels at or above `threshold` (BYOL, Grill et al., NeurIPS 2020)."""

    probability: Probability = 0.2
    threshold: Annotated[Integer, Field(ge=0, le=255)] = 128


class AugmentationConfig(StrictModel):
    """Random view of an image.

    The operations are applied in the order of the fields. One that is left out or has probability 0 is skipped.
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
    """Return the augmentations of `augmentations.yaml` by name; the file gives the source of each value."""
    text = resources.files("dhel_kcl.experiment").joinpath("augmentations.yaml").read_text(encoding="utf-8")
    values = read_yaml(text, "augmentations.yaml")
    return {name: AugmentationConfig.model_validate(each) for name, each in values.items()}


def _named_augmentation(value: Any) -> Any:
    if isinstance(value, str):
        if value not in built_in_augmentations():
            raise ValueError(f"unknown; there are {', '.join(built_in_augmentations())}, or write a mapping")
        return built_in_augmentations()[value]
    return value


Augmentation = Annotated[AugmentationConfig, BeforeValidator(_named_augmentation)]
"""A mapping of operations, or the name of a built-in augmentation, which the resolved configuration spells out."""


@cache
def built_in_protocols() -> Mapping[str, Mapping[str, Any]]:
    """Return the training protocols of `protocols.yaml` by name; the file gives the source of each value."""
    text = resources.files("dhel_kcl.experiment").joinpath("protocols.yaml").read_text(encoding="utf-8")
    protocols: dict[str, dict[str, Any]] = read_yaml(text, "protocols.yaml")
    return protocols


class DataConfig(StrictModel):
    """Source of a data set's images, and how its beton stores them."""

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
        if set("{}") & set(str(self.class_list)):
            raise ValueError("class_list: has { or }, which Snakemake takes for wildcards; rename the file or folder")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, each with its own beton; STL-10 has a third one to pretrain on unlabelled images too."""
        splits: tuple[str, ...] = declarations.kinds()[self.kind].constants["splits"]
        return splits

    @property
    def pretrain_split(self) -> str:
        """The split that pretraining reads."""
        return self.splits[0]


class EncoderConfig(StrictModel):
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

    @property
    def feature_dim(self) -> int:
        """Dimension of the backbone's features h, and of the projector's hidden layer."""
        return round(512 * self.width) * {"resnet18": 1, "resnet50": 4}[self.backbone]

    @property
    def warning(self) -> str | None:
        """What a reader of the results should know about these settings, in one line, if anything."""
        if self.feature_dim >= self.embedding_dim:
            return None
        return (
            f"the projector's hidden layer has {self.feature_dim} channels, so z varies in at most {self.feature_dim} "
            f"of its {self.embedding_dim} dimensions, whatever the loss; lower embedding_dim or raise width"
        )


class OptimizerConfig(StrictModel):
    """Optimiser settings; `learning_rate` is one number, or one number for each batch size of the grid."""

    name: Literal["sgd", "lars"] = "sgd"
    learning_rate: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[dict[BatchSizeKey, Positive], Tag("mapping")],
        Discriminator(lambda rate: "mapping" if isinstance(rate, Mapping) else "number"),
    ]
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 1e-6
    warmup_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.01


class ProbeConfig(StrictModel):
    """Linear evaluation on augmented images: SGD on frozen features with a rate that falls linearly to 0."""

    augmentation: Augmentation
    epochs: Epochs
    batch_size: BatchSize
    learning_rate: Positive
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 0.0


class DatasetConfig(StrictModel):
    """One data set with its training protocol.

    `protocol` names the entry of `protocols.yaml` that supplies the keys which the configuration does not give itself.
    """

    name: Name
    protocol: str | None = None
    data: DataConfig
    image_size: Pixels
    augmentation: Augmentation
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
            return {**built_in_protocols()[name], **values}
        return values

    @model_validator(mode="after")
    def _shifts_fit_into_the_image(self) -> Self:
        if self.augmentation.shift >= self.image_size:
            raise ValueError("augmentation: shift must be below image_size")
        if self.probe and self.probe.augmentation.shift >= self.image_size:
            raise ValueError("probe.augmentation: shift must be below image_size")
        return self


class LossGrid(StrictModel):
    """A loss by name, with a list of values for each hyperparameter that its class in `losses/` declares.

    `batch_sizes` restricts the loss to some of the experiment's batch sizes.
    """

    model_config = ConfigDict(defer_build=True)  # look up the losses at the first validation, which can report errors
    name: str
    batch_sizes: Annotated[list[BatchSize], Field(min_length=1)] | None = None

    @model_serializer(mode="wrap")
    def _all_batch_sizes_are_not_spelt_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(_any_loss()) if cls is LossGrid else handler(source)


def _any_loss() -> Any:
    """Return a union of one model for each loss, or one for each kernel of a loss that takes a kernel."""
    declarations.loss_titles()  # refuses ambiguous names
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


class EvaluationConfig(StrictModel):
    """Linear evaluation on cached features, with a grid of inverse regularisation strengths, and k-NN.

    The strength is chosen on `validation_fraction` of the training set; the classifier is then refitted on all of it.
    k-NN is measured for each number of `neighbours`; 200 is that of Wu et al. 2018, arXiv 1805.01978.
    `augmented_images` adds the other protocol, each data set's `probe`; `corruptions` adds corrupted test images.
    """

    regularisation_c: Annotated[list[Strength], Field(min_length=1)] = [0.01, 0.1, 1.0, 10.0, 100.0]
    validation_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    max_iterations: Count = 200
    neighbours: OneOrMoreNeighbours = [20, 200]
    augmented_images: Switch = False
    corruptions: Switch = False

    def validation_images(self, total: int) -> int:
        """Return how many of `total` training images the strength is chosen on, rounded as in scikit-learn."""
        return math.ceil(self.validation_fraction * total)


class MonitorConfig(StrictModel):
    """Monitoring of the encoder while it trains, on a random sample of the pretraining images, not on the test set.

    The effective rank is measured every `every_epochs` epochs on a sample of `images`. If these are labelled, so is the
    accuracy of `neighbours` nearest neighbours: the sample votes on the last 2,000 of it, or on its last half if that
    is smaller.
    """

    every_epochs: Epochs | None = None
    images: Annotated[Integer, Field(ge=20, le=10**7)] = 10_000
    neighbours: Neighbours = 20


class AnalysisConfig(StrictModel):
    """Representation analysis: the number of bins in the histogram of pairwise similarities."""

    similarity_bins: Annotated[Integer, Field(ge=1, le=10_000)] = 100


class MinimiseConfig(StrictModel):
    """Direct minimisation of each loss in `embedding_dim` dimensions, from `starts` random starts."""

    embedding_dim: Annotated[Integer, Field(ge=2, le=256)] = 4
    starts: Annotated[Integer, Field(ge=1, le=10_000)] = 6
    max_iterations: Count = 500


class MiniBatchesConfig(StrictModel):
    """All mini-batches of a population of pairs; their number doubles with each pair."""

    population: Annotated[Integer, Field(ge=3, le=14)] = 10
    embedding_dim: EmbeddingDim = 4


class UniformConfig(StrictModel):
    """Uniform embeddings: `embeddings` random ones for each batch size, in 4 to 4096 batches."""

    embedding_dim: EmbeddingDim = 16
    batch_sizes: Annotated[list[Annotated[Integer, Field(ge=2, le=2**17)]], Field(min_length=2)] = [
        2**k for k in range(1, 14)
    ]
    embeddings: Annotated[Integer, Field(ge=1, le=2**24)] = 8192


class PopulationSize(StrictModel):
    """A population of `pairs` free positive pairs in `embedding_dim` dimensions; time doubles with each pair."""

    pairs: Annotated[Integer, Field(ge=3, le=14)]
    embedding_dim: Annotated[Integer, Field(ge=2, le=256)]


class PopulationConfig(StrictModel):
    """Minimisers of the mean loss over all mini-batches of a population, from `starts` random starts."""

    sizes: Annotated[list[PopulationSize], Field(min_length=1)] = [
        PopulationSize(pairs=4, embedding_dim=3),
        PopulationSize(pairs=8, embedding_dim=3),
        PopulationSize(pairs=10, embedding_dim=4),
    ]
    starts: Annotated[Integer, Field(ge=1, le=10_000)] = 6
    max_iterations: Count = 500


class LimitFunctionalConfig(StrictModel):
    """The limit functional of von Mises-Fisher laws and of uniform laws on sub-spheres."""

    embedding_dim: Annotated[Integer, Field(ge=3, le=256)] = 16
    concentrations: Annotated[list[Annotated[Number, Field(gt=0, le=32)]], Field(min_length=1)] = [1, 2, 4, 8, 16, 32]


class MinimisersConfig(StrictModel):
    """Wasserstein uniformity of aligned minimisers of each loss, for several numbers of pairs."""

    embedding_dim: Annotated[Integer, Field(ge=2, le=256)] = 4
    pairs: Annotated[list[Annotated[Integer, Field(ge=3, le=1024)]], Field(min_length=2)] = [8, 16, 32, 64, 128]
    max_iterations: Count = 300


class LawsConfig(StrictModel):
    """Measures of uniformity on `embeddings` random embeddings of laws whose deviation from uniformity is known."""

    embedding_dims: Annotated[list[Annotated[Integer, Field(ge=4, le=1024)]], Field(min_length=1)] = [16, 128]
    embeddings: Annotated[Integer, Field(ge=16, le=2**15)] = 2048


class TheoryConfig(StrictModel):
    """Numerical verification of the theorems: hyperparameters of the losses, and the size of each check."""

    seed: Seed = 0
    temperature: Positive = 0.5
    t: Positive = 2.0
    c: Positive = 1.0
    gamma: Positive = 1.0
    minimise: MinimiseConfig = MinimiseConfig()
    mini_batches: MiniBatchesConfig = MiniBatchesConfig()
    uniform: UniformConfig = UniformConfig()
    population: PopulationConfig = PopulationConfig()
    limit_functional: LimitFunctionalConfig = LimitFunctionalConfig()
    w1_of_minimisers: MinimisersConfig = MinimisersConfig()
    uniformity_of_laws: LawsConfig = LawsConfig()


BASELINES = ("infonce", "ntxent", "dcl")
PROPOSED = ("dhel", "kcl_gaussian", "kcl_log", "kcl_imq")
STRENGTHS = ("temperature", "gamma")
"""The hyperparameter that orders the settings of a loss: the first of these that the loss has."""


class ClaimConfig(StrictModel):
    """How one claim is judged.

    `smallest_effect` is the smallest effect of interest: a difference of accuracies (0.01 is a point), or for effective
    ranks a ratio less 1. A `confirmatory` claim is in the family that is corrected for its size; an `exploratory` one
    is shown apart, uncorrected.
    """

    smallest_effect: Annotated[Number, Field(gt=0, lt=1)]
    role: Literal["confirmatory", "exploratory"] = "confirmatory"


class ClaimsConfig(StrictModel):
    """The claims that are judged, see `results/claims.py`; null leaves one out."""

    accuracy: ClaimConfig | None = ClaimConfig(smallest_effect=0.005)
    batch_size: ClaimConfig | None = ClaimConfig(smallest_effect=0.01)
    small_batches: ClaimConfig | None = ClaimConfig(smallest_effect=0.005)
    hyperparameters: ClaimConfig | None = ClaimConfig(smallest_effect=0.01)
    both: ClaimConfig | None = ClaimConfig(smallest_effect=0.01)
    no_batch_size: ClaimConfig | None = ClaimConfig(smallest_effect=0.01)
    rank: ClaimConfig | None = ClaimConfig(smallest_effect=0.1)
    rank_h: ClaimConfig | None = ClaimConfig(smallest_effect=0.1, role="exploratory")
    rank_at_alignment: ClaimConfig | None = ClaimConfig(smallest_effect=0.1, role="exploratory")
    several_data_sets: ClaimConfig | None = ClaimConfig(smallest_effect=0.005)


class StudyConfig(StrictModel):
    """What is judged, and by which standard: written and committed before the first run of a study.

    `datasets` are all of the experiment's if it is null. `axis` is the column of the results that holds the number of
    negatives. `centres` are the strengths (temperatures, or KCL's gamma) around which a loss's settings are compared,
    by loss, where they are fixed beforehand; elsewhere validation chooses them. `chance` is the accuracy of a diverged
    run, by data set; only data sets with other names than those of their kinds need it.
    """

    datasets: Annotated[list[Name], Field(min_length=1)] | None = None
    axis: Literal["batch_size"] = "batch_size"
    baselines: Annotated[list[str], Field(min_length=1)] = list(BASELINES)
    proposals: Annotated[list[str], Field(min_length=1)] = list(PROPOSED)
    alpha: Annotated[Number, Field(gt=0, lt=0.5)] = 0.05
    centres: dict[str, Positive] = {}
    chance: dict[str, Probability] = {}
    claims: ClaimsConfig = ClaimsConfig()

    @model_validator(mode="after")
    def _the_losses_exist(self) -> Self:
        for key in ("baselines", "proposals", "centres"):
            if unknown := [loss for loss in getattr(self, key) if loss not in declarations.loss_titles()]:
                raise ValueError(f"{key}: no loss {unknown[0]}; there are {', '.join(declarations.loss_titles())}")
        if both := sorted({*self.baselines} & {*self.proposals}):
            raise ValueError(f"baselines: {both[0]} is also one of proposals")
        return self

    @property
    def sha256(self) -> str:
        """The digest of these settings, to be quoted where a study is announced."""
        return sha256_json(self.model_dump(mode="json"))


class ComputeConfig(StrictModel):
    """Hardware and resources of the jobs.

    `precision`, `tf32`, `compile`, `threads` and `gpus_per_run` affect the results, because they change how sums are
    rounded. `precision` auto is bfloat16 autocast on GPUs that support it, and float32 elsewhere.
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
