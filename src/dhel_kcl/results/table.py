"""The tidy tables: written as Parquet for programs and as CSV for people."""

from pathlib import Path

import pandas as pd

from dhel_kcl.files import atomic_path

VERDICT_COLUMNS = (
    *("run", "claim", "dataset", "loss", "baseline", "role", "unit", "metric", "estimate", "low", "high"),
    *("smallest_effect", "p", "p_holm", "error_low", "error_high", "standard_error", "degrees", "seeds", "cells"),
    *("contains", "against_baseline", "state", "reason", "lost", "scale", "runs"),
)
"""Columns of the verdicts, see `claims.judge`."""


def write_results(table: pd.DataFrame, parquet: Path) -> None:
    """Write a table as Parquet and, next to it, as CSV."""
    with atomic_path(parquet.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary, index=False)
