"""Where jobs print what they do: standard error, which the workflow keeps as the job's log."""

from rich.console import Console

console = Console(stderr=True, soft_wrap=True, highlight=False)
