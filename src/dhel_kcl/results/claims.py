"""The paper's claims as contrasts of cells, and what a study says about each of them.

The rule is in `decision`, the statistical model in `contrasts`. What is judged, and the smallest effects of interest,
is the configuration's `study`. With one seed, nothing about trained networks is judged: the values are shown.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.formula.api import ols

from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.hits import unpack_hits
from dhel_kcl.experiment.config import ClaimConfig, StudyConfig
from dhel_kcl.results.contrasts import Estimate, Runs, Shared, Weights
from dhel_kcl.results.decision import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED, Contrasts, decide
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, in_order
from dhel_kcl.results.robustness import HYPERPARAMETERS, join_runs, metric_rows
from dhel_kcl.results.table import VERDICT_COLUMNS

ACCURACY, RATIO = "accuracy", "ratio"
"""Units: a difference of accuracies, in [-1, 1]; and the logarithm of a ratio."""
ALL = "all"
CHANCE = {"cifar10": 0.1, "cifar100": 0.01, "stl10": 0.1, "imagenet100": 0.01, "digits": 0.1}
"""Accuracy of a diverged run, 1 / classes."""
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "stl10": 8_000, "imagenet100": 5_000}
"""Sizes of the whole test sets, for results without the number of test images."""
METRICS = ("linear_top1", "validation_top1", "effective_rank", "alignment", "test_images", "diverged")
ONE_SEED = "one seed"


class NoContrastError(Exception):
    """A contrast that the grid does not allow; the message is the reason."""


Pair = list[list[Shared]]
"""The cells that a loss and a baseline share, for each seed."""


@dataclass(frozen=True)
class Claim:
    """One claim about a loss.

    Attributes:
        statement: what is claimed.
        estimand: what is estimated, in words; it is positive where the claim holds.
        evidence: the figures and tables that show the measurements behind the verdict.
        weights: the weights of the runs in the contrast, from the cells that a loss and a baseline share.
        metric: the measured value.
        representation: where it is measured, ``h`` or ``z``.
        unit: `ACCURACY` or `RATIO`.
        kernels_only: whether it is about KCL alone.
    """

    statement: str
    estimand: str
    evidence: tuple[str, ...]
    weights: Callable[[Pair], Weights] | None = None
    metric: str = "linear_top1"
    representation: str = "h"
    unit: str = ACCURACY
    kernels_only: bool = False

    @property
    def no_effect(self) -> bool:
        """Whether the claim is that there is no effect; it then has no baseline."""
        return self.kernels_only


def _mean(cells: list[Shared], sign: float, side: str, weights: Weights, seeds: int) -> None:
    """Add the mean over cells, for one of the seeds, of one side of each cell."""
    for cell in cells:
        run = int(getattr(cell, side))
        weights[run] = weights.get(run, 0.0) + sign / len(cells) / seeds


def _tuned(cells: list[Shared]) -> list[Shared]:
    if not (tuned := [cell for cell in cells if cell.rank == 0]):
        raise NoContrastError("no batch size at which both were run")
    return tuned


def _accuracy(pair: Pair) -> Weights:
    weights: Weights = {}
    for cells in pair:
        tuned = _tuned(cells)
        _mean(tuned, 1, "ours", weights, len(pair))
        _mean(tuned, -1, "theirs", weights, len(pair))
    return weights


def _ends(cells: list[Shared]) -> tuple[list[Shared], list[Shared]]:
    """Return the cells at the smallest and at the largest level, of the strengths that have both."""
    levels = sorted({cell.level for cell in cells})
    for low, high in ((low, high) for low in levels[:1] for high in reversed(levels[1:])):
        ranks = {cell.rank for cell in cells if cell.level == low} & {c.rank for c in cells if c.level == high}
        if ranks:
            return (
                [cell for cell in cells if cell.level == low and cell.rank in ranks],
                [cell for cell in cells if cell.level == high and cell.rank in ranks],
            )
    raise NoContrastError("no setting that both were run with at two batch sizes")


def _batch_size(pair: Pair) -> Weights:
    weights: Weights = {}
    for cells in pair:
        small, large = _ends(cells)
        for side, sign in (("theirs", 1), ("ours", -1)):
            _mean(large, sign, side, weights, len(pair))
            _mean(small, -sign, side, weights, len(pair))
    return weights


def _small_batches(pair: Pair) -> Weights:
    weights: Weights = {}
    for cells in pair:
        small, large = _ends(_tuned(cells))
        _mean(small, 1, "ours", weights, len(pair))
        _mean(large, -1, "theirs", weights, len(pair))
    return weights


def _hyperparameters(pair: Pair) -> Weights:
    weights: Weights = {}
    for cells in pair:
        outer = [cell for cell in cells if cell.rank != 0]
        centres = {cell.level: cell for cell in _tuned(cells)}
        levels = sorted(centres.keys() & {cell.level for cell in outer})
        if not levels:
            raise NoContrastError("no two strengths that both were run with at one batch size")
        for level in levels:
            for side, sign in (("theirs", 1), ("ours", -1)):
                _mean([centres[level]], sign, side, weights, len(pair) * len(levels))
                around = [cell for cell in outer if cell.level == level]
                _mean(around, -sign, side, weights, len(pair) * len(levels))
    return weights


def _both(pair: Pair) -> Weights:
    weights: Weights = {}
    for cells in pair:
        tuned = _tuned(cells)
        centre = tuned[len(tuned) // 2]
        around = [cell for cell in cells if cell != centre]
        if len({cell.rank for cell in cells}) < 2 or len({cell.level for cell in cells}) < 2:
            raise NoContrastError("no two strengths and two batch sizes that both were run with")
        for side, sign in (("theirs", 1), ("ours", -1)):
            _mean([centre], sign, side, weights, len(pair))
            _mean(around, -sign, side, weights, len(pair))
    return weights


def _no_batch_size(pair: Pair) -> Weights:
    weights: Weights = {}
    for cells in pair:
        small, large = _ends(cells)
        _mean(large, 1, "ours", weights, len(pair))
        _mean(small, -1, "ours", weights, len(pair))
    return weights


CLAIMS = {
    "accuracy": Claim(
        "higher accuracy of linear evaluation",
        "accuracy at the tuned strength, mean over batch sizes: loss minus baseline",
        ("table_linear_accuracy", "fig_batch_size"),
        _accuracy,
    ),
    "batch_size": Claim(
        "accuracy depends less on the batch size",
        "accuracy at the largest minus at the smallest batch size, mean over strengths: baseline minus loss",
        ("table_robustness", "fig_batch_size"),
        _batch_size,
    ),
    "small_batches": Claim(
        "higher accuracy with small batches than the baseline with large ones",
        "accuracy at the tuned strength: loss at the smallest minus baseline at the largest batch size",
        ("table_linear_accuracy", "fig_batch_size"),
        _small_batches,
    ),
    "hyperparameters": Claim(
        "accuracy depends less on the hyperparameters",
        "accuracy at the tuned strength minus the mean at the others, mean over batch sizes: baseline minus loss",
        ("table_robustness", "fig_temperature"),
        _hyperparameters,
    ),
    "both": Claim(
        "accuracy depends less on both together",
        "accuracy at the tuned strength and the middle batch size minus the mean of all other cells: "
        "baseline minus loss",
        ("table_robustness",),
        _both,
    ),
    "no_batch_size": Claim(
        "accuracy does not depend on the batch size",
        "accuracy at the largest minus at the smallest batch size, mean over strengths",
        ("fig_batch_size",),
        _no_batch_size,
        kernels_only=True,
    ),
    "rank": Claim(
        "less dimensional collapse: higher effective rank of the projector's output z",
        "effective rank at the tuned strength, geometric mean over batch sizes: ratio of loss to baseline",
        ("fig_effective_rank", "table_representation"),
        _accuracy,
        metric="effective_rank",
        representation="z",
        unit=RATIO,
    ),
    "rank_h": Claim(
        "less dimensional collapse: higher effective rank of the backbone's features h",
        "effective rank at the tuned strength, geometric mean over batch sizes: ratio of loss to baseline",
        ("fig_effective_rank", "table_representation"),
        _accuracy,
        metric="effective_rank",
        unit=RATIO,
    ),
    "rank_at_alignment": Claim(
        "less dimensional collapse at equal alignment: higher effective rank of z",
        "effective rank, regressed on loss and log alignment over all cells: ratio of loss to baseline",
        ("fig_rank_accuracy",),
        metric="effective_rank",
        representation="z",
        unit=RATIO,
    ),
    "several_data_sets": Claim(
        "the higher accuracy is found on several data sets",
        "mean over data sets of the contrast of higher accuracy",
        ("table_linear_accuracy",),
    ),
}
"""The claims by their key in the configuration's `study.claims`."""


@dataclass
class _Row:
    """One comparison before and after the decision."""

    claim: str
    dataset: str
    loss: str
    baseline: str
    estimate: Estimate | None
    runs: list[str]
    seeds: int
    cells: int
    contains: str
    reason: str
    lost: str
    scale: str


def judge(results: pd.DataFrame, study: StudyConfig) -> pd.DataFrame:
    """Judge each claim of a study.

    Args:
        results: the tidy results.
        study: what is judged.

    Returns:
        A row for each data set, claim, loss and baseline (empty for a claim without one). `run` names the row, `metric`
        is what the contrast is made of, and `estimate` is positive where the claim holds: a difference of accuracies
        or, in the unit `RATIO`, the logarithm of a ratio. `low` and `high` are the ends of the interval, which miss the
        truth with probabilities `error_low` and `error_high`; `contains` says which uncertainty is in it.
        `against_baseline`
        is the state of the row, and `state` that of the claim about the loss on the data set; `p` and `p_holm` belong
        to the latter. `seeds` and `cells` count what was compared, `lost` the runs of the loss and the baseline that
        diverged or could not be measured, and `runs` lists the runs. Exploratory rows are not in the family.

    Raises:
        InputError: a run diverged on a data set with an unknown number of classes, or hits are damaged.
    """
    rows = [row for name in _judged(results, study) for row in _of_data_set(results, name, study)]
    rows += _of_several(rows, study)
    table = pd.DataFrame([_facts(row, study) for row in rows])
    if table.empty:
        return pd.DataFrame(columns=[*VERDICT_COLUMNS])
    decided = [
        _decided(table[table["role"] == role], rows, study.alpha, corrected=role == "confirmatory")
        for role in ("confirmatory", "exploratory")
    ]
    table = pd.concat(decided).sort_index()
    return _without_contradicted_sets(table)[[*VERDICT_COLUMNS]].reset_index(drop=True)


def _judged(results: pd.DataFrame, study: StudyConfig) -> list[str]:
    return [name for name in in_order(results["dataset"], DATASET_NAMES) if name in (study.datasets or [name])]


def _claims(study: StudyConfig) -> dict[str, ClaimConfig]:
    return {key: how for key in CLAIMS if (how := getattr(study.claims, key)) is not None}


def _of_data_set(results: pd.DataFrame, dataset: str, study: StudyConfig) -> Iterator[_Row]:
    rows = results[(results["dataset"] == dataset) & results["metric"].isin((*METRICS, "not_measured"))]
    measured = Measured(rows, study)
    there = set(rows["loss"])
    baselines = [loss for loss in study.baselines if loss in there]
    for key in _claims(study):
        claim = CLAIMS[key]
        if key == "several_data_sets":
            continue
        for loss in (each for each in study.proposals if each in there):
            if claim.kernels_only and not loss.startswith("kcl_"):
                continue
            against = [""] if claim.kernels_only else baselines
            for baseline in against or [""]:
                yield measured.compare(key, loss, baseline)


class Measured:
    """The measurements on one data set in the form in which the claims compare them."""

    def __init__(self, rows: pd.DataFrame, study: StudyConfig) -> None:
        self.rows, self.study = rows, study
        self.dataset = str(rows["dataset"].iloc[0])
        runs = rows[["run", "loss", *HYPERPARAMETERS, study.axis, "seed"]].drop_duplicates("run")
        self.table = runs.sort_values("run", ignore_index=True).rename(columns={study.axis: "level"})
        diverged = rows[(rows["metric"] == "diverged") & (rows["value"] == 1)]["run"]
        self.table["diverged"] = self.table["run"].isin(diverged)
        self.table["validation"] = self._values("validation_top1")
        if self.table["diverged"].any():
            self.table.loc[self.table["diverged"], "validation"] = self._chance()
        self._runs: dict[tuple[str, str], Runs] = {}

    def _values(self, metric: str, representation: str = "") -> pd.Series:
        rows = metric_rows(self.rows, metric)
        if representation:
            rows = rows[rows["representation"] == representation]
        return self.table["run"].map(rows.set_index("run")["value"])

    def _chance(self) -> float:
        known = {**CHANCE, **self.study.chance}
        if self.dataset not in known:
            raise InputError(
                f"study.chance.{self.dataset}: missing, and a run diverged; give 1 / number of classes, its accuracy"
            )
        return known[self.dataset]

    def runs(self, claim: Claim) -> Runs:
        """Return the runs with the value that a claim is about."""
        key = claim.metric, claim.representation
        if key not in self._runs:
            value = self._values(*key)
            if claim.unit == RATIO:
                self._runs[key] = Runs(self.table.assign(value=np.log(value)), centres=self.study.centres)
            else:
                if self.table["diverged"].any():
                    value = value.where(~self.table["diverged"], self._chance())
                counted = metric_rows(self.rows, "test_images")["value"]
                images = float(counted.min()) if len(counted) else TEST_IMAGES.get(self.dataset, math.nan)
                hits = self._hits(images)
                self._runs[key] = Runs(self.table.assign(value=value), hits, images, self.study.centres)
        return self._runs[key]

    def _hits(self, images: float) -> NDArray[np.bool_] | None:
        """Return which test images each run classified correctly; None unless it is known of all runs.

        A run without an accuracy gets no hits. Nor does one that diverged: its accuracy is chance by definition.
        """
        if "test_hits" not in self.rows or math.isnan(images):
            return None
        packed = self.rows[self.rows["metric"] == "linear_top1"].set_index("run")["test_hits"]
        if packed.empty or packed.isna().any():
            return None
        hits = np.zeros((len(self.table), int(images)), dtype=bool)
        for place, run in enumerate(self.table["run"]):
            if run in packed.index:
                try:
                    hits[place] = unpack_hits(packed[run], int(images))
                except ValueError as error:
                    raise InputError(f"results: test_hits of {run}: {error}; delete them and collect again") from error
        return hits

    def compare(self, key: str, loss: str, baseline: str) -> _Row:
        """Estimate one claim about a loss against a baseline."""
        claim = CLAIMS[key]
        row = _Row(
            key, self.dataset, loss, baseline, None, [], 0, 0, "", "", self._lost(loss, baseline), scale(self.rows)
        )
        of_both = self.table["loss"].isin([loss, baseline])
        row.runs = list(self.table.loc[of_both, "run"])
        try:
            if not baseline and not claim.kernels_only:
                raise NoContrastError("no baseline was run")
            if claim.weights is None:
                self._at_equal_alignment(row)
            else:
                runs = self.runs(claim)
                for each in filter(None, (loss, baseline)):
                    if any(runs.centre(each, seed) is None for seed in range(len(runs.seeds))):
                        raise NoContrastError(f"no validation accuracy to choose the settings of {LOSS_NAMES[each]} by")
                weights = claim.weights(
                    [[*runs.shared(loss, baseline or loss, seed)] for seed in range(len(runs.seeds))]
                )
                row.estimate = runs.estimate(weights)
                used = self.table.loc[[*weights]]
                row.runs, row.seeds = list(used["run"]), used["seed"].nunique()
                row.cells = len(used.drop_duplicates(["loss", *HYPERPARAMETERS, "level"]))
                bounded = "seeds and a bound for the test images" if runs.hits is None else "seeds and test images"
                row.contains = "seeds" if math.isnan(runs.images) else bounded
        except NoContrastError as reason:
            row.reason = str(reason)
        else:
            if row.seeds == 1:
                row.reason = ONE_SEED
        return row

    def _lost(self, loss: str, baseline: str) -> str:
        """Count the runs of both losses that diverged, and those that could not be measured."""
        own = self.table[self.table["loss"].isin([loss, baseline])]
        accuracies = set(metric_rows(self.rows, "linear_top1")["run"])
        diverged, missing = own["diverged"].sum(), (~own["diverged"] & ~own["run"].isin(accuracies)).sum()
        return ", ".join(f"{n} {what}" for n, what in ((diverged, "diverged"), (missing, "not measured")) if n)

    def _at_equal_alignment(self, row: _Row) -> None:
        """Estimate the ratio of effective ranks of z at equal alignment by regression over the cells of all losses.

        A point is a complete cell's mean over seeds, because seeds of a cell lie off the common line together;
        its interval is over cells.
        """
        values = {"rank": self._values("effective_rank", "z"), "alignment": self._values("alignment", "z")}
        points = self.table.assign(**{name: np.log(value.where(value > 0)) for name, value in values.items()})
        cells = points.groupby(["loss", *HYPERPARAMETERS, "level"], dropna=False)[[*values]]
        complete = (cells.count() == self.table["seed"].nunique()).all(axis=1)
        points = cells.mean()[complete]
        points = points.reset_index()
        for loss in (row.loss, row.baseline):
            if loss not in set(points["loss"]):
                raise NoContrastError("no effective rank")
        losses = points["loss"].nunique()
        if len(points) < losses + 2 or points.groupby("loss")["rank"].size().max() < 2:
            raise NoContrastError("too few settings to compare at equal alignment")
        if np.ptp(points["alignment"]) == 0:
            raise NoContrastError("all settings have the same alignment")
        fit = ols(f"rank ~ C(loss, Treatment(reference='{row.baseline}')) + alignment", points).fit()
        name = f"C(loss, Treatment(reference='{row.baseline}'))[T.{row.loss}]"
        row.estimate = Estimate(float(fit.params[name]), float(fit.bse[name]) ** 2, float(fit.df_resid))
        row.seeds = int(self.table["seed"].nunique())
        row.cells = len(points)
        row.contains = "cells"


def _of_several(rows: list[_Row], study: StudyConfig) -> Iterator[_Row]:
    """Pool the contrasts of accuracy over data sets, which are independent."""
    if "several_data_sets" not in _claims(study) or "accuracy" not in _claims(study):
        return
    gains = [row for row in rows if row.claim == "accuracy"]
    for loss, baseline in dict.fromkeys((row.loss, row.baseline) for row in gains):
        own = [row for row in gains if (row.loss, row.baseline) == (loss, baseline)]
        known = [row for row in own if row.estimate is not None]
        scales = "; ".join(f"{DATASET_NAMES.get(row.dataset, row.dataset)}: {row.scale}" for row in own)
        every = [run for row in own for run in row.runs]
        lost = "; ".join(filter(None, (row.lost for row in own)))
        pooled = _Row("several_data_sets", ALL, loss, baseline, None, every, 0, 0, "", "", lost, scales)
        if len(known) < 2:
            pooled.reason = "one data set only" if known else own[0].reason
        else:
            estimates = [row.estimate for row in known if row.estimate is not None]
            share = 1 / len(estimates)
            variances = np.array([each.seeds for each in estimates]) * share**2
            degrees = variances.sum() ** 2 / (variances**2 / [each.degrees or math.nan for each in estimates]).sum()
            pooled.estimate = Estimate(
                share * sum(each.value for each in estimates),
                float(variances.sum()),
                float(degrees),
                share**2 * sum(each.images for each in estimates),
            )
            pooled.seeds, pooled.cells = min(row.seeds for row in known), sum(row.cells for row in known)
            pooled.contains = "; ".join(dict.fromkeys(row.contains for row in known))
            pooled.reason = ONE_SEED if pooled.seeds == 1 else ""
        yield pooled


def _facts(row: _Row, study: StudyConfig) -> dict[str, Any]:
    claim, how = CLAIMS[row.claim], _claims(study)[row.claim]
    smallest = how.smallest_effect if claim.unit == ACCURACY else math.log1p(how.smallest_effect)
    judged = row.estimate is not None and row.seeds > 1
    estimate = row.estimate
    return {
        "run": "-".join(filter(None, ["verdict", row.dataset, row.claim, row.loss, row.baseline])),
        "claim": row.claim,
        "dataset": row.dataset,
        "loss": row.loss,
        "baseline": row.baseline,
        "role": how.role,
        "unit": claim.unit,
        "metric": claim.metric,
        "estimate": estimate.value if estimate else math.nan,
        "smallest_effect": smallest,
        "standard_error": estimate.standard_error if estimate and judged else math.nan,
        "degrees": estimate.total_degrees if estimate and judged else math.nan,
        "seeds": row.seeds,
        "cells": row.cells,
        "contains": row.contains if judged else "",
        "reason": row.reason,
        "lost": row.lost,
        "scale": row.scale,
        "runs": join_runs(pd.Series(row.runs)),
    }


def _decided(table: pd.DataFrame, rows: list[_Row], alpha: float, corrected: bool) -> pd.DataFrame:
    """Add what the rule decides about the rows of one role."""
    number = table.groupby(["dataset", "claim", "loss"], sort=False).ngroup().to_numpy().astype(np.int64)
    family = Contrasts(
        table["estimate"].to_numpy(float),
        table["standard_error"].to_numpy(float),
        table["degrees"].to_numpy(float),
        number,
        table["smallest_effect"].to_numpy(float),
        np.array([CLAIMS[claim].no_effect for claim in table["claim"]], dtype=bool),
    )
    made = decide(family, alpha, corrected)
    ends = {"low": made.low, "high": made.high, "error_low": made.error_low, "error_high": made.error_high}
    of_hypothesis = {"p": made.p[number], "p_holm": made.p_holm[number] if corrected else math.nan}
    table = table.assign(**ends, **of_hypothesis, against_baseline=made.against, state=made.state[number])
    absent = table["estimate"].isna()
    table.loc[absent, "against_baseline"] = NOT_RUN
    nowhere = absent.groupby(number).transform("all")
    table.loc[nowhere, "state"] = NOT_RUN
    flat = ~absent & ~(table["standard_error"] > 0) & (table["reason"] == "")
    table.loc[flat, "reason"] = "no spread over seeds can be estimated"
    return table


def _without_contradicted_sets(table: pd.DataFrame) -> pd.DataFrame:
    """Withdraw support for a gain on several data sets where one contradicts it, or fewer than two support it."""
    gains = table[table["claim"] == "accuracy"].drop_duplicates(["dataset", "loss"])
    alone = gains[gains["state"] == SUPPORTED].groupby("loss").size()
    for lacking, reason in (
        (table["loss"].map(alone).fillna(0) < 2, "supported on fewer than two data sets"),
        (table["loss"].isin(gains.loc[gains["state"] == CONTRADICTED, "loss"]), "contradicted on a data set"),
    ):
        withdrawn = (table["claim"] == "several_data_sets") & lacking
        withdrawn &= (table["state"] == SUPPORTED) | (table["reason"] == "supported on fewer than two data sets")
        table.loc[withdrawn, "state"] = INCONCLUSIVE
        table.loc[withdrawn, "reason"] = reason
    return table


def in_reading_order(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Sort verdicts: confirmatory ones first, then by data set, claim, loss and baseline."""
    orders = {
        "role": ["confirmatory", "exploratory"],
        "dataset": [*in_order(set(verdicts["dataset"]) - {ALL}, DATASET_NAMES), ALL],
        "claim": [*CLAIMS],
        "loss": [*LOSS_NAMES],
        "baseline": ["", *LOSS_NAMES],
    }
    return verdicts.sort_values(
        [*orders], key=lambda column: column.map(orders[str(column.name)].index), ignore_index=True
    )


def summarise(verdicts: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Summarise the verdicts: a row for each data set, claim and loss, with what was found against each baseline."""
    for (dataset, key, loss), rows in in_reading_order(verdicts).groupby(["dataset", "claim", "loss"], sort=False):
        first, claim = rows.iloc[0], CLAIMS[str(key)]
        found = rows[rows["estimate"].notna()]
        reasons = dict.fromkeys(reason for reason in rows["reason"] if reason)
        yield {
            "claim": claim.statement,
            "loss": loss,
            "dataset": dataset,
            "role": first["role"],
            "measured": "; ".join(
                " against ".join(filter(None, (in_unit(*each), LOSS_NAMES.get(str(baseline), ""))))
                for baseline, *each in found[["baseline", "estimate", "low", "high", "unit"]].itertuples(index=False)
            ),
            "smallest_effect": in_unit(first["smallest_effect"], math.nan, math.nan, first["unit"]),
            "p_holm": first["p_holm"] if first["role"] == "confirmatory" else first["p"],
            "state": first["state"],
            "reason": "; ".join(reasons) if len(reasons) == 1 or first["state"] == NOT_RUN else _reasons(rows),
            "seeds": rows["seeds"].max(),
            "cells": rows["cells"].max(),
            "contains": "; ".join(dict.fromkeys(filter(None, rows["contains"]))),
            "lost": "; ".join(dict.fromkeys(filter(None, rows["lost"]))),
            "evidence": " ".join(claim.evidence),
            "scale": first["scale"],
            "runs": join_runs(rows["runs"]),
        }


def _reasons(rows: pd.DataFrame) -> str:
    """Return the reasons of the baselines that have one."""
    stated = rows[rows["reason"] != ""]
    return "; ".join(f"{LOSS_NAMES.get(str(row.baseline), '')}: {row.reason}" for row in stated.itertuples())


def in_unit(value: float, low: float, high: float, unit: str) -> str:
    """Format an estimate with its interval: a difference in points, or a ratio."""
    points = unit == ACCURACY
    shown = [f"{100 * each:+.1f}" if points else f"x{math.exp(each):.2f}" for each in (value, low, high)]
    return shown[0] + ("" if pd.isna(low) else f" [{shown[1]}, {shown[2]}]")


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
