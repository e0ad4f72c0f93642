"""The paper's claims as comparisons: what was measured, the tolerance, and the verdict.

A margin is positive where the claim is right. A claim is supported if the margin is above its tolerance, not supported
if it is below minus the tolerance, and not testable at this scale in between: what was run cannot tell.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import style
from aggregate import PER_BATCH_SIZE, chosen
from scipy.stats import norm

from dhel_kcl.robustness import CONFIGURATION, join_runs, metric_rows, robustness, seed_means
from dhel_kcl.statistics import CONFIDENCE, paired_test

BASELINES = ("infonce", "ntxent", "dcl")
PAPER_DATASETS = ("cifar10", "cifar100", "stl10", "imagenet100")
SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable at this scale"
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "stl10": 8_000, "imagenet100": 5_000}
"""For results that do not say how many test images there were: the whole test sets."""
THEORY = "theory"
NORMAL = float(norm.ppf((1 + CONFIDENCE) / 2))
RANK_TOLERANCE = 0.05
NO_PAIRS = "no batch size at which a baseline was run too"


@dataclass(frozen=True)
class Margin:
    """How far a comparison speaks for a claim, or why it cannot be made; `runs` are those compared."""

    value: float = math.nan
    tolerance: float = math.nan
    measured: str = ""
    obstacle: str = ""
    runs: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.obstacle or not abs(self.value) > self.tolerance:
            return NOT_TESTABLE
        return SUPPORTED if self.value > 0 else NOT_SUPPORTED

    @property
    def reason(self) -> str:
        """Why the claim could not be tested."""
        if self.verdict != NOT_TESTABLE:
            return ""
        return self.obstacle or "the difference is within the tolerance"


@dataclass(frozen=True)
class Claim:
    """One empirical claim about a loss, and the targets that show what it was judged by."""

    statement: str
    evidence: tuple[str, ...]
    tolerance: str
    margin: Callable[[pd.DataFrame, str], Margin]


def verdicts(results: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each data set, claim and loss that the claim is about."""
    for dataset in style.in_order(results["dataset"], style.DATASET_NAMES):
        rows = results[results["dataset"] == dataset]
        ours = [loss for loss in style.in_order(rows["loss"], style.LOSS_NAMES) if loss not in BASELINES]
        for claim in CLAIMS:
            for loss in ours:
                margin = _margin(claim, rows, loss)
                yield {
                    "claim": claim.statement,
                    "loss": loss,
                    "dataset": dataset,
                    "measured": margin.measured,
                    "margin": margin.value,
                    "tolerance": margin.tolerance,
                    "tolerance_is": claim.tolerance,
                    "verdict": margin.verdict,
                    "reason": margin.reason,
                    "evidence": " ".join(claim.evidence),
                    "scale": scale(rows),
                    "runs": join_runs(pd.Series(margin.runs or rows["run"].unique())),
                }


def theorem_verdicts(theorems: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each theorem, over all its losses; the case that comes nearest to the tolerance stands for them."""
    for claim, rows in theorems.groupby("claim", sort=False):
        holding = rows["verdict"] == "holds"
        ratio = rows["error"] / rows["tolerance"]
        nearest = rows.loc[ratio.where(~rows["differs"], 1 / ratio).idxmax()]
        yield {
            "claim": claim,
            "loss": ";".join(rows["loss"].unique()),
            "dataset": THEORY,
            "measured": f"holds in {holding.sum()} of {len(rows)} cases",
            "margin": nearest["error"],
            "tolerance": nearest["tolerance"],
            "tolerance_is": "to be exceeded" if nearest["differs"] else "not to be exceeded",
            "verdict": SUPPORTED if holding.all() else NOT_SUPPORTED,
            "reason": "",
            "evidence": "table_theory",
            "scale": f"{nearest['setting']} ({style.LOSS_NAMES[nearest['loss']]})",
            "runs": join_runs(rows["runs"]),
        }


def _margin(claim: Claim, rows: pd.DataFrame, loss: str) -> Margin:
    if rows["dataset"].iloc[0] not in PAPER_DATASETS:
        return Margin(obstacle="not one of the paper's data sets")
    if not set(BASELINES) & set(rows["loss"]):
        return Margin(obstacle="no loss of the InfoNCE family was run")
    if loss not in set(metric_rows(rows, "linear_top1")["loss"]):
        return Margin(obstacle="none of its runs has an accuracy")
    return claim.margin(rows, loss)


def scale(rows: pd.DataFrame) -> str:
    """What was run on one data set, in words."""
    width = rows["width"].iloc[0]
    network = rows["backbone"].iloc[0] + ("" if width == 1 else f" at {width:g} of the width")
    sizes = ", ".join(map(str, sorted(rows["batch_size"].unique())))
    return (
        f"{rows['train_images'].iloc[0]:,} images, {network}, {rows['epochs'].iloc[0]} epochs, batch size {sizes}, "
        f"{rows['seed'].nunique()} seed{'s' if rows['seed'].nunique() > 1 else ''}"
    )


def _accuracy(rows: pd.DataFrame, loss: str) -> Margin:
    pairs = _against_best_baseline(rows, loss, "linear_top1")
    if pairs.empty:
        return Margin(obstacle=NO_PAIRS)
    by_seed = pairs.groupby("seed")[["ours", "theirs"]].mean()
    if len(by_seed) > 1:
        test = paired_test(by_seed["ours"], by_seed["theirs"])
        tolerance = (test.interval.high - test.interval.low) / 2
    else:
        variance = sum(_sampling_variance(rows, pairs[side]).sum() for side in ("ours", "theirs"))
        tolerance = NORMAL * math.sqrt(variance) / len(pairs)
    cells = [
        f"{ours:.3f} against {style.LOSS_NAMES[baseline]} {theirs:.3f} at batch size {size}"
        for size, baseline, ours, theirs in _means(pairs, "baseline").itertuples(index=False)
    ]
    value = float((by_seed["ours"] - by_seed["theirs"]).mean())
    return Margin(value, tolerance, "; ".join(cells), runs=_runs(pairs))


def _effective_rank(representation: str) -> Callable[[pd.DataFrame, str], Margin]:
    def margin(rows: pd.DataFrame, loss: str) -> Margin:
        kept = rows[(rows["metric"] != "effective_rank") | (rows["representation"] == representation)]
        pairs = _against_best_baseline(kept, loss, "effective_rank", highest=True)
        if pairs.empty:
            return Margin(obstacle=NO_PAIRS)
        means = _means(pairs)
        cells = [f"{ours:.1f} against {theirs:.1f} at {size}" for size, ours, theirs in means.itertuples(index=False)]
        ratio = math.exp(np.log(means["ours"] / means["theirs"]).mean())
        return Margin(ratio - 1, RANK_TOLERANCE, f"{'; '.join(cells)} (batch size)", runs=_runs(pairs))

    return margin


def _steadiness(axis: str, needed: str) -> Callable[[pd.DataFrame, str], Margin]:
    def margin(rows: pd.DataFrame, loss: str) -> Margin:
        spread = robustness(rows, "linear_top1")
        spread = spread[(spread["axis"] == axis) & (spread["settings"] > 1)].set_index("loss")
        ended = metric_rows(rows, "diverged")
        lost = ended[ended["value"] == 1].groupby("loss").size()
        if loss in lost:
            return Margin(obstacle=f"{lost[loss]} of its runs diverged: the worst accuracy is unknown")
        baselines = spread[spread.index.isin(BASELINES) & ~spread.index.isin(lost.index)]
        if loss not in spread.index or baselines.empty:
            return Margin(obstacle=f"one {needed} only")
        ours, theirs = spread.loc[loss], baselines.loc[baselines["range"].idxmin()]
        accuracies = metric_rows(rows, "linear_top1")
        variance = _sampling_variance(rows, accuracies["value"]).mean() / accuracies["seed"].nunique()
        # A range is a difference of two accuracies, the margin one of two ranges; groups of settings are averaged.
        tolerance = NORMAL * math.sqrt(2 * variance * (1 / ours["groups"] + 1 / theirs["groups"]))
        measured = f"{ours['range']:.3f} against {style.LOSS_NAMES[str(theirs.name)]} {theirs['range']:.3f}"
        return Margin(theirs["range"] - ours["range"], tolerance, measured, runs=[ours["runs"], theirs["runs"]])

    return margin


def _against_best_baseline(rows: pd.DataFrame, loss: str, metric: str, highest: bool = False) -> pd.DataFrame:
    """Values of a loss and of a baseline at each batch size and shared seed, both at settings that validation chooses.

    The baseline is the one that validation prefers at that batch size, or the one with the `highest` value.
    """
    settings = chosen(rows, PER_BATCH_SIZE)
    values = metric_rows(rows, metric).merge(settings, on=CONFIGURATION)
    rank = values if highest else metric_rows(rows, "validation_top1").merge(settings, on=CONFIGURATION)
    order = seed_means(rank[rank["loss"].isin(BASELINES)])
    baseline = order.loc[order.groupby("batch_size")["mean"].idxmax()].set_index("batch_size")["loss"]
    theirs = values[values["loss"] == values["batch_size"].map(baseline)]
    columns = ["batch_size", "seed", "loss", "value", "run"]
    pairs = values.loc[values["loss"] == loss, columns].merge(theirs[columns], on=["batch_size", "seed"])
    return pairs.rename(columns={"loss_y": "baseline", "value_x": "ours", "value_y": "theirs"})


def _means(pairs: pd.DataFrame, *keys: str) -> pd.DataFrame:
    return pairs.groupby(["batch_size", *keys])[["ours", "theirs"]].mean().reset_index()


def _sampling_variance(rows: pd.DataFrame, accuracies: pd.Series) -> pd.Series:
    """Variance of accuracies under another draw of as many test images."""
    counted = metric_rows(rows, "test_images")["value"]
    images = counted.min() if len(counted) else TEST_IMAGES[rows["dataset"].iloc[0]]
    return accuracies * (1 - accuracies) / images


def _runs(pairs: pd.DataFrame) -> list[str]:
    return [*pairs["run_x"], *pairs["run_y"]]


_RANGE = "1.96 standard errors of the difference of two ranges, from the test images"
CLAIMS = (
    Claim(
        "higher accuracy of linear evaluation than the best of the InfoNCE family",
        ("table_linear_accuracy", "fig_batch_size"),
        "half the 95% interval of the mean difference: over seeds, or with one seed over test images",
        _accuracy,
    ),
    Claim(
        "accuracy depends less on the batch size",
        ("table_robustness", "fig_batch_size"),
        _RANGE,
        _steadiness("batch_size", "batch size"),
    ),
    Claim(
        "accuracy depends less on the hyperparameters",
        ("table_robustness", "fig_temperature"),
        _RANGE,
        _steadiness("hyperparameters", "hyperparameter setting"),
    ),
    Claim(
        "accuracy depends less on both together",
        ("table_robustness",),
        _RANGE,
        _steadiness("both", "combination"),
    ),
    Claim(
        "less dimensional collapse: higher effective rank of the projector's output z",
        ("fig_effective_rank", "table_representation"),
        "5% of the highest effective rank of the InfoNCE family",
        _effective_rank("z"),
    ),
    Claim(
        "less dimensional collapse: higher effective rank of the backbone's features h",
        ("fig_effective_rank", "table_representation"),
        "5% of the highest effective rank of the InfoNCE family",
        _effective_rank("h"),
    ),
)
