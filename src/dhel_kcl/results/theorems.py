"""Judge the theorems as claims about one loss each: the prediction, the measurement, and whether they agree."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from dhel_kcl.errors import InputError
from dhel_kcl.results.names import LOSS_NAMES, in_order
from dhel_kcl.results.robustness import join_runs

METRICS = ("loss", "minimum", "alignment", "gram", "minimiser_gram", "growth", "asymptote")
OPTIONAL_METRICS = (
    *("distance", "mini_batch_loss", "full_loss", "mini_batch_loss_of_full_minimiser", "full_minimum", "pairs"),
    *("mises_fisher", "sub_sphere", "wasserstein"),
)
"""Metrics of checks that a table made by an earlier version lacks."""

MINIMUM = 1e-6  # relative
VIEWS = 1e-6  # squared distance
COSINES = 1e-3
EQUAL_AVERAGES = 1e-9  # relative, like the next two
UNEQUAL_AVERAGES = 1e-3
LIMIT_TIMES_BATCH_SIZE = 8
STANDARD_ERRORS = 4
EXCESS = 1e-8
LEAST = 1e-9  # relative
W1_TIMES_PAIRS = 4

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
    for check, claims_of in (
        *(("minimise", minima), ("mini_batches", averages), ("gradients", gradients), ("population", populations)),
        *(("uniform", limits), ("limit_functional", limit_functionals), ("w1_of_minimisers", distances)),
    ):
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


def gradients(rows: pd.DataFrame) -> list[Claim]:
    """Judge the mean gradient over all mini-batches of one population."""
    distance = rows.set_index("batch_size")["value"]
    n = distance.index.max()
    parts = distance.drop(n)
    if _is_kernel(rows):
        claim, m, tolerance = "every mean mini-batch gradient is the full gradient", parts.idxmax(), EQUAL_AVERAGES
    else:
        claim, m, tolerance = "no mean mini-batch gradient is the full gradient", parts.idxmin(), UNEQUAL_AVERAGES
    setting = f"M = {m} of {n}, d = {rows['embedding_dim'].iloc[0]}"
    return [_claim(rows, claim, setting, 0, parts[m], tolerance, differs=not _is_kernel(rows))]


def excess_over_full_minimum(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the full loss's excess over its minimum at the best minimisers of the mini-batch loss.

    Args:
        rows: rows of the check `population`.

    Returns:
        For each loss, pairs, embedding_dim and batch_size: ``least`` and ``most`` excess over the starts that reached
        the lowest mini-batch loss to within `EXCESS`, ``starts`` and ``reached``, how many there are and did, ``gap``,
        by how much the mini-batch loss of the full minimiser is above the lowest, and ``runs``.
    """
    scalars = rows[rows["x"].isna()].pivot_table(index="run", columns="metric", values="value")
    ends = rows[rows["x"].notna()].pivot_table(index=["run", "x"], columns="metric", values="value")
    losses, excess = ends["mini_batch_loss"], ends["full_loss"].sub(scalars["full_minimum"], level="run")
    lowest = losses.groupby("run").min()
    at_lowest = excess[losses.sub(lowest, level="run") <= EXCESS].groupby("run")
    found = at_lowest.agg(["min", "max", "count"]).set_axis(["least", "most", "reached"], axis=1)
    found["starts"] = losses.groupby("run").count()
    found["gap"] = scalars["mini_batch_loss_of_full_minimiser"] - lowest
    found["pairs"] = scalars["pairs"].astype(int)
    keys = rows.drop_duplicates("run").set_index("run")[["loss", "embedding_dim", "batch_size"]]
    found = keys.join(found).reset_index(names="runs").sort_values(["loss", "pairs", "embedding_dim", "batch_size"])
    return found[[*(column for column in found if column != "runs"), "runs"]].reset_index(drop=True)


def populations(rows: pd.DataFrame) -> list[Claim]:
    """Judge whether minimisers of the mean mini-batch loss minimise the full loss, where theory says so or denies it.

    KCL: the two losses are equal. N <= d + 1: by Jensen's inequality and M >= 3, only the simplex minimises either; for
    M = 2 this holds for InfoNCE and NT-Xent, while every aligned population of zero mean minimises DHEL and DCL.
    """
    claims = []
    for _, found in excess_over_full_minimum(rows).groupby(["pairs", "embedding_dim"]):
        n, d = found[["pairs", "embedding_dim"]].iloc[0]
        of_size = rows[rows["run"].isin(found["runs"])]
        only_the_mean_counts = found["loss"].isin(["dhel", "dcl"]) & (found["batch_size"] == 2)
        same = found if _is_kernel(rows) else found[~only_the_mean_counts & (n <= d + 1)]
        if not same.empty:
            worst = same.iloc[int(same["most"].abs().argmax())]
            setting = f"M = {worst['batch_size']} of {n}, d = {d}"
            claim = "mini-batch minimisers minimise the full loss"
            claims.append(_claim(of_size, claim, setting, 0, worst["most"], EXCESS))
        if only_the_mean_counts.any() and n > 3:
            most = found.loc[only_the_mean_counts, "most"].iloc[0]
            claim = "some mini-batch minimisers do not minimise the full loss"
            claims.append(_claim(of_size, claim, f"M = 2 of {n}, d = {d}", 0, most, UNEQUAL_AVERAGES, differs=True))
    return claims


def limit_functionals(rows: pd.DataFrame) -> list[Claim]:
    """Judge that the uniform law has the least limit functional of each family."""
    limit = rows.loc[rows["metric"] == "asymptote", "value"].iloc[0]
    families = {"mises_fisher": "von Mises-Fisher laws", "sub_sphere": "sub-spheres"}
    claim, d = "the uniform law has the least limit functional", rows["embedding_dim"].iloc[0]
    return [
        _claim(rows, claim, f"{name}, d = {d}", limit, rows.loc[rows["metric"] == family, "value"].min(), LEAST)
        for family, name in families.items()
    ]


def distances(rows: pd.DataFrame) -> list[Claim]:
    """Judge the Wasserstein uniformity of minimisers, at the largest number of pairs."""
    distance = rows[rows["metric"] == "wasserstein"].set_index("batch_size")["value"]
    n, d = distance.index.max(), rows["embedding_dim"].iloc[0]
    claim = "W1 of the minimisers tends to 0"
    return [_claim(rows, claim, f"N = {n}, d = {d}", 0, distance[n], W1_TIMES_PAIRS / n)]


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
