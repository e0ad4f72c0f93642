"""Find our runs that follow the protocol of a published number, or what differs if none does."""

import pandas as pd

OUR_LABEL = {
    "InfoNCE": "infonce",
    "NT-Xent": "ntxent",
    "DCL": "dcl",
    "DCL symmetric": "dcl",
    "DHEL (2:1)": "dhel",
    "DHEL (2:1, MV-DHEL with 2 views)": "dhel",
}
"""Our loss for each published one. DHEL weighs its energy against the alignment either 2:1, as here, or 1:1."""

NOT_OURS = {"DHEL (1:1)": "DHEL in the weighting 1:1, ours is 2:1"}
"""Why a published loss is none of ours."""

OUR_METRIC = "augmented_top1"
"""Published linear probes are trained by SGD, so logistic regression on cached features is not compared with them."""

COMPARABLE_PROTOCOLS = {"linear", "linear with augmentation"}
WHOLE_TRAINING_SET = {
    ("cifar10", ""): 50_000,
    ("cifar100", ""): 50_000,
    ("imagenet100", "cmc"): 126_689,
    ("imagenet100", "kaggle"): 130_000,
}
"""Training images of a data set and class list; the two lists of ImageNet-100 are told apart by their numbers."""

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
        accuracies: tidy rows of our accuracies, of `OUR_METRIC`.
        selected: the rows at the hyperparameters that validation chooses.
    """
    nothing = accuracies.iloc[:0]
    if published["loss"] not in OUR_LABEL:
        return nothing, NOT_OURS.get(published["loss"], "not one loss")
    if published["protocol"] not in COMPARABLE_PROTOCOLS:
        return nothing, "evaluation differs"
    if pd.isna(published["batch_size"]):
        return nothing, "batch size not stated"
    class_list = "" if pd.isna(published["class_list"]) else published["class_list"]
    whole = WHOLE_TRAINING_SET.get((published["dataset"], class_list))
    if whole is None:
        return nothing, f"class list {class_list} not in this project"
    if accuracies.empty:
        return nothing, "not run: linear probe on augmented images (evaluation.augmented_images)"
    required = {
        "dataset": published["dataset"],
        "loss": OUR_LABEL[published["loss"]],
        "backbone": published["architecture"],
        "width": 1,
        "train_images": whole,
        "epochs": published["pretrain_epochs"],
        "batch_size": published["batch_size"],
        "temperature": published["temperature"],
    }
    rows = selected if pd.isna(published["temperature"]) else accuracies
    differences = []
    for column, value in required.items():
        same = rows[rows[column] == value] if not pd.isna(value) else rows
        if same.empty:
            of_list = f" of the class list {class_list}" if column == "train_images" and class_list else ""
            differences.append(DIFFERENCES[column] + of_list)
            if column in ("dataset", "loss"):
                break  # we have nothing left to compare
        else:
            rows = same
    return (nothing, f"not run: {', '.join(differences)}") if differences else (rows, "")
