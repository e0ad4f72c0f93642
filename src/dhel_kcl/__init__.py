"""Losses, metrics and an end-to-end reproduction of Koromilas et al., ICML 2024 (arXiv 2405.18045)."""

TYPE_CHECKING = False  # not from typing, which takes time to import, in which Ctrl-C is not yet expected

__version__: str

if not TYPE_CHECKING:  # for a type checker, a module with this function would have every name

    def __getattr__(name: str) -> str:
        """Look the version up when it is asked for: to import what does that takes a tenth of a second."""
        if name == "__version__":
            from importlib.metadata import version

            return version("dhel-kcl")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
