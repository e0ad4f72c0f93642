"""Differences of linear accuracy between losses.

First minus second, in percentage points of linear top-1 test accuracy, for each pair of losses at a batch size, each at
the hyperparameters with the highest accuracy on the validation split of the training set, on the seeds that both have.
"Over seeds" is the Student 95% interval of the mean difference: other seeds, same test images. "Over test images" is
Newcombe's 95% interval: other test images, same networks. It treats the two accuracies as independent, which is
conservative, needs only one seed, and is empty if the number of test images was not recorded. g is the paired effect
size (Cohen's d_z with Hedges' correction; three seeds or more). p is from the paired t-test, Holm p is p corrected over
the pairs of the data set and batch size, and flip p is from the sign-flip permutation test, which is never below
2^(1 - n) for n seeds. The verdict follows Holm p, so it concerns seeds only; with one seed, nothing is tested.
"Diverged" counts the diverged runs at the chosen hyperparameters, or among all runs of a loss if none of its settings
has an accuracy there.
"""

from functools import partial

import pandas as pd

from dhel_kcl.paper.cells import interval, number, p_value
from dhel_kcl.results.choice import runs_at_choice
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print
from dhel_kcl.results.robustness import join_runs, metric_rows
from dhel_kcl.results.statistics import ALPHA, compare_losses

METRICS = ("linear_top1", "validation_top1")
OPTIONAL_METRICS = ("diverged", "test_images")
NOTHING = "There are no two losses to compare at the same batch size."


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row per data set, batch size and pair: statistics, planned seeds, and the diverged runs of each loss."""
    runs = runs_at_choice(results, "linear_top1")
    runs["images"] = runs["run"].map(metric_rows(results, "test_images").set_index("run")["value"])
    table = compare_losses(runs, [*reversed(LOSS_NAMES)])
    groups = runs.groupby(["dataset", "batch_size", "loss"])
    states = groups.agg(diverged=("diverged", "sum"), planned=("planned", "max"), runs=("run", join_runs)).reset_index()
    others = states.drop(columns="planned").rename(columns={"loss": "other"})
    table = table.merge(states).merge(others, on=["dataset", "batch_size", "other"], suffixes=("", "_other"))
    runs_of_both = table.pop("runs") + ";" + table.pop("runs_other")
    return table.assign(runs=[join_runs(pd.Series(cell)) for cell in runs_of_both])


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per data set, batch size and pair."""
    table = for_print(points, {"dataset": DATASET_NAMES})
    table = table.replace({"loss": LOSS_NAMES, "other": LOSS_NAMES})
    percent = partial(number, digits=2, factor=100)
    ends = partial(interval, shown=percent)
    numbers = {"g": "effect_size", "p": "p", "Holm p": "p_holm", "Flip p": "p_sign_flip"}
    return pd.DataFrame(
        {
            "Data set": table["dataset"],
            "Batch size": table["batch_size"].astype(str),
            "First": table["loss"],
            "Second": table["other"],
            "Difference": table["difference"].map(percent),
            "Over seeds": list(map(ends, table["low"], table["high"])),
            "Over test images": list(map(ends, table["test_low"], table["test_high"])),
            **{n: table[c].map(number if n == "g" else p_value) for n, c in numbers.items()},
            "Seeds": [f"{n} of {planned}" for n, planned in zip(table["n"], table["planned"], strict=True)],
            "Diverged": [_diverged(row) for _, row in table.iterrows()],
            "Verdict": [_verdict(row) for _, row in table.iterrows()],
        }
    )


def _diverged(row: pd.Series) -> str:
    counts = {row["loss"]: row["diverged"], row["other"]: row["diverged_other"]}
    return ", ".join(f"{loss}: {count}" for loss, count in counts.items() if count)


def _verdict(row: pd.Series) -> str:
    if pd.isna(row["p_holm"]):
        return {0: "not compared", 1: "one seed"}.get(row["n"], "no variation")
    return f"p < {ALPHA:.2f}" if row["p_holm"] < ALPHA else "n.s."
