"""Find our runs that follow the protocol of a published number, or what differs if none does."""

import pandas as pd

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
    "loss": "loss not in this experiment",
    "backbone": "backbones differ",
    "width": "not at full width",
    "train_images": "not on the whole training set",
    "epochs": "epochs differ",
    "batch_size": "batch sizes differ",
    "temperature": "temperatures differ",
}


def matching(published: pd.Series, accuracies: pd.DataFrame, selected: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Find our rows that are comparable to a published number, or return no rows and all the differences.

    Args:
        published: a row of `config/published_results.csv`.
        accuracies: tidy rows of our accuracies.
        selected: the rows at the hyperparameters that validation chooses.
    """
    nothing = accuracies.iloc[:0]
    if published["loss"] not in OUR_LABEL:
        return nothing, "not one loss"
    if published["protocol"] not in COMPARABLE_PROTOCOLS:
        return nothing, "evaluation differs"
    if pd.isna(published["batch_size"]):
        return nothing, "batch size not stated"
    required = {
        "dataset": published["dataset"],
        "loss": OUR_LABEL[published["loss"]],
        "backbone": published["architecture"],
        "width": 1,
        "train_images": WHOLE_TRAINING_SET.get(published["dataset"]),
        "epochs": published["pretrain_epochs"],
        "batch_size": published["batch_size"],
        "temperature": published["temperature"],
    }
    rows = selected if pd.isna(published["temperature"]) else accuracies
    differences = []
    for column, value in required.items():
        same = rows[rows[column] == value] if not pd.isna(value) else rows
        if same.empty:
            differences.append(DIFFERENCES[column])
            if column in ("dataset", "loss"):
                break  # we have nothing left to compare
        else:
            rows = same
    return (nothing, f"not run: {', '.join(differences)}") if differences else (rows, "")
