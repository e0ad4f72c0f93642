"""Claims of the paper and what was measured.

Each claim, for each loss and data set it is about, with the tolerance that it is judged by: supported if the margin is
above it, not supported if below minus it, otherwise not testable at this scale, as where nothing could be compared. A
verdict speaks about the stated scale only. Accuracies are of linear evaluation on the test set, in [0, 1]; at each
batch size a loss, and the baseline (the best of InfoNCE, NT-Xent and DCL), has the hyperparameters with the highest
accuracy on the validation split of the training set, which chooses the baseline too; a margin is a difference of
accuracies or of their ranges. For the effective rank the baseline is the one with the highest rank, and margins are
relative. A range is best less worst over the settings, averaged as in table_robustness; the baseline is the one with
the smallest, and "over" counts the settings, of which more make a wider range; as the steadiest of three, it profits
from chance. A theorem is supported where it holds for every loss; its margin is the error that comes nearest to the
tolerance, and table_theory has the details.
"""

import pandas as pd

from dhel_kcl.results.claims import in_unit, theorem_verdicts, verdicts
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES
from dhel_kcl.results.theorems import METRICS as THEORY_METRICS
from dhel_kcl.results.theorems import theorems

TABLES = ("results", "theory")
METRICS = ("linear_top1", "validation_top1", "effective_rank", *THEORY_METRICS)
OPTIONAL_METRICS = ("test_images", "diverged", "not_measured")
COMMAND = "snakemake --cores all"


def points(results: pd.DataFrame, theory: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, loss and data set, and one per theorem."""
    return pd.DataFrame([*verdicts(results), *theorem_verdicts(theorems(theory))])


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, loss and data set."""
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
