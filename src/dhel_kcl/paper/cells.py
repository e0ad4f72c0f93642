"""Formatting numbers for the cells of a printed table."""

from collections.abc import Callable

import pandas as pd


def number(value: float, digits: int = 3, factor: float = 1) -> str:
    """Format a number times a factor, with `digits` digits after the point; empty for a missing value."""
    return "" if pd.isna(value) else f"{factor * value:.{digits}f}"


def p_value(p: float) -> str:
    """Format a p-value: ``0.012``, ``<0.001``, or empty if nothing was tested."""
    return "<0.001" if p < 0.001 else number(p)


def interval(low: float, high: float, shown: Callable[[float], str] = number) -> str:
    """Format an interval: ``[0.869, 0.878]``, or empty if there is none."""
    return "" if pd.isna(low) else f"[{shown(low)}, {shown(high)}]"


def mean_and_spread(mean: float, std: float, n: float, digits: int = 3) -> str:
    """Format ``0.873 ± 0.004 (n=3)``, without a spread for one seed, and empty for a missing value."""
    return "" if pd.isna(mean) else f"{mean_and_std(mean, std, digits)} (n={int(n)})"


def mean_and_std(mean: float, std: float, digits: int = 3) -> str:
    """Format ``0.873 ± 0.004``, without a spread for one seed."""
    return f"{mean:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")
