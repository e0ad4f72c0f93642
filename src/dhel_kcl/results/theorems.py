"""Judge the theorems as claims about one loss each: the prediction, the measurement, and whether they agree."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from dhel_kcl.errors import InputError
from dhel_kcl.results.names import LOSS_NAMES, in_order
from dhel_kcl.results.robustness import join_runs

METRICS = ("loss", "minimum", "alignment", "gram", "minimiser_gram", "growth", "asymptote")

MINIMUM = 1e-6  # relative
VIEWS = 1e-6  # squared distance
COSINES = 1e-3
EQUAL_AVERAGES = 1e-9  # relative, like the next two
UNEQUAL_AVERAGES = 1e-3
LIMIT_TIMES_BATCH_SIZE = 8
STANDARD_ERRORS = 4

Claim = dict[str, Any]


def theorems(theory: pd.DataFrame) -> pd.DataFrame:
    """Compare each theorem with the measurements: a row per theorem and loss, with the verdict ``holds`` or ``fails``.

    Raises:
        InputError: a measured value is not finite.
    """
    theory = theory.sort_values(["run", "metric", "x"])
    undefined = theory[~np.isfinite(theory["value"])]
    if not undefined.empty:
        raise InputError(f"{', '.join(undefined['metric'].unique())} not finite in {join_runs(undefined['run'])}")
    claims = []
    for check, claims_of in (("minimise", minima), ("mini_batches", averages), ("uniform", limits)):
        rows = theory[theory["check"] == check]
        for loss in in_order(rows["loss"], LOSS_NAMES):
            claims += claims_of(rows[rows["loss"] == loss])
    return pd.DataFrame(claims)


def minima(rows: pd.DataFrame) -> list[Claim]:
    """Judge the minimum and its minimiser, for each number of pairs."""
    claims = []
    for _, case in rows.groupby("batch_size"):
        m, d = case[["batch_size", "embedding_dim"]].iloc[0]
        value = case.set_index(["metric", "run"])["value"]
        predicted, final = value["minimum"].iloc[0], value["loss"].groupby("run").last()
        at_minimum = final[final <= max(final.min(), predicted + MINIMUM * abs(predicted))].index
        reached = case[case["run"].isin(at_minimum)]
        gram = reached.pivot_table(index=["run", "x"], columns="metric", values="value")[["gram", "minimiser_gram"]]
        shape = "simplex" if m <= d + 1 else "cross-polytope"
        setting = f"M = {m}, d = {d}, {len(at_minimum)} of {len(final)} starts"
        claims += [
            _claim(case, f"minimum of the loss ({shape})", setting, predicted, final.min(), MINIMUM),
            _claim(reached, f"images form a {shape}", setting, 0, gram.diff(axis=1).abs().max().iloc[1], COSINES),
            _claim(reached, "views coincide", setting, 0, value["alignment"][at_minimum].max(), VIEWS),
        ]
    return claims


def averages(rows: pd.DataFrame) -> list[Claim]:
    """Judge the mean over all mini-batches of one population."""
    value = rows.pivot_table(index="batch_size", columns="metric", values="value")
    average = value["loss"] - value["growth"]
    n = average.index.max()
    full, parts = average[n], average.drop(n)
    distance = (parts - full).abs()
    if _is_kernel(rows):
        claim, m, tolerance = "every mini-batch average is the full loss", distance.idxmax(), EQUAL_AVERAGES
    else:
        claim, m, tolerance = "no mini-batch average is the full loss", distance.idxmin(), UNEQUAL_AVERAGES
    setting = f"M = {m} of {n}, d = {rows['embedding_dim'].iloc[0]}"
    return [_claim(rows, claim, setting, full, parts[m], tolerance, differs=not _is_kernel(rows))]


def limits(rows: pd.DataFrame) -> list[Claim]:
    """Judge the expected loss of uniform embeddings, at the largest batch size and over all batch sizes."""
    scalars = rows[rows["x"].isna()].pivot_table(index="batch_size", columns="metric", values="value")
    sampled = rows[rows["metric"] == "loss"].groupby("batch_size")["value"].agg(["mean", "sem", "count"])
    mean, limit = sampled["mean"] - scalars["growth"], scalars["asymptote"].iloc[0]
    spread = sampled["sem"] * t.isf(norm.sf(STANDARD_ERRORS), sampled["count"] - 1)
    smallest, largest = mean.index.min(), mean.index.max()
    if _is_kernel(rows):
        claim, m, differs = "expected loss is the asymptote at every M", ((mean - limit).abs() / spread).idxmax(), False
    else:
        claim, m, differs = "expected loss depends on M", smallest, True
    d, tends = rows["embedding_dim"].iloc[0], "expected loss tends to the asymptote"
    return [
        _claim(rows, tends, f"M = {largest}, d = {d}", limit, mean[largest], LIMIT_TIMES_BATCH_SIZE / largest),
        _claim(rows, claim, f"M = {m}, d = {d}", limit, mean[m], spread[m] / abs(limit), differs),
    ]


def _is_kernel(rows: pd.DataFrame) -> bool:
    return bool(rows["loss"].str.startswith("kcl").all())


def _claim(
    rows: pd.DataFrame,
    claim: str,
    setting: str,
    predicted: float,
    measured: float,
    tolerance: float,
    differs: bool = False,
) -> Claim:
    error = abs(measured - predicted) / (abs(predicted) or 1)
    holds = error > tolerance if differs else error <= tolerance
    return {
        "claim": claim,
        "loss": rows["loss"].iloc[0],
        "setting": setting,
        "predicted": predicted,
        "measured": measured,
        "error": error,
        "differs": differs,
        "tolerance": tolerance,
        "verdict": "holds" if holds else "fails",
        "runs": join_runs(rows["run"]),
    }
