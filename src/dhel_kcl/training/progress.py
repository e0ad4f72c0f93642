"""Show the progress of training: a progress bar or lines, and events for TensorBoard.

No result depends on this module, so it is in no digest.
"""

import math
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dhel_kcl.console import console
from dhel_kcl.training.outcome import TERMS

SECONDS_BETWEEN_LINES = 60


class ProgressDisplay:
    """A bar with loss, images per second and time left; without a terminal, a line now and then."""

    def __init__(self, progress: Progress, task: TaskID, total_steps: int) -> None:
        self._progress, self._task, self._total = progress, task, total_steps
        self._last_line = time.monotonic()

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        """Show the current step."""
        self._progress.update(self._task, completed=step, loss=loss, rate=images_per_second)
        if not console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._line(f"step {step}/{self._total}: loss {loss:.4f}, {images_per_second:.0f} images/s")

    def epoch(self, row: Mapping[str, float], epochs: int, images_per_second: float) -> None:
        """Print a line about the epoch in a `row` of the log, out of `epochs`."""
        knn = f", k-NN accuracy {row['knn_top1']:.3f}" if "knn_top1" in row else ""
        self._line(
            f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}{knn}, "
            f"learning rate {row['learning_rate']:.4g}, {images_per_second:.0f} images/s"
        )

    def _line(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text)
        self._last_line = time.monotonic()


@contextmanager
def progress_display(description: str, total_steps: int, completed: int) -> Iterator[ProgressDisplay]:
    """Show a progress bar in this block."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}, {task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total_steps, completed=completed, loss=math.nan, rate=0.0)
        yield ProgressDisplay(progress, task, total_steps)


class TensorBoard:
    """Writes scalars for `tensorboard --logdir`; without a folder, does nothing.

    The scalars are not results: if they cannot be written, for example because the disk is full, a line is printed and
    the run continues without them. This needs its own writer, because the library's writer fails in a thread.

    Args:
        folder: where the events go; events that an interrupted run wrote after `step` are superseded.
        step: the step from which the run continues.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        if folder is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        with self._going_on_without():
            if step == 0 and not folder.is_symlink():
                for earlier in folder.glob("events.out.tfevents.*"):
                    earlier.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"events.out.tfevents.{time.time_ns():019d}.{platform.node()}").open("wb")
        first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if step:  # readers drop later events of earlier files
            start = SessionLog(status=SessionLog.START)
            first.append(Event(wall_time=time.time(), step=step + 1, session_log=start))
        self._write(first)

    def steps(self, rows: list[list[float]], last_step: int) -> None:
        """Add the terms of consecutive steps that end with `last_step`."""
        self._add(
            (f"step/{name}", value, step)
            for step, row in enumerate(rows, start=last_step - len(rows) + 1)
            for name, value in zip(TERMS, row, strict=True)
        )

    def epoch(self, row: Mapping[str, float], images_per_second: float) -> None:
        """Add the means of an epoch."""
        named = {**row, "images_per_second": images_per_second}
        self._add((f"epoch/{name}", named[name], int(row["step"])) for name in named if name not in ("epoch", "step"))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with self._going_on_without():
                self._file.close()

    def _add(self, scalars: Iterable[tuple[str, float, int]]) -> None:
        if self._file is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(
            [
                Event(
                    wall_time=time.time(),
                    step=step,
                    summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]),
                )
                for tag, value, step in scalars
            ]
        )

    def _write(self, events: Iterable[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            return
        with self._going_on_without():
            writer = RecordWriter(self._file)
            for event in events:
                writer.write(event.SerializeToString())
            writer.flush()

    @contextmanager
    def _going_on_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            console.print(f"{self._folder}: no more events for TensorBoard ({error.strerror}); the run goes on without")
            if self._file is not None:
                with suppress(OSError):  # closing flushes the rest, which fails as well
                    self._file.close()
            self._file = None
