"""Losses, metrics and an end-to-end reproduction of Koromilas et al., ICML 2024 (arXiv 2405.18045)."""

from importlib.metadata import version

__version__ = version("dhel-kcl")
