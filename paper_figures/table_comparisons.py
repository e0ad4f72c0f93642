"""Every comparison behind the verdicts.

One row for each claim, loss and baseline, with the numbers by which table_claims judges: the estimate (positive where
the claim holds; points of linear top-1 test accuracy, or a ratio of effective ranks) and its interval, the probability
(in %) that the truth is below the lower and above the upper end, the standard error and degrees of freedom, and the p
of the claim, by itself and corrected by Holm's method over all confirmatory claims of all tables. The upper end allows
for as many baselines as there are, because failing against one contradicts a claim. "Against it" is what the interval
says of this baseline alone; a claim is supported if it holds against all of them. "Cells" and "Seeds" count what was
compared.
"""

from functools import partial

import pandas as pd

from dhel_kcl.paper.cells import number, p_value
from dhel_kcl.results.claims import ACCURACY, CLAIMS, in_reading_order, in_unit
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES

TABLES = ("results", "verdicts")
METRICS = ("linear_top1",)
OPTIONAL_METRICS = ("effective_rank",)
NOTHING = "No two losses have cells in common."


def points(results: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts' rows that have an estimate."""
    return in_reading_order(verdicts[verdicts["estimate"].notna()]).drop(columns=["run", "scale"])


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per comparison."""
    percent = partial(number, digits=2, factor=100)
    shown = points[["estimate", "low", "high", "unit"]].itertuples(index=False)
    errors = zip(points["standard_error"], points["unit"], strict=True)
    return pd.DataFrame(
        {
            "Data set": points["dataset"].map(lambda name: DATASET_NAMES.get(name, name)),
            "Claim": [CLAIMS[claim].statement for claim in points["claim"]],
            "Loss": points["loss"].map(LOSS_NAMES),
            "Baseline": points["baseline"].map(LOSS_NAMES).fillna(""),
            "Estimate": [in_unit(*each) for each in shown],
            "Below, above": [
                "" if pd.isna(low) else f"{percent(low)}, {percent(high)}"
                for low, high in zip(points["error_low"], points["error_high"], strict=True)
            ],
            "SE": [percent(error) if unit == ACCURACY else number(error) for error, unit in errors],
            "df": points["degrees"].map(partial(number, digits=0)),
            "p": points["p"].map(p_value),
            "Holm p": points["p_holm"].map(p_value),
            "Seeds": points["seeds"].astype(str),
            "Cells": points["cells"].astype(str),
            "Role": points["role"],
            "Against it": points["against_baseline"],
            "Verdict": points["state"],
        }
    )
