"""Judge the paper's claims as comparisons: what was measured, the tolerance, and the verdict.

A positive margin speaks for the claim. A claim is supported if the margin is above its tolerance, not supported if the
margin is below minus the tolerance, and not testable at this scale if it is in between: the runs cannot tell.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from dhel_kcl.results.choice import PER_BATCH_SIZE, chosen, not_measured
from dhel_kcl.results.names import BASELINES, DATASET_NAMES, LOSS_NAMES, PAPER_DATASETS, PROPOSED, in_order
from dhel_kcl.results.robustness import CONFIGURATION, HYPERPARAMETERS, join_runs, metric_rows, robustness
from dhel_kcl.results.statistics import CONFIDENCE, paired_test


@dataclass(frozen=True)
class Claim:
    """One empirical claim about a loss.

    Attributes:
        statement: what is claimed.
        evidence: the figures and tables that show the measurements behind the verdict.
        tolerance: the tolerance of the margin, in words.
        margin: function that computes the margin from the measurements on one data set, for a loss.
        unit: unit of the margin; see `in_unit`.
        about: the losses that the claim is about.
    """

    statement: str
    evidence: tuple[str, ...]
    tolerance: str
    margin: Callable[["Measured", str], "Margin"]
    unit: str = "accuracy"
    about: tuple[str, ...] = PROPOSED


_RANGE = "half the 95% interval of the difference of the ranges: over seeds, or with one seed over test images"
CLAIMS = (
    Claim(
        "higher accuracy of linear evaluation than the best of the InfoNCE family",
        ("table_linear_accuracy", "fig_batch_size"),
        "half the 95% interval of the mean difference: over seeds, or with one seed over test images",
        lambda measured, loss: _accuracy(measured, loss),
    ),
    Claim(
        "accuracy depends less on the batch size",
        ("table_robustness", "fig_batch_size"),
        _RANGE,
        lambda measured, loss: _steadiness(measured, loss, "batch_size"),
    ),
    Claim(
        "accuracy depends less on the hyperparameters",
        ("table_robustness", "fig_temperature"),
        _RANGE,
        lambda measured, loss: _steadiness(measured, loss, "hyperparameters"),
    ),
    Claim(
        "accuracy depends less on both together",
        ("table_robustness",),
        _RANGE,
        lambda measured, loss: _steadiness(measured, loss, "hyperparameters", "batch_size"),
    ),
    Claim(
        "less dimensional collapse: higher effective rank of the projector's output z",
        ("fig_effective_rank", "table_representation"),
        "5% of the highest effective rank of the InfoNCE family",
        lambda measured, loss: _effective_rank(measured, loss, "z"),
        unit="relative",
    ),
    Claim(
        "less dimensional collapse: higher effective rank of the backbone's features h",
        ("fig_effective_rank", "table_representation"),
        "5% of the highest effective rank of the InfoNCE family",
        lambda measured, loss: _effective_rank(measured, loss, "h"),
        unit="relative",
    ),
    Claim(
        "less dimensional collapse at equal temperature: higher effective rank of z",
        ("fig_rank_accuracy",),
        "5% of the highest effective rank of the InfoNCE family",
        lambda measured, loss: _rank_at_equal_temperature(measured, loss),
        unit="relative",
        about=("dhel",),
    ),
)
ON_SEVERAL_DATA_SETS = "the higher accuracy is found on several data sets"
"""This claim is judged by the verdicts of the first claim on the paper's data sets."""

METRICS = ("linear_top1", "validation_top1", "effective_rank", "test_images", "diverged", "not_measured")
SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable at this scale"
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "stl10": 8_000, "imagenet100": 5_000}
"""Sizes of the whole test sets, for results without the number of test images."""
THEORY, ALL = "theory", "all"
NORMAL = float(norm.ppf((1 + CONFIDENCE) / 2))
RANK_TOLERANCE = 0.05
NAMES_OF_AXES = {"batch_size": "batch size", "hyperparameters": "hyperparameter setting"}
AXES = {"batch_size": ["batch_size"], "hyperparameters": HYPERPARAMETERS}
NO_PAIRS = "no batch size at which a baseline was run too"


@dataclass(frozen=True)
class Margin:
    """How far a comparison speaks for a claim, or why there is none; `runs` are the compared runs."""

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
        unknown = "the differences of the seeds have no spread"
        return self.obstacle or (unknown if math.isnan(self.tolerance) else "the difference is within the tolerance")


class Measured:
    """The measurements on one data set, in the form in which the claims compare them."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        ended = metric_rows(rows, "diverged")
        self.diverged = ended[ended["value"] == 1].groupby("loss").size()
        self.not_measured = not_measured(rows, "linear_top1").groupby("loss").size()
        self.accuracies = metric_rows(rows, "linear_top1")

    @cached_property
    def spread(self) -> pd.DataFrame:
        """`robustness` of the accuracies, computed for each `seed`."""
        seeds = {seed: robustness(rows, "linear_top1") for seed, rows in self.rows.groupby("seed")}
        return pd.concat(seeds, names=["seed", None]).reset_index("seed")

    def varied(self, loss: str) -> set[str]:
        """Return the `AXES` along which a loss was varied."""
        rows = self.accuracies[self.accuracies["loss"] == loss]
        counts = {axis: len(rows[columns].drop_duplicates()) for axis, columns in AXES.items()}
        return {axis for axis, count in counts.items() if count > 1}

    def at_choice(self, metric: str, representation: str = "") -> pd.DataFrame:
        """Return the rows of a metric at the settings that validation chooses for each loss and batch size."""
        rows = metric_rows(self.rows, metric).merge(self._choice, on=CONFIGURATION)
        return rows[rows["representation"] == representation] if representation else rows

    @cached_property
    def _choice(self) -> pd.DataFrame:
        return chosen(self.rows, PER_BATCH_SIZE)

    def sampling_variance(self, accuracies: pd.Series) -> pd.Series:
        """Estimate the variance of accuracies over draws of the same number of test images."""
        counted = metric_rows(self.rows, "test_images")["value"]
        images = counted.min() if len(counted) else TEST_IMAGES[self.rows["dataset"].iloc[0]]
        return accuracies * (1 - accuracies) / images


def verdicts(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Judge each claim: a row for each data set and relevant loss, and one for each loss over all data sets."""
    rows = [*_on_each_data_set(results)]
    gains = [row for row in rows if row["claim"] == CLAIMS[0].statement and row["dataset"] in PAPER_DATASETS]
    return [*rows, *(_on_several(loss, gains) for loss in PROPOSED if loss in {row["loss"] for row in gains})]


def _on_several(loss: str, gains: list[dict[str, Any]]) -> dict[str, Any]:
    """Judge whether a gain in accuracy is found on every data set that was run."""
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
    supported = [DATASET_NAMES[row["dataset"]] for row in of_loss if row["verdict"] == SUPPORTED]
    return {
        "claim": ON_SEVERAL_DATA_SETS,
        "loss": loss,
        "dataset": ALL,
        "measured": f"on {len(supported)} of {len(of_loss)}" + "".join(f", {name}" for name in supported),
        "margin": pd.Series(margins).min(),
        "tolerance": math.nan,
        "unit": "accuracy",
        "tolerance_is": "the verdict of each data set",
        "verdict": verdict,
        "reason": reason,
        "evidence": "table_linear_accuracy",
        "scale": "; ".join(f"{DATASET_NAMES[row['dataset']]}: {row['scale']}" for row in of_loss),
        "runs": join_runs(pd.Series([row["runs"] for row in of_loss])),
    }


def _on_each_data_set(results: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for dataset in in_order(results["dataset"], DATASET_NAMES):
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
                "unit": claim.unit,
                "tolerance_is": claim.tolerance,
                "verdict": margin.verdict,
                "reason": margin.reason,
                "evidence": " ".join(claim.evidence),
                "scale": scale(rows),
                "runs": join_runs(pd.Series(margin.runs or rows["run"].unique())),
            }


def in_unit(value: float, unit: str, sign: str = "") -> str:
    """Format a margin or tolerance: a difference of accuracies, a relative difference, or an error."""
    formats = {"accuracy": f"{sign}.3f", "relative": f"{sign}.0%", "error": ".0e"}
    return "" if pd.isna(value) else format(value, formats[unit])


def theorem_verdicts(theorems: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Judge each theorem over all its losses; show the case that is nearest to the tolerance."""
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
            "unit": "error",
            "tolerance_is": "to be exceeded" if nearest["differs"] else "not to be exceeded",
            "verdict": SUPPORTED if holding.all() else NOT_SUPPORTED,
            "reason": "",
            "evidence": "table_theory",
            "scale": f"{nearest['setting']} ({LOSS_NAMES[nearest['loss']]})",
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
    """Describe what was run on one data set."""
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
        tolerance = _half_interval(by_seed["ours"], by_seed["theirs"])
    else:
        variance = sum(float(measured.sampling_variance(pairs[side]).sum()) for side in ("ours", "theirs"))
        tolerance = NORMAL * math.sqrt(variance) / len(pairs)
    cells = [
        f"{ours:.3f} against {LOSS_NAMES[baseline]} {theirs:.3f} at batch size {size}"
        for size, baseline, ours, theirs in _means(pairs, "baseline").itertuples(index=False)
    ]
    value = float((by_seed["ours"] - by_seed["theirs"]).mean())
    return Margin(value, tolerance, "; ".join(cells), runs=_runs(pairs))


def _effective_rank(measured: Measured, loss: str, representation: str) -> Margin:
    ranks = measured.at_choice("effective_rank", representation)
    pairs = _against_best_baseline(ranks, loss, ranks)
    if pairs.empty:
        return Margin(obstacle=NO_PAIRS)
    means = _means(pairs)
    cells = [f"{ours:.1f} against {theirs:.1f} at {size}" for size, ours, theirs in means.itertuples(index=False)]
    ratio = math.exp(np.log(means["ours"] / means["theirs"]).mean())
    return Margin(ratio - 1, RANK_TOLERANCE, f"{'; '.join(cells)} (batch size)", runs=_runs(pairs))


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


def _steadiness(measured: Measured, loss: str, *axes: str) -> Margin:
    axis = axes[0] if len(axes) == 1 else "both"
    lost = {*measured.diverged.index, *measured.not_measured.index}
    for count, what in ((measured.diverged, "diverged"), (measured.not_measured, "could not be measured")):
        if loss in count:
            return Margin(obstacle=f"{count[loss]} of its runs {what}: the worst accuracy is unknown")
    if fixed := [NAMES_OF_AXES[each] for each in axes if each not in measured.varied(loss)]:
        return Margin(obstacle=f"one {fixed[0]} only")
    spread = measured.spread[measured.spread["axis"] == axis]
    rivals = [each for each in BASELINES if each not in lost and set(axes) <= measured.varied(each)]
    if not rivals:
        return Margin(obstacle="each baseline diverged somewhere or was not varied so")
    by_loss = spread[spread["loss"].isin(rivals)].groupby("loss")["range"].mean()
    best = str(by_loss.idxmin())
    ours, theirs = (spread[spread["loss"] == each].set_index("seed") for each in (loss, best))
    seeds = ours.index.intersection(theirs.index)
    if seeds.empty:
        return Margin(obstacle=f"no seed in common with {LOSS_NAMES[best]}")
    both = pd.concat([ours.loc[seeds], theirs.loc[seeds]])
    ranges = [float(part.loc[seeds, "range"].mean()) for part in (ours, theirs)]
    if len(seeds) > 1:
        tolerance = _half_interval(theirs.loc[seeds, "range"], ours.loc[seeds, "range"])
    else:
        # A range is the difference of two accuracies and a margin that of two ranges; groups of settings are averaged.
        variance = float(measured.sampling_variance(measured.accuracies["value"]).mean())
        tolerance = NORMAL * math.sqrt(2 * variance * float((1 / both["groups"]).sum()))
    settings = [int(part["settings"].max()) for part in (ours, theirs)]
    baseline = LOSS_NAMES[best]
    text = f"{ranges[0]:.3f} over {settings[0]} against {baseline} {ranges[1]:.3f} over {settings[1]}"
    return Margin(ranges[1] - ranges[0], tolerance, text, runs=[*both["runs"]])


def _half_interval(first: pd.Series, second: pd.Series) -> float:
    """Return half the 95% interval over seeds of a mean difference; NaN if all seeds have the same difference."""
    interval = paired_test(first, second).interval
    return (interval.high - interval.low) / 2


def _against_best_baseline(values: pd.DataFrame, loss: str, order: pd.DataFrame) -> pd.DataFrame:
    """Pair the values of a loss, `ours`, with those of a baseline, `theirs`, at each batch size and shared seed.

    At each batch size, the baseline is the one with the highest mean in `order`.
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
