"""Names shown to readers, and their order: the paper's first, then the others."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from dhel_kcl import declarations
from dhel_kcl.experiment.config import BASELINES, PROPOSED

PAPER_DATASETS = ("cifar10", "cifar100", "stl10", "imagenet100")


def paper_first(names: Mapping[str, str], paper: Sequence[str]) -> dict[str, str]:
    """Sort names by identifier: first those in `paper`, in its order, then the others alphabetically."""
    return {key: names[key] for key in (*paper, *sorted(set(names) - set(paper)))}


LOSS_NAMES = paper_first(declarations.loss_titles(), (*BASELINES, *PROPOSED))
DATASET_NAMES = paper_first({name: kind.title for name, kind in declarations.kinds().items()}, PAPER_DATASETS)
REPRESENTATION_NAMES = {"h": "backbone $h$", "z": "projector $z$"}
CORRUPTION_NAMES = {
    "gaussian_noise": "Gaussian noise",
    "gaussian_blur": "Gaussian blur",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "jpeg": "JPEG",
    "mean": "Mean",
}


def corruption_names(corruptions: pd.Series, datasets: pd.Series) -> dict[str, str]:
    """Return the names of corruptions; their mean is that of the five if each data set has all five."""
    all_five = all({*CORRUPTION_NAMES} <= measured for measured in corruptions.groupby(datasets).agg(set))
    return CORRUPTION_NAMES | ({"mean": "Mean of the five"} if all_five else {})


HYPERPARAMETER_NAMES = {
    "temperature": r"temperature $\tau$",
    "t": "kernel scale $t$",
    "c": "kernel scale $c$",
    "gamma": r"energy weight $\gamma$",
}


def in_order(values: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Sort distinct values in the order of `names`, then alphabetically."""
    known = list(names)
    return sorted(set(values), key=lambda value: (known.index(value) if value in names else len(known), value))


def for_print(table: pd.DataFrame, names: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Sort rows by columns of identifiers, in the order of the identifiers' names, and replace them by the names.

    Args:
        table: the rows; rows that agree in all these columns keep their order.
        names: the names of the identifiers, for each column, the most significant column first.
    """
    ranks = {
        column: {value: rank for rank, value in enumerate(in_order(table[column], order))}
        for column, order in names.items()
    }
    table = table.sort_values(list(names), key=lambda column: column.map(ranks[str(column.name)]), kind="stable")
    shown = {column: table[column].map(lambda value, n=order: n.get(value, value)) for column, order in names.items()}
    return table.assign(**shown).reset_index(drop=True)
