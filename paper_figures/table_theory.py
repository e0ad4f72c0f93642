"""The theorems, checked numerically.

Each loss was minimised over M free pairs of points on the sphere of R^d from random starts; "5 of 6 starts" means that
5 reached the minimum and the others stopped in local minima. The mini-batch average is the mean over all mini-batches
of M pairs of one arbitrary population. The expected loss is that of aligned embeddings drawn uniformly. The loss's
growth is subtracted from both: the logarithm of the number of terms that each of its logarithms sums, nothing for KCL.
Mini-batch minimisers minimise the mean loss over all mini-batches of M out of N free pairs; the measured value is the
excess of their full loss over its minimum, and claims are made only where theory decides: for KCL, for N <= d + 1, and
for DHEL and DCL at M = 2, where every aligned population of zero mean is a minimiser. fig_population_minimisers shows
the other cases. W1 is the Wasserstein uniformity of aligned minimisers of N pairs. The error is relative, or absolute
where 0 is predicted. The tolerance is fixed where the theorem is exact, 8 / M for the approach to the asymptote, 4 / N
for W1, and otherwise four standard errors of the sampled batches (the Student quantile of equal probability). Where a
claim is about every M, the M shown is the worst case; ">" marks a claim that the two values differ by more than the
tolerance. If a claim does not hold, the target fails.
"""

import pandas as pd

from dhel_kcl.errors import InputError
from dhel_kcl.results.names import LOSS_NAMES
from dhel_kcl.results.theorems import METRICS, OPTIONAL_METRICS, theorems

__all__ = ["METRICS", "OPTIONAL_METRICS"]
TABLES = ("theory",)


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row per claim and loss; claims that agree with the theory to within the tolerance hold."""
    points = theorems(results)
    failed = points[points["verdict"] == "fails"]
    if not failed.empty:
        raise InputError("\n".join(_failure(row) for _, row in failed.iterrows()))
    return points


def _failure(row: pd.Series) -> str:
    return (
        f"{row['claim']} ({row['loss']}, {row['setting']}): predicted {row['predicted']:.10g}, "
        f"measured {row['measured']:.10g}, error {row['error']:.1e}, tolerance {_tolerance(row)}"
    )


def _tolerance(row: pd.Series) -> str:
    return f"{'> ' if row['differs'] else ''}{row['tolerance']:.0e}"


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per claim and loss."""
    return pd.DataFrame(
        {
            "Claim": points["claim"],
            "Loss": points["loss"].map(LOSS_NAMES),
            "Setting": points["setting"],
            "Predicted": [f"{value:.6f}" if value else "0" for value in points["predicted"]],
            "Measured": [
                f"{measured:.6f}" if predicted else f"{measured:.0e}"
                for predicted, measured in zip(points["predicted"], points["measured"], strict=True)
            ],
            "Error": [f"{value:.0e}" for value in points["error"]],
            "Tolerance": [_tolerance(row) for _, row in points.iterrows()],
            "Verdict": points["verdict"],
        }
    )
