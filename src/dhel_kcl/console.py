"""Where jobs print what they do: standard error, which the workflow keeps as the job's log.

Brackets in what is printed, such as those of a path, are no markup.
"""

from rich.console import Console

console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
