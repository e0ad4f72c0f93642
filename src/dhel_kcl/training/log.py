"""Record a run while it trains: the terms of its steps, its throughput, and where it diverged.

The terms of each step stay on the device and are read every few steps, so that the host does not wait at each step.
"""

import csv
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dhel_kcl.files import atomic_path
from dhel_kcl.training.outcome import LOG_COLUMNS, TERMS, THROUGHPUT_COLUMNS

Item = TypeVar("Item")


class Diverged(Exception):  # noqa: N818 - an event of training, not an error of the program
    """A loss, gradient or weight was not finite.

    Attributes:
        step: number of the step in the run, from 1.
        terms: loss, alignment, energy and gradient norm of that step; or ``weights``, if they are not finite after it.
    """

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        super().__init__(f"step {step}: {', '.join(f'{name} {value:g}' for name, value in terms.items())}")
        self.step = step
        self.terms = terms


class TrainingLog:
    """The log of one run: a row for each epoch, with the means of the terms over its steps.

    Args:
        device: where the terms of a step are.
        steps_per_epoch: steps in an epoch.
        read_every: how many steps to collect on the device before the host reads them.
    """

    def __init__(self, device: torch.device, steps_per_epoch: int, read_every: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self.epochs: list[dict[str, float]] = []
        self._rows: list[list[float]] = []
        self._unread = torch.empty(read_every, len(TERMS), device=device)
        self._num_unread = 0

    def add(self, terms: Tensor) -> None:
        """Store the (4,) terms of the next step without waiting for the device."""
        self._unread[self._num_unread].copy_(terms)
        self._num_unread += 1
        self.step += 1

    @property
    def is_full(self) -> bool:
        """Whether the terms must be read before the next step."""
        return self._num_unread == len(self._unread)

    def read(self) -> list[list[float]]:
        """Read the terms of the steps since the last read.

        Raises:
            Diverged: one of them is not finite.
        """
        rows: list[list[float]] = self._unread[: self._num_unread].tolist()
        self._num_unread = 0
        for number, row in enumerate(rows, start=self.step - len(rows) + 1):
            if not all(math.isfinite(value) for value in row):
                raise Diverged(number, dict(zip(TERMS, row, strict=True)))
        self._rows += rows
        return rows

    def end_epoch(self, learning_rate: float, watched: Mapping[str, float]) -> dict[str, float]:
        """Close the epoch, whose steps have all been read; return its means and what the monitor `watched`."""
        columns = zip(TERMS, zip(*self._rows, strict=True), strict=True)
        means = {name: math.fsum(values) / len(values) for name, values in columns}
        epoch = self.step // self.steps_per_epoch
        row = {"epoch": epoch, "step": self.step, **means, "learning_rate": learning_rate, **watched}
        self.epochs.append(row)
        self._rows = []
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return everything that has been read."""
        return {"step": self.step, "epochs": self.epochs, "rows": torch.tensor(self._rows, dtype=torch.float64)}

    def problem(self, state: dict[str, Any], total_steps: int) -> str | None:
        """Return why `state` cannot belong to a log of at most `total_steps` steps, or None if it can."""
        step, epochs, rows = state["step"], state["epochs"], state["rows"]
        if type(step) is not int or not 1 <= step <= total_steps:
            return f"step {step!r} is not one of {total_steps}"
        if not isinstance(rows, Tensor) or rows.dtype != torch.float64 or not bool(rows.isfinite().all()):
            return "its rows are not finite numbers"
        if rows.numel() != step % self.steps_per_epoch * len(TERMS):
            return f"it has {rows.numel() // len(TERMS)} steps of the unfinished epoch"
        if not isinstance(epochs, list) or len(epochs) != step // self.steps_per_epoch:
            return "it does not have a row for each finished epoch"
        always = LOG_COLUMNS[:-3]
        for row in epochs:
            if not isinstance(row, dict) or not set(always) <= row.keys() <= set(LOG_COLUMNS) or not _are_finite(row):
                return "an epoch is not a row of finite numbers"
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step, self.epochs, self._rows = state["step"], state["epochs"], state["rows"].tolist()
        self._num_unread = 0

    def write(self, path: Path) -> None:
        """Write the finished epochs as CSV."""
        write_rows(path, self.epochs, LOG_COLUMNS)


class Throughput:
    """Images per second in each epoch, and the share of the time in which training waited for data.

    Args:
        images_per_step: positive pairs in a step, over all processes.
    """

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self.epochs: list[dict[str, float]] = []
        self._restart()

    def _restart(self) -> None:
        self._started, self._waited, self._steps = time.monotonic(), 0.0, 0

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches of an epoch and measure the wait for each."""
        self._restart()
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            self._steps += 1
            yield batch

    @property
    def images_per_second(self) -> float:
        """Images per second in the epoch so far."""
        return self._steps * self.images_per_step / max(time.monotonic() - self._started, 1e-9)

    def end_epoch(self, epoch: int) -> None:
        """Close the epoch; a resumed epoch counts from where it was resumed."""
        seconds = time.monotonic() - self._started
        self.epochs.append(
            {
                "epoch": epoch,
                "seconds": seconds,
                "images_per_second": self.images_per_second,
                "waiting_for_data": self._waited / seconds,
            }
        )

    @staticmethod
    def problem(epochs: Any) -> str | None:
        """Return why `epochs` cannot be those of a run, or None if they can."""
        rows = epochs if isinstance(epochs, list) else [None]
        if all(isinstance(row, dict) and row.keys() == set(THROUGHPUT_COLUMNS) and _are_finite(row) for row in rows):
            return None
        return "an epoch is not a row of finite numbers"

    def write(self, path: Path) -> None:
        """Write the epochs as CSV."""
        write_rows(path, self.epochs, THROUGHPUT_COLUMNS)


def _are_finite(row: Mapping[str, Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in row.values())


def write_rows(path: Path, rows: list[dict[str, float]], columns: Iterable[str]) -> None:
    """Write rows as CSV with all of `columns`, even if there are no rows."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
