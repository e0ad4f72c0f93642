"""Read the files of measurements that the stages write for each run, and check them value by value."""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from dhel_kcl.data.corrupt import SEVERITIES
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.hits import unpack_hits
from dhel_kcl.files import open_regular, read_json
from dhel_kcl.training.outcome import LOG_COLUMNS, MOST, THROUGHPUT_COLUMNS

ROUNDING = 1e-6
"""How far outside its range rounding may take a sum of floating-point numbers."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Reason = Annotated[str, Field(min_length=1, pattern=r"^[^\n]+$")]
Count = Annotated[int, Field(ge=1, le=MOST)]
NeighboursKey = Annotated[str, Field(pattern="^[1-9][0-9]{0,6}$")]
"""A number of neighbours as a key of JSON."""


Uniformity = Annotated[float, Field(ge=-8 - ROUNDING, le=ROUNDING)]
EffectiveRank = Annotated[float, Field(ge=1 - ROUNDING)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Measured(_Strict):
    """Measurements of a stage: none if the run diverged, otherwise all, or the reason why some are missing."""

    not_measured: Reason | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "_Measured":
        given = self.model_fields_set
        if any(getattr(self, name) is None for name in given):
            raise ValueError("a value is null")
        wanted = type(self).model_fields.keys() - {"not_measured"}
        if given and self.not_measured is None and given != wanted:
            raise ValueError(f"{', '.join(sorted(wanted - given))} missing, and no reason given as not_measured")
        if self.not_measured is not None and given >= wanted:
            raise ValueError("everything is there, but not_measured gives a reason why not")
        return self

    def values(self) -> Iterator[tuple[str, float]]:
        """Yield the single numbers by name, in file order, then ``not_measured`` if something is missing."""
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), float | int):
                yield name, value
        if self.not_measured is not None:
            yield "not_measured", 1.0


class Evaluation(_Measured):
    """The content of ``evaluation.json``."""

    linear_top1: Share | None = None
    linear_top5: Share | None = None
    validation_top1: Share | None = None
    regularisation_c: Positive | None = None
    knn_top1: Annotated[dict[NeighboursKey, Share], Field(min_length=1)] | None = None
    test_images: Count | None = None
    test_hits: str | None = None

    @model_validator(mode="after")
    def _has_all_of_the_linear_probe(self) -> "Evaluation":
        linear = {"linear_top1", "linear_top5", "validation_top1", "regularisation_c", "test_hits"}
        if (absent := linear - self.model_fields_set) and absent != linear:
            raise ValueError(f"{', '.join(sorted(absent))} missing")
        if self.test_images is None and self.model_fields_set - {"not_measured"}:
            raise ValueError("test_images missing")
        return self

    @model_validator(mode="after")
    def _counts_the_hits(self) -> "Evaluation":
        if self.test_hits is not None and self.test_images is not None:
            share = float(unpack_hits(self.test_hits, self.test_images).mean())
            if share != self.linear_top1:
                raise ValueError(f"test_hits are {share} of the test images, and linear_top1 is {self.linear_top1}")
        return self


class AugmentedProbe(_Measured):
    """The content of ``augmented_probe.json``."""

    augmented_top1: Share | None = None
    augmented_top5: Share | None = None


_Severities = {
    corruption: (Annotated[list[Share], Field(min_length=1 + len(steps), max_length=1 + len(steps))] | None, None)
    for corruption, steps in SEVERITIES.items()
}


class Corruptions(create_model("_Corruptions", __base__=_Measured, **_Severities)):  # type: ignore[misc]
    """The content of ``corruptions.json``: accuracies at severities 0 to 5 for each key of `SEVERITIES`."""

    def accuracies(self) -> Iterator[tuple[str, list[float]]]:
        """Yield the accuracies of each corruption for which they could be measured."""
        for corruption in SEVERITIES:
            if (values := getattr(self, corruption)) is not None:
                yield corruption, values


class Scalars(_Strict):
    """Metrics of one representation."""

    alignment: Annotated[float, Field(ge=0, le=4 + ROUNDING)]
    uniformity_of_views: Uniformity
    uniformity: Uniformity
    rank: Annotated[int, Field(ge=0, le=MOST)]
    effective_rank: EffectiveRank
    centred_effective_rank: Annotated[float, Field(ge=0)]
    participation_ratio: Annotated[float, Field(ge=0)]
    embedding_dim: Count


class ScalarsOfZ(Scalars):
    """Metrics of z, which can be compared with the uniform law on the sphere."""

    wasserstein_uniformity: Annotated[float, Field(ge=-ROUNDING, le=2 + ROUNDING)]
    rankme: EffectiveRank
    rankme_images: Count


class Density(_Strict):
    """A histogram over the cosine similarity, with bins of equal width over [-1, 1]."""

    x: list[float]
    value: list[Annotated[float, Field(ge=0)]]

    @model_validator(mode="after")
    def _is_a_density(self) -> "Density":
        bins = len(self.value)
        centres = (2 * np.arange(bins) + 1) / max(1, bins) - 1
        if bins == 0 or len(self.x) != bins or not np.allclose(self.x, centres, atol=1e-9):
            raise ValueError("x are not the centres of the bins of value")
        if not math.isclose(2 * sum(self.value) / bins, 1, rel_tol=ROUNDING):
            raise ValueError("value does not integrate to 1")
        return self


class MiniBatchLoss(_Strict):
    """The mean loss of mini-batches of `x` pairs."""

    x: list[Annotated[float, Field(ge=2, le=MOST)]]
    value: list[float]
    standard_error: list[Annotated[float, Field(ge=0)]]
    growth: list[float] | None

    @model_validator(mode="after")
    def _is_a_curve(self) -> "MiniBatchLoss":
        columns = [self.value, self.standard_error, *([] if self.growth is None else [self.growth])]
        if any(len(column) != len(self.x) for column in columns):
            raise ValueError("its lists differ in length")
        if any(size % 1 for size in self.x) or sorted(set(self.x)) != self.x:
            raise ValueError("x is not a rising sequence of whole numbers")
        return self


class Representation(_Measured):
    """The measurements on h, which are also made on z."""

    scalars: Scalars | None = None
    singular_value: list[Annotated[float, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Representation":
        if not self.model_fields_set:
            raise ValueError("holds nothing")
        if self.scalars is None or self.singular_value is None:
            return self
        dim = self.scalars.embedding_dim
        if len(self.singular_value) != dim or sorted(self.singular_value, reverse=True) != self.singular_value:
            raise ValueError(f"singular_value is not a falling sequence of {dim} numbers")
        names = ("rank", "effective_rank", "centred_effective_rank", "participation_ratio", "rankme")
        if any(getattr(self.scalars, name, 0) > dim + ROUNDING for name in names):
            raise ValueError(f"a rank is above the dimension {dim}")
        return self


class RepresentationOfZ(Representation):
    """The measurements on z."""

    scalars: ScalarsOfZ | None = None
    similarity_density: Density | None = None
    mini_batch_loss: MiniBatchLoss | None = None


class Representations(_Strict):
    """The content of ``representation.json``; empty for a diverged run."""

    h: Representation | None = None
    z: RepresentationOfZ | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Representations":
        if (self.h is None) != (self.z is None) or len(self.model_fields_set) == 1:
            raise ValueError("h or z missing")
        return self

    def contents(self) -> Iterator[tuple[str, Representation]]:
        """Yield the name and content of each representation."""
        for name in ("h", "z"):
            if (content := getattr(self, name)) is not None:
                yield name, content


_Model = TypeVar("_Model", bound=BaseModel)


def read_measured(path: Path, model: type[_Model]) -> _Model:
    """Read a JSON file of measurements.

    Raises:
        InputError: it is missing, or its content is not what its stage writes.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise _unlike(path, f"{place}: {message}" if place else message) from error


def read_training_log(path: Path) -> list[dict[str, float]]:
    """Read the log of a run, finished or not: a row for each epoch.

    Raises:
        InputError: it is missing, or is not a training log.
    """
    above_zero = dict.fromkeys(("gradient_norm", "learning_rate"), (0, math.inf))
    ranks = dict.fromkeys(("effective_rank_h", "effective_rank_z"), (1 - ROUNDING, math.inf))
    optional = {"knn_top1": (0, 1), **ranks}
    return _rows(path, LOG_COLUMNS, {"step": (1, math.inf), **above_zero, **optional}, optional)


def read_throughput(path: Path) -> list[dict[str, float]]:
    """Read the throughput of a run: a row for each epoch.

    Raises:
        InputError: it is missing, or is not a throughput table.
    """
    ranges = {"seconds": (0, math.inf), "images_per_second": (0, math.inf), "waiting_for_data": (0, 1 + ROUNDING)}
    return _rows(path, THROUGHPUT_COLUMNS, ranges)


def _rows(
    path: Path,
    columns: tuple[str, ...],
    ranges: Mapping[str, tuple[float, float]],
    optional: Collection[str] = (),
) -> list[dict[str, float]]:
    try:
        with open_regular(path) as file:
            table = pd.read_csv(file)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run the rule that writes it") from error
    except ValueError as error:
        raise _unlike(path, " ".join(str(error).split())) from error
    if list(table) != list(columns):
        raise _unlike(path, f"its columns are not {', '.join(columns)}")
    if table.empty:
        return []
    for column in columns:
        values, (low, high) = table[column], ranges.get(column, (-math.inf, math.inf))
        if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            raise _unlike(path, f"{column} holds something else than numbers")
        there = values.dropna() if column in optional else values
        if not (np.isfinite(there) & (there >= low) & (there <= high)).all():
            raise _unlike(path, f"{column} has a value that is missing, infinite or out of its range")
    if table["epoch"].tolist() != list(range(1, len(table) + 1)):
        raise _unlike(path, "its epochs are not counted from 1")
    return table.to_dict("records")  # type: ignore[return-value]


def _unlike(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: not what its stage writes ({reason}); delete it and run its rule again")
