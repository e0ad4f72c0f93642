"""Show the progress of writing a beton.

No result depends on this module, so it is in no digest.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class WritingDisplay:
    """A progress bar for checking the images and then for writing them."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        self._progress, self._task, self._name = progress, task, name

    def writing(self, total: int) -> None:
        """Restart the bar for writing `total` images."""
        self._progress.reset(self._task, description=f"writing {self._name}", total=total)

    def advance(self) -> None:
        """Count one image."""
        self._progress.advance(self._task)


@contextmanager
def writing_display(name: str, total: int) -> Iterator[WritingDisplay]:
    """Show a bar in this block, which first counts the check of `total` images."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield WritingDisplay(progress, progress.add_task(f"checking {name}", total=total), name)
