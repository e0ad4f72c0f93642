"""What a run leaves beside its encoder: how it ended, in ``outcome.json``, and the columns of its two tables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dhel_kcl.errors import InputError
from dhel_kcl.files import read_json

MOST = 2**53
"""Largest count: up to here, the floating-point numbers of the tidy table represent every integer."""

TERMS = ("loss", "alignment", "energy", "gradient_norm")
"""What each step measures."""
LOG_COLUMNS = (
    *("epoch", "step", *TERMS, "learning_rate"),
    *("knn_top1", "effective_rank_h", "effective_rank_z"),
)
"""Columns of ``training_log.csv``."""
THROUGHPUT_COLUMNS = ("epoch", "seconds", "images_per_second", "waiting_for_data")
"""Columns of ``throughput.csv``."""

Count = Annotated[int, Field(ge=0, le=MOST)]


class Outcome(BaseModel):
    """The content of ``outcome.json``.

    Attributes:
        status: whether the run finished or diverged.
        step: the step at which it ended.
        epoch: if it diverged, the epoch of that step.
        weights_of_step: if it diverged, the step after which it had the weights that were kept.
        terms: if it diverged, the terms of that step, with ``"nan"`` and the like for values that are not finite.
        device: the type of the device.
        dtype: dtype of the encoder's arithmetic.
        processes: how many processes trained it together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    status: Literal["finished", "diverged"]
    step: Count
    epoch: Count | None = None
    weights_of_step: Count | None = None
    terms: dict[str, float | str] | None = None
    device: str
    dtype: str
    processes: Annotated[int, Field(ge=1, le=MOST)]

    @property
    def diverged(self) -> bool:
        """Whether the run diverged, so that there is nothing to measure."""
        return self.status == "diverged"


def read_outcome(path: Path) -> Outcome:
    """Read an ``outcome.json``.

    Raises:
        InputError: the file is missing or is not the outcome of a run.
    """
    try:
        return Outcome.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise InputError(
            f"{path}: not the outcome of a run ({reason}); delete it and pretrain the run again"
        ) from error
