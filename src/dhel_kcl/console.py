"""Where jobs print what they do: standard error, which the workflow keeps as the job's log.

Brackets in what is printed, such as those of a path, are no markup, and what cannot be printed becomes an escape.
"""

from typing import Any

from rich.console import Console

from dhel_kcl.errors import escaped


class _Lines(Console):
    """Prints each text as one harmless line: it may hold the name of any file."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(escaped(each) if isinstance(each, str) else each for each in objects), **options)


console = _Lines(stderr=True, soft_wrap=True, highlight=False, markup=False)
