"""Write the tidy tables as Parquet for programs and as CSV for people."""

from pathlib import Path

import pandas as pd

from dhel_kcl.files import atomic_path


def write_results(table: pd.DataFrame, parquet: Path) -> None:
    """Write a table as Parquet and, next to it, as CSV."""
    with atomic_path(parquet.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary, index=False)
