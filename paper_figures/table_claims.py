"""Claims of the paper and what was measured.

Each claim, for each loss and data set it is about. "Measured" is positive (a ratio: above 1) where the claim holds: a
difference of linear top-1 test accuracies in points, or a ratio of effective ranks, against each baseline, with its
interval. A claim is supported if it holds against each baseline (every lower end is above no effect), contradicted if
it fails against at least one (an upper end is below no effect), equivalent if every interval lies within the smallest
effect of interest on both sides, and otherwise inconclusive; not run means that nothing could be compared. That
accuracy does not depend on the batch size is supported if the interval lies within the smallest effect. With one seed
nothing is judged. The confirmatory claims are one family, corrected by Holm's method; exploratory ones, decided on
after such data had been seen, are not corrected and show a plain p. Only cells (a setting at a batch size) that both
losses have are compared, diverged runs count as chance, and strengths (temperature, or gamma of KCL) are matched by
rank around a centre that validation chooses on the other seeds. "Includes" says what the intervals allow for. A verdict
applies to the stated scale only. table_comparisons has every number, table_theory the verdicts on the theorems.
"""

import pandas as pd

from dhel_kcl.paper.cells import p_value
from dhel_kcl.results.claims import summarise
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES

TABLES = ("results", "verdicts")
METRICS = ("linear_top1",)
OPTIONAL_METRICS = ("effective_rank",)
COMMAND = "snakemake --cores all"


def points(results: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return a row per claim, loss and data set, exploratory ones last."""
    rows = pd.DataFrame(summarise(verdicts))
    return rows.sort_values("role", key=lambda role: role == "exploratory", kind="stable", ignore_index=True)


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per claim, loss and data set."""
    states = points["state"].where(points["role"] != "exploratory", points["state"] + " (exploratory)")
    texts = points[["measured", "reason", "contains", "lost"]].astype(object).fillna("")
    return pd.DataFrame(
        {
            "Claim": points["claim"],
            "Loss": points["loss"].map(LOSS_NAMES),
            "Data set": points["dataset"].map(lambda name: DATASET_NAMES.get(name, name)),
            "Measured": texts["measured"],
            "Smallest effect": points["smallest_effect"],
            "p": points["p_holm"].map(p_value),
            "Verdict": [": ".join(filter(None, pair)) for pair in zip(states, texts["reason"], strict=True)],
            "Seeds": [str(seeds) if seeds else "" for seeds in points["seeds"]],
            "Includes": texts["contains"],
            "Lost runs": texts["lost"],
            "Command": [f"{COMMAND} {evidence}" for evidence in points["evidence"]],
            "Scale": points["scale"],
        }
    )
