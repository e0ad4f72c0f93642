"""Ours beside published numbers.

Top-1 test accuracy in percent. A published number has ours beside it only where the protocol is the same: data set
with its whole training set, backbone at full width, epochs, loss, batch size, and temperature if the source states one
(if not, the temperature is the one that our validation split chooses); otherwise the reason is given. Ours is the mean
± standard deviation over n seeds of multinomial logistic regression on cached features.
"""

from functools import partial
from pathlib import Path

import pandas as pd
import style
from aggregate import PER_BATCH_SIZE, chosen

from dhel_kcl.paper import read_points
from dhel_kcl.robustness import CONFIGURATION, join_runs, metric_rows

METRICS = ("linear_top1", "validation_top1")
DATA = ("config/published_results.csv",)

OUR_LABEL = {
    "InfoNCE": "infonce",
    "NT-Xent": "ntxent",
    "DCL": "dcl",
    "DCL symmetric": "dcl",
    "DHEL": "dhel",
    "DHEL (MV-DHEL with 2 views)": "dhel",
}
COMPARABLE_PROTOCOLS = {"linear", "linear on cached features"}
WHOLE_TRAINING_SET = {"cifar10": 50_000, "cifar100": 50_000, "imagenet100": 126_689}
DIFFERENCES = {
    "dataset": "data set not in this experiment",
    "backbone": "backbones differ",
    "width": "not at full width",
    "train_images": "not on the whole training set",
    "epochs": "epochs differ",
    "loss": "loss not in this experiment",
    "batch_size": "batch sizes differ",
    "temperature": "temperatures differ",
}


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Every published row, then ours (`mean`, `std`, `n`) or the `reason` why there is none."""
    accuracies = metric_rows(results, "linear_top1")
    selected = accuracies.merge(chosen(results, PER_BATCH_SIZE), on=CONFIGURATION)
    published = read_points(Path(__file__).parent.parent / DATA[0])
    ours = pd.DataFrame([_ours(row, accuracies, selected) for _, row in published.iterrows()])
    return pd.concat([published, ours], axis="columns")


def _ours(published: pd.Series, accuracies: pd.DataFrame, selected: pd.DataFrame) -> dict[str, float | str]:
    rows, reason = _matching(published, accuracies, selected)
    top1 = 100 * rows["value"]
    return {"mean": top1.mean(), "std": top1.std(), "n": len(rows), "reason": reason, "runs": join_runs(rows["run"])}


def _matching(published: pd.Series, accuracies: pd.DataFrame, selected: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    nothing = accuracies.iloc[:0]
    if published["loss"] not in OUR_LABEL:
        return nothing, "not one loss"
    if published["protocol"] not in COMPARABLE_PROTOCOLS:
        return nothing, "evaluation differs"
    if pd.isna(published["batch_size"]):
        return nothing, "batch size not stated"
    required = {
        "dataset": published["dataset"],
        "backbone": published["architecture"],
        "width": 1,
        "train_images": WHOLE_TRAINING_SET.get(published["dataset"]),
        "epochs": published["pretrain_epochs"],
        "loss": OUR_LABEL[published["loss"]],
        "batch_size": published["batch_size"],
        "temperature": published["temperature"],
    }
    rows = selected if pd.isna(published["temperature"]) else accuracies
    for column, value in required.items():
        if not pd.isna(value):
            rows = rows[rows[column] == value]
        if rows.empty:
            return nothing, f"not run: {DIFFERENCES[column]}"
    return rows, ""


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """A row per published number."""
    return pd.DataFrame(
        {
            "Data set": points["dataset"].map(lambda dataset: style.DATASET_NAMES.get(dataset, dataset)),
            "Loss": points["loss"],
            "Epochs": _number(points["pretrain_epochs"]),
            "Batch size": _number(points["batch_size"]),
            "Temperature": _number(points["temperature"]),
            "Evaluation": points["protocol"],
            "Published (%)": _number(points["top1"]),
            "Ours (%)": list(map(partial(style.mean_and_spread, digits=1), points["mean"], points["std"], points["n"])),
            "Why ours is empty": points["reason"].fillna(""),
            "Source": points["source"],
        }
    )


def _number(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else f"{value:g}" for value in column]
