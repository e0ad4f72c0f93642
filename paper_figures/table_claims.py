"""Claims of the paper and what was measured.

Each claim, for each loss and data set it is about, with its tolerance. A claim is supported if the margin is above the
tolerance, not supported if it is below minus the tolerance, and otherwise not testable at this scale, as it is
if nothing could be compared. A verdict applies only to the stated scale. Accuracies are of linear
evaluation on the test set, in [0, 1]. At each batch size, every loss has the hyperparameters with the highest accuracy
on the validation split of the training set, and the baseline is the loss among InfoNCE, NT-Xent and DCL with the
highest such accuracy; a margin is a difference of accuracies or of their ranges. For the effective rank, the baseline
is the one with the highest rank, and margins are relative. A range is the best minus the worst accuracy over the
settings, averaged as in table_robustness, and the baseline is the one with the smallest range. The number after
"over" counts the settings; more settings make a wider range. As the steadiest of three, this baseline benefits from
chance. A theorem is supported if it holds for every loss; its margin is the error nearest to the tolerance, and
table_theory has the details.
"""

import pandas as pd

from dhel_kcl.results.claims import in_unit, theorem_verdicts, verdicts
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES
from dhel_kcl.results.theorems import METRICS as THEORY_METRICS
from dhel_kcl.results.theorems import OPTIONAL_METRICS as MORE_THEORY_METRICS
from dhel_kcl.results.theorems import theorems

TABLES = ("results", "theory")
METRICS = ("linear_top1", "validation_top1", "effective_rank", *THEORY_METRICS)
OPTIONAL_METRICS = ("test_images", "diverged", "not_measured", *MORE_THEORY_METRICS)
COMMAND = "snakemake --cores all"


def points(results: pd.DataFrame, theory: pd.DataFrame) -> pd.DataFrame:
    """Return a row per claim, loss and data set, and one per theorem."""
    return pd.DataFrame([*verdicts(results), *theorem_verdicts(theorems(theory))])


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per claim, loss and data set."""
    reasons = points["reason"].fillna("")
    return pd.DataFrame(
        {
            "Claim": points["claim"],
            "Loss": [", ".join(LOSS_NAMES[loss] for loss in cell.split(";")) for cell in points["loss"]],
            "Data set": points["dataset"].map(lambda name: DATASET_NAMES.get(name, name)),
            "Measured": points["measured"].fillna(""),
            "Margin": [in_unit(value, unit, "+") for value, unit in zip(points["margin"], points["unit"], strict=True)],
            "Tolerance": list(map(in_unit, points["tolerance"], points["unit"])),
            "Verdict": [": ".join(filter(None, pair)) for pair in zip(points["verdict"], reasons, strict=True)],
            "Command": [f"{COMMAND} {evidence}" for evidence in points["evidence"]],
            "Scale": points["scale"],
        }
    )
