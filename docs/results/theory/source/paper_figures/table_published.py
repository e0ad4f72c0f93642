"""Our results next to published numbers.

Top-1 test accuracy in percent. Our result is shown next to a published number only if the protocol is the same: data
set with its whole training set, backbone at full width, epochs, loss, batch size, and temperature if the source states
one (if not, our validation split chooses it); otherwise every difference is listed. Our result is the mean ± standard
deviation over n seeds of multinomial logistic regression on cached features.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from dhel_kcl.paper.cells import mean_and_spread
from dhel_kcl.paper.render import read_points
from dhel_kcl.results.choice import PER_BATCH_SIZE, chosen
from dhel_kcl.results.names import DATASET_NAMES
from dhel_kcl.results.published import matching
from dhel_kcl.results.robustness import CONFIGURATION, join_runs, metric_rows

METRICS = ("linear_top1", "validation_top1")
DATA = ("config/published_results.csv",)


def points(results: pd.DataFrame) -> pd.DataFrame:
    """Return every published row with our result (`mean`, `std`, `n`) or the `reason` why there is none."""
    accuracies = metric_rows(results, "linear_top1")
    selected = accuracies.merge(chosen(results, PER_BATCH_SIZE), on=CONFIGURATION)
    published = read_points(Path(__file__).parent.parent / DATA[0])
    ours = pd.DataFrame([_ours(row, accuracies, selected) for _, row in published.iterrows()])
    return pd.concat([published, ours], axis="columns")


def _ours(published: pd.Series, accuracies: pd.DataFrame, selected: pd.DataFrame) -> dict[str, float | str]:
    rows, reason = matching(published, accuracies, selected)
    top1 = 100 * rows["value"]
    return {"mean": top1.mean(), "std": top1.std(), "n": len(rows), "reason": reason, "runs": join_runs(rows["run"])}


def layout(points: pd.DataFrame) -> pd.DataFrame:
    """Lay out a row per published number."""
    return pd.DataFrame(
        {
            "Data set": points["dataset"].map(lambda dataset: DATASET_NAMES.get(dataset, dataset)),
            "Loss": points["loss"],
            "Epochs": _number(points["pretrain_epochs"]),
            "Batch size": _number(points["batch_size"]),
            "Temperature": _number(points["temperature"]),
            "Evaluation": points["protocol"],
            "Published (%)": _number(points["top1"]),
            "Ours (%)": list(map(partial(mean_and_spread, digits=1), points["mean"], points["std"], points["n"])),
            "Why ours is empty": points["reason"].fillna(""),
            "Source": points["source"],
        }
    )


def _number(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else f"{value:g}" for value in column]
