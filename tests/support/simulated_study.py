"""Studies whose truth is known: losses on an unequal grid, with seeds as blocks."""

import itertools
import math

import numpy as np
import pandas as pd

from dhel_kcl.results.claims import CLAIMS
from dhel_kcl.results.contrasts import Runs, Weights
from dhel_kcl.results.decision import Contrasts, Decisions, decide
from dhel_kcl.results.robustness import HYPERPARAMETERS

POINT = 0.01
LEVELS = (8, 32, 128)
STRENGTHS = {
    "infonce": (0.1, 0.5),
    "ntxent": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
    "dcl": (0.1, 0.3, 0.5),
    "dhel": (0.1, 0.2, 0.3, 0.5),
    "kcl_log": (4.0, 8.0, 16.0),
}
"""The settings of each loss: some have twice as many as others."""
BASELINES = ("infonce", "ntxent", "dcl")
PROPOSALS = ("dhel", "kcl_log")
CENTRES = {"infonce": 0.5, "ntxent": 0.3, "dcl": 0.3, "dhel": 0.3, "kcl_log": 8.0}
CONTRASTS = {
    (claim, loss, baseline): CLAIMS[claim]
    for claim in ("accuracy", "batch_size", "small_batches", "hyperparameters", "both", "no_batch_size")
    for loss in PROPOSALS
    for baseline in (BASELINES if claim != "no_batch_size" else ("",))
    if claim != "no_batch_size" or loss == "kcl_log"
}
HYPOTHESES = [*dict.fromkeys((claim, loss) for claim, loss, _ in CONTRASTS)]
SMALLEST = {claim: 0.005 if claim in ("accuracy", "small_batches") else 0.01 for claim, _ in HYPOTHESES}


def grid(seeds: int) -> pd.DataFrame:
    """The runs; the middle batch size is there at two strengths of each loss only."""
    rows = []
    for loss, strengths in STRENGTHS.items():
        for strength, level, seed in itertools.product(strengths, LEVELS, range(seeds)):
            if level == 32 and strength not in strengths[1:3]:
                continue
            numbers = dict.fromkeys(HYPERPARAMETERS, math.nan)
            numbers["gamma" if loss == "kcl_log" else "temperature"] = strength
            rows.append({"loss": loss, **numbers, "level": level, "seed": seed})
    return pd.DataFrame(rows).assign(value=0.7, validation=0.7, diverged=False)


def trained(
    table: pd.DataFrame, spread: float, random: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Test and validation accuracies (runs, size) of identical losses; a seed moves all of its runs too."""
    blocks = random.normal(0, spread, (table["seed"].nunique(), size))[table["seed"]]
    networks = blocks + random.normal(0, spread, (len(table), size))
    test, validation = (networks + random.normal(0, spread / 5, networks.shape) for _ in range(2))
    return 0.7 + test, 0.7 + validation


def weights(runs: Runs) -> dict[tuple[str, str, str], Weights]:
    """The weights of every contrast."""
    pairs = {
        (loss, baseline): [[*runs.shared(loss, baseline or loss, seed)] for seed in range(len(runs.seeds))]
        for _, loss, baseline in CONTRASTS
    }
    return {key: claim.weights(pairs[key[1:]]) for key, claim in CONTRASTS.items() if claim.weights is not None}


def judged(
    values: np.ndarray, errors: np.ndarray, degrees: float, alpha: float = 0.05, corrected: bool = True
) -> Decisions:
    """The decision on a study's contrasts, given in the order of `CONTRASTS`, once or (contrasts, replicates)."""
    number = np.array([HYPOTHESES.index(key[:2]) for key in CONTRASTS])
    replicates = 1 if values.ndim == 1 else values.shape[1]
    hypothesis = (number[:, None] + len(HYPOTHESES) * np.arange(replicates)).ravel()
    smallest = np.repeat([SMALLEST[key[0]] for key in CONTRASTS], replicates)
    no_effect = np.repeat([CLAIMS[key[0]].no_effect for key in CONTRASTS], replicates)
    family = Contrasts(values.ravel(), errors.ravel(), np.full(values.size, degrees), hypothesis, smallest, no_effect)
    return decide(family, alpha, corrected)
