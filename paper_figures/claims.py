"""The paper's claims as comparisons: what was measured, the tolerance, and the verdict.

A margin is positive where the claim is right. A claim is supported if the margin is above its tolerance, not supported
if it is below minus the tolerance, and not testable at this scale in between: what was run cannot tell.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
import style
from aggregate import PER_BATCH_SIZE, chosen
from scipy.stats import norm

from dhel_kcl.robustness import CONFIGURATION, join_runs, metric_rows, robustness
from dhel_kcl.statistics import CONFIDENCE, paired_test

METRICS = ("linear_top1", "validation_top1", "effective_rank", "test_images", "diverged")
BASELINES = ("infonce", "ntxent", "dcl")
PROPOSED = ("dhel", "kcl_gaussian", "kcl_log", "kcl_imq")
PAPER_DATASETS = ("cifar10", "cifar100", "stl10", "imagenet100")
SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable at this scale"
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "stl10": 8_000, "imagenet100": 5_000}
"""For results that do not say how many test images there were: the whole test sets."""
THEORY, ALL = "theory", "all"
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
        """One of `SUPPORTED`, `NOT_SUPPORTED` and `NOT_TESTABLE`."""
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
    margin: Callable[["Measured", str], Margin]
    about: tuple[str, ...] = PROPOSED


class Measured:
    """What was measured on one data set, as the claims compare it."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        ended = metric_rows(rows, "diverged")
        self.diverged = ended[ended["value"] == 1].groupby("loss").size()
        self.accuracies = metric_rows(rows, "linear_top1")

    @cached_property
    def spread(self) -> pd.DataFrame:
        """`robustness` of the accuracies."""
        return robustness(self.rows, "linear_top1")

    @cache  # noqa: B019, it lives as long as this
    def at_choice(self, metric: str, representation: str = "") -> pd.DataFrame:
        """Rows of a metric at the settings that validation chooses for each loss and batch size."""
        rows = metric_rows(self.rows, metric).merge(self._choice, on=CONFIGURATION)
        return rows[rows["representation"] == representation] if representation else rows

    @cached_property
    def _choice(self) -> pd.DataFrame:
        return chosen(self.rows, PER_BATCH_SIZE)

    def sampling_variance(self, accuracies: pd.Series) -> pd.Series:
        """Variance of accuracies under another draw of as many test images."""
        counted = metric_rows(self.rows, "test_images")["value"]
        images = counted.min() if len(counted) else TEST_IMAGES[self.rows["dataset"].iloc[0]]
        return accuracies * (1 - accuracies) / images


def verdicts(results: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each data set, claim and loss that the claim is about, and one for each loss over all data sets."""
    rows = [*_on_each_data_set(results)]
    gains = [row for row in rows if row["claim"] == CLAIMS[0].statement and row["dataset"] in PAPER_DATASETS]
    return [*rows, *(_on_several(loss, gains) for loss in PROPOSED if loss in {row["loss"] for row in gains})]


def _on_several(loss: str, gains: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether a gain in accuracy is found on every data set that was run."""
    of_loss = [row for row in gains if row["loss"] == loss]
    found = {row["verdict"] for row in of_loss}
    margins = [row["margin"] for row in of_loss]
    if len(of_loss) < 2:
        verdict, reason = NOT_TESTABLE, "one of the paper's data sets only"
    elif NOT_SUPPORTED in found:
        verdict, reason = NOT_SUPPORTED, ""
    else:
        verdict = SUPPORTED if found == {SUPPORTED} else NOT_TESTABLE
        reason = "" if verdict == SUPPORTED else "some data set cannot tell"
    supported = [style.DATASET_NAMES[row["dataset"]] for row in of_loss if row["verdict"] == SUPPORTED]
    return {
        "claim": "the higher accuracy is found on several data sets",
        "loss": loss,
        "dataset": ALL,
        "measured": f"on {len(supported)} of {len(of_loss)}" + "".join(f", {name}" for name in supported),
        "margin": min(margins),
        "tolerance": math.nan,
        "tolerance_is": "the verdict of each data set",
        "verdict": verdict,
        "reason": reason,
        "evidence": "table_linear_accuracy",
        "scale": "; ".join(f"{style.DATASET_NAMES[row['dataset']]}: {row['scale']}" for row in of_loss),
        "runs": join_runs(pd.Series([row["runs"] for row in of_loss])),
    }


def _on_each_data_set(results: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for dataset in style.in_order(results["dataset"], style.DATASET_NAMES):
        rows = results[(results["dataset"] == dataset) & results["metric"].isin(METRICS)]
        measured = Measured(rows)
        run = set(rows["loss"])
        for claim, loss in [(each, loss) for each in CLAIMS for loss in each.about if loss in run]:
            margin = _margin(claim, measured, loss)
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
        nearest = rows.iloc[int(np.argmax(ratio.where(~rows["differs"], 1 / ratio)))]
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


def _margin(claim: Claim, measured: Measured, loss: str) -> Margin:
    rows = measured.rows
    if rows["dataset"].iloc[0] not in PAPER_DATASETS:
        return Margin(obstacle="not one of the paper's data sets")
    if not set(BASELINES) & set(rows["loss"]):
        return Margin(obstacle="no loss of the InfoNCE family was run")
    if loss not in set(measured.accuracies["loss"]):
        return Margin(obstacle="none of its runs has an accuracy")
    return claim.margin(measured, loss)


def scale(rows: pd.DataFrame) -> str:
    """What was run on one data set, in words."""
    width = rows["width"].iloc[0]
    network = rows["backbone"].iloc[0] + ("" if width == 1 else f" at {width:g} of the width")
    sizes = ", ".join(map(str, sorted(rows["batch_size"].unique())))
    seeds = len(rows["seed"].unique())
    return (
        f"{rows['train_images'].iloc[0]:,} images, {network}, {rows['epochs'].iloc[0]} epochs, batch size {sizes}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}"
    )


def _accuracy(measured: Measured, loss: str) -> Margin:
    accuracies = measured.at_choice("linear_top1")
    pairs = _against_best_baseline(accuracies, loss, measured.at_choice("validation_top1"))
    if pairs.empty:
        return Margin(obstacle=NO_PAIRS)
    by_seed = pairs.groupby("seed")[["ours", "theirs"]].mean()
    if len(by_seed) > 1:
        test = paired_test(by_seed["ours"], by_seed["theirs"])
        tolerance = (test.interval.high - test.interval.low) / 2
    else:
        variance = sum(float(measured.sampling_variance(pairs[side]).sum()) for side in ("ours", "theirs"))
        tolerance = NORMAL * math.sqrt(variance) / len(pairs)
    cells = [
        f"{ours:.3f} against {style.LOSS_NAMES[baseline]} {theirs:.3f} at batch size {size}"
        for size, baseline, ours, theirs in _means(pairs, "baseline").itertuples(index=False)
    ]
    value = float((by_seed["ours"] - by_seed["theirs"]).mean())
    return Margin(value, tolerance, "; ".join(cells), runs=_runs(pairs))


def _effective_rank(representation: str) -> Callable[[Measured, str], Margin]:
    def margin(measured: Measured, loss: str) -> Margin:
        ranks = measured.at_choice("effective_rank", representation)
        pairs = _against_best_baseline(ranks, loss, ranks)
        if pairs.empty:
            return Margin(obstacle=NO_PAIRS)
        means = _means(pairs)
        cells = [f"{ours:.1f} against {theirs:.1f} at {size}" for size, ours, theirs in means.itertuples(index=False)]
        ratio = math.exp(np.log(means["ours"] / means["theirs"]).mean())
        return Margin(ratio - 1, RANK_TOLERANCE, f"{'; '.join(cells)} (batch size)", runs=_runs(pairs))

    return margin


def _rank_at_equal_temperature(measured: Measured, loss: str) -> Margin:
    rows = metric_rows(measured.rows, "effective_rank")
    rows = rows[rows["representation"] == "z"]
    setting = ["temperature", "batch_size", "seed"]
    ours = rows[rows["loss"] == loss]
    highest = rows[rows["loss"].isin(BASELINES)].groupby(setting)["value"].idxmax()
    pairs = ours.merge(rows.loc[highest], on=setting).rename(columns={"value_x": "ours", "value_y": "theirs"})
    if pairs.empty:
        return Margin(obstacle="no temperature and batch size at which a baseline was run too")
    means = pairs.groupby("temperature")[["ours", "theirs"]].mean().reset_index()
    cells = [f"{ours:.1f} against {theirs:.1f} at {t:g}" for t, ours, theirs in means.itertuples(index=False)]
    ratio = math.exp(np.log(pairs["ours"] / pairs["theirs"]).mean())
    return Margin(ratio - 1, RANK_TOLERANCE, f"{'; '.join(cells)} (temperature)", runs=_runs(pairs))


def _steadiness(axis: str, needed: str) -> Callable[[Measured, str], Margin]:
    def margin(measured: Measured, loss: str) -> Margin:
        lost, spread = measured.diverged, measured.spread
        if loss in lost:
            return Margin(obstacle=f"{lost[loss]} of its runs diverged: the worst accuracy is unknown")
        spread = spread[(spread["axis"] == axis) & (spread["settings"] > 1)]
        ours = spread[spread["loss"] == loss]
        theirs = spread[spread["loss"].isin(BASELINES) & ~spread["loss"].isin(lost.index)].nsmallest(1, "range")
        if ours.empty or theirs.empty:
            return Margin(obstacle=f"one {needed} only")
        both = pd.concat([ours, theirs])
        ranges = [float(value) for value in both["range"]]
        accuracies = measured.accuracies
        variance = float(measured.sampling_variance(accuracies["value"]).mean()) / len(accuracies["seed"].unique())
        # A range is a difference of two accuracies, the margin one of two ranges; groups of settings are averaged.
        tolerance = NORMAL * math.sqrt(2 * variance * float((1 / both["groups"]).sum()))
        settings = [*both["settings"]]
        baseline = style.LOSS_NAMES[theirs["loss"].iloc[0]]
        text = f"{ranges[0]:.3f} over {settings[0]} against {baseline} {ranges[1]:.3f} over {settings[1]}"
        return Margin(ranges[1] - ranges[0], tolerance, text, runs=[*both["runs"]])

    return margin


def _against_best_baseline(values: pd.DataFrame, loss: str, order: pd.DataFrame) -> pd.DataFrame:
    """Values of a loss, `ours`, and of a baseline, `theirs`, at each batch size and shared seed.

    The baseline at a batch size is the one that is highest in `order`.
    """
    ranking = order[order["loss"].isin(BASELINES)].groupby(["batch_size", "loss"])["value"].mean()
    baseline = dict(ranking.groupby("batch_size").idxmax())
    theirs = values[values["loss"] == values["batch_size"].map({size: best for size, (_, best) in baseline.items()})]
    columns = ["batch_size", "seed", "loss", "value", "run"]
    pairs = values.loc[values["loss"] == loss, columns].merge(theirs[columns], on=["batch_size", "seed"])
    return pairs.rename(columns={"loss_y": "baseline", "value_x": "ours", "value_y": "theirs"})


def _means(pairs: pd.DataFrame, *keys: str) -> pd.DataFrame:
    return pairs.groupby(["batch_size", *keys])[["ours", "theirs"]].mean().reset_index()


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
    Claim(
        "less dimensional collapse at equal temperature: higher effective rank of z",
        ("fig_rank_accuracy",),
        "5% of the highest effective rank of the InfoNCE family",
        _rank_at_equal_temperature,
        about=("dhel",),
    ),
)
