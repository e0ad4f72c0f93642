"""What a run leaves beside its encoder: how it ended, in ``outcome.json``, and the columns of its two tables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dhel_kcl.errors import InputError
from dhel_kcl.files import read_json

MOST = 2**53
"""Up to here every integer is a floating-point number, as which the tidy table has it."""

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
        status: whether the run trained to its end.
        step: the step at which it ended.
        epoch: of a run that diverged, the epoch of that step.
        weights_of_step: of a run that diverged, the step after which it had the weights that were kept.
        terms: of a run that diverged, what that step gave; ``"nan"`` and the like for what is not finite.
        device: the type of the device.
        dtype: of the encoder's arithmetic.
        processes: how many trained it together.
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
        """Whether there is nothing to measure."""
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
