"""What each figure and table shows, against numbers worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid
from scipy.stats import beta

from dhel_kcl.paper import Target, load_target


@pytest.fixture
def target(scripts: Path) -> Any:
    """Targets as attributes: ``target.fig_batch_size``."""
    return SimpleNamespace(**{path.stem: load_target(path) for path in scripts.glob("*_*.py")})


@pytest.fixture
def grid(builder: Any) -> pd.DataFrame:
    """DHEL on CIFAR-10: two temperatures, two batch sizes, two seeds.

    Validation prefers temperature 0.5 at batch size 32 and 0.1 at 256; test accuracy prefers the other one.
    """
    validation = {(0.1, 32): 0.5, (0.5, 32): 0.6, (0.1, 256): 0.8, (0.5, 256): 0.7}
    test = {(0.1, 32): 0.65, (0.5, 32): 0.55, (0.1, 256): 0.75, (0.5, 256): 0.85}
    for temperature, batch_size in validation:
        for seed in (0, 1):
            add = builder.run(batch_size=batch_size, seed=seed, temperature=temperature)
            add("validation_top1", validation[temperature, batch_size] + 0.02 * seed)
            add("linear_top1", test[temperature, batch_size] + 0.02 * seed, "h")
            add("linear_top5", 0.9, "h")
            add("knn_top1", 0.5, "h")
    return builder.table()


def runs(*settings: tuple[float, int]) -> str:
    return ";".join(
        sorted(f"cifar10-dhel-temperature{t:g}-bs{size}-seed{seed}" for t, size in settings for seed in (0, 1))
    )


def test_batch_size_shows_the_validated_setting_and_the_range(target: Any, grid: pd.DataFrame) -> None:
    points = target.fig_batch_size.points(grid)
    assert points["batch_size"].tolist() == [32, 256]
    assert points["temperature"].tolist() == [0.5, 0.1]
    assert points["mean"].tolist() == pytest.approx([0.56, 0.76])
    assert points["std"].tolist() == pytest.approx([0.02 / math.sqrt(2)] * 2)
    assert points["low"].tolist() == pytest.approx([0.56, 0.76])
    assert points["high"].tolist() == pytest.approx([0.66, 0.86])
    assert points["runs"].tolist() == [runs((0.1, 32), (0.5, 32)), runs((0.1, 256), (0.5, 256))]


def test_seeds_are_averaged_before_the_choice(target: Any, builder: Any) -> None:
    for temperature, values in {0.1: (0.9, 0.1), 0.5: (0.6, 0.6)}.items():
        for seed, value in enumerate(values):
            add = builder.run(seed=seed, temperature=temperature)
            add("validation_top1", value)
            add("linear_top1", value, "h")
    assert target.fig_batch_size.points(builder.table())["temperature"].tolist() == [0.5]


def test_own_hyperparameter_averages_over_batch_sizes(target: Any, grid: pd.DataFrame) -> None:
    points = target.fig_temperature.points(grid)
    assert points["hyperparameter"].tolist() == ["temperature"] * 2
    assert points["hyperparameter_value"].tolist() == [0.1, 0.5]
    assert points["mean"].tolist() == pytest.approx([(0.66 + 0.76) / 2, (0.56 + 0.86) / 2])
    assert points["low"].tolist() == pytest.approx([0.66, 0.56])
    assert points["high"].tolist() == pytest.approx([0.76, 0.86])
    assert points["batch_sizes"].tolist() == [2, 2]
    assert points["runs"].tolist() == [runs((0.1, 32), (0.1, 256)), runs((0.5, 32), (0.5, 256))]


def test_the_other_hyperparameter_is_validated(target: Any, builder: Any) -> None:
    accuracy = {(1.0, 4.0): 0.5, (1.0, 16.0): 0.7, (2.0, 4.0): 0.8, (2.0, 16.0): 0.6}
    for (t, gamma), value in accuracy.items():
        add = builder.run(loss="kcl_gaussian", t=t, gamma=gamma)
        add("validation_top1", value)
        add("linear_top1", value - 0.1, "h")
    points = target.fig_temperature.points(builder.table()).set_index(["hyperparameter", "hyperparameter_value"])
    assert points["mean"].to_dict() == pytest.approx(
        {("t", 1.0): 0.6, ("t", 2.0): 0.7, ("gamma", 4.0): 0.7, ("gamma", 16.0): 0.6}
    )
    assert points.loc[("t", 1.0), "runs"] == "cifar10-kcl_gaussian-t1-gamma16-bs256-seed0"


def test_effective_rank_keeps_representations_apart(target: Any, builder: Any) -> None:
    add = builder.run(temperature=0.5)
    add("validation_top1", 0.5)
    for representation, rank, dimension in (("h", 100.0, 512), ("z", 60.0, 128)):
        add("effective_rank", rank, representation)
        add("embedding_dim", dimension, representation)
    points = target.fig_effective_rank.points(builder.table())
    assert points[["representation", "mean", "embedding_dim"]].to_numpy().tolist() == [["h", 100, 512], ["z", 60, 128]]


def test_curves_are_those_of_the_best_configuration(target: Any, builder: Any) -> None:
    for temperature, validation in ((0.1, 0.4), (0.5, 0.6)):
        for seed in (0, 1):
            add = builder.run(seed=seed, temperature=temperature)
            add("validation_top1", validation)
            for index, value in ((1, 10.0), (2, 0.1), (3, 0.0)):
                add("singular_value", value * (1 + 2 * seed) * temperature, "h", index)
            for epoch in (1, 2):
                add("training_loss", 3.0 / epoch + seed, x=epoch)
                add("training_alignment", -1.0, x=epoch)
                add("training_energy", 3.0 / epoch + seed + 1, x=epoch)
    results = builder.table()
    spectrum = target.fig_spectrum.points(results)
    assert spectrum["index"].tolist() == [1, 2]
    assert spectrum["log10_mean"].tolist() == pytest.approx([1.0, -1.0])
    assert set(spectrum["runs"]) == {runs((0.5, 256))}
    training = target.fig_training.points(results).query("metric == 'training_loss'")
    assert training["epoch"].tolist() == [1, 2]
    assert training["mean"].tolist() == [3.5, 2.0]


def test_the_ideal_law_is_that_of_the_dimension(target: Any, builder: Any) -> None:
    add = builder.run(temperature=0.5)
    add("validation_top1", 0.5)
    add("embedding_dim", 16, "z")
    for x, density in ((-0.5, 0.25), (0.5, 0.75)):
        add("similarity_density", density, "z", x)
    points = target.fig_similarity.points(builder.table())
    measured, ideal = points[points["loss"] == "dhel"], points[points["loss"] == "ideal"]
    assert measured["mean"].tolist() == [0.25, 0.75]
    assert trapezoid(ideal["mean"], ideal["x"]) == pytest.approx(1, abs=1e-6)
    assert trapezoid(ideal["mean"] * ideal["x"] ** 2, ideal["x"]) == pytest.approx(1 / 16, abs=1e-6)
    np.testing.assert_allclose(ideal["mean"], beta.pdf((ideal["x"] + 1) / 2, 7.5, 7.5) / 2)
    assert set(points["runs"]) == {"cifar10-dhel-temperature0.5-bs256-seed0"}


def test_alignment_uniformity_marks_one_configuration_per_loss(target: Any, builder: Any) -> None:
    for temperature, validation in ((0.1, 0.4), (0.5, 0.6)):
        add = builder.run(temperature=temperature)
        add("validation_top1", validation)
        add("alignment", temperature, "z")
        add("uniformity", -2 * temperature, "z")
    builder.run(temperature=1.0)("alignment", 0.3, "z")
    points = target.fig_alignment_uniformity.points(builder.table())
    assert points[["alignment", "uniformity", "chosen"]].to_numpy().tolist() == [[0.1, -0.2, False], [0.5, -1.0, True]]


def test_linear_accuracy_prints_mean_spread_and_seeds(target: Any, grid: pd.DataFrame) -> None:
    points = target.table_linear_accuracy.points(grid)
    assert points.query("metric == 'linear_top1' and batch_size == 32")["runs"].tolist() == [runs((0.5, 32))]
    printed = target.table_linear_accuracy.layout(points)
    assert printed.columns.tolist() == ["Data set", "Accuracy", "Loss", "Batch size 32", "Batch size 256"]
    assert printed.iloc[0].tolist() == [
        "CIFAR-10",
        "linear top-1",
        "DHEL",
        "0.560 ± 0.014 (n=2)",
        "0.760 ± 0.014 (n=2)",
    ]
    assert printed["Accuracy"].tolist() == ["linear top-1", "linear top-5", "k-NN top-1"]


def test_a_batch_size_without_runs_is_an_empty_cell(target: Any, grid: pd.DataFrame, builder: Any) -> None:
    add = builder.run(loss="ntxent", batch_size=256, temperature=0.5)
    add("validation_top1", 0.5)
    add("linear_top1", 0.5, "h")
    table = target.table_linear_accuracy
    printed = table.layout(table.points(builder.table())).query("Loss == 'NT-Xent'")
    assert printed[["Batch size 32", "Batch size 256"]].to_numpy().tolist() == [["", "0.500 (n=1)"]]


def test_robustness_is_printed_per_axis(target: Any, grid: pd.DataFrame) -> None:
    printed = target.table_robustness.layout(target.table_robustness.points(grid))
    assert printed["Over"].tolist() == ["hyperparameters", "batch size", "both"]
    assert printed.iloc[0].tolist() == [
        "CIFAR-10",
        "hyperparameters",
        "DHEL",
        "2",
        "0.710",
        "0.071",
        "0.760",
        "0.660",
        "0.100",
        "0",
    ]


def test_diverged_runs_are_counted_beside_the_statistics_that_lack_them(target: Any, experiment: pd.DataFrame) -> None:
    points = target.table_robustness.points(experiment)
    diverged = points.set_index(["dataset", "loss", "axis"])["diverged"]
    assert (diverged.xs("dhel", level="loss") == 2).all(), "two seeds of one setting"
    assert (diverged.drop("dhel", level="loss") == 0).all()
    printed = target.table_robustness.layout(points)
    assert set(printed.loc[printed["Loss"] == "DHEL", "Diverged runs"]) == {"2"}


def test_a_loss_all_of_whose_runs_diverged_keeps_its_rows(target: Any, experiment: pd.DataFrame) -> None:
    lost = (experiment["loss"] == "ntxent") & ~experiment["metric"].str.startswith("training_")
    table = experiment[~(lost & (experiment["metric"] != "diverged"))].copy()
    table.loc[(table["loss"] == "ntxent") & (table["metric"] == "diverged"), "value"] = 1.0
    points = target.table_robustness.points(table).query("loss == 'ntxent' and dataset == 'cifar10'")
    runs = set(table.query("loss == 'ntxent' and dataset == 'cifar10'")["run"])
    assert points["axis"].tolist() == ["batch_size", "both", "hyperparameters"]
    assert (points["diverged"] == len(runs)).all()
    assert set(points["runs"].iloc[0].split(";")) == runs
    printed = target.table_robustness.layout(points)
    assert printed.iloc[0][["Settings", "Mean", "Diverged runs"]].tolist() == ["0", "", str(len(runs))]


def test_the_other_linear_evaluation_stands_beside_ours_where_it_ran(target: Any, builder: Any) -> None:
    for loss, augmented in (("dhel", 0.9), ("dcl", None)):
        add = builder.run(loss=loss, temperature=0.5)
        add("validation_top1", 0.5)
        add("linear_top1", 0.8, "h")
        if augmented:
            add("augmented_top1", augmented, "h")
    table = target.table_linear_accuracy
    printed = table.layout(table.points(builder.table()))
    assert printed.iloc[:, :-1].to_numpy().tolist() == [
        ["CIFAR-10", "linear top-1", "DCL"],
        ["CIFAR-10", "linear top-1", "DHEL"],
        ["CIFAR-10", "augmented linear top-1", "DHEL"],
    ]
    assert printed.iloc[-1, -1] == "0.900 (n=1)"


@pytest.fixture
def corrupted(builder: Any) -> pd.DataFrame:
    """Validation prefers temperature 0.5; two seeds, two corruptions at severities 0 to 2."""
    accuracies = {"contrast": (0.8, 0.6, 0.4), "jpeg": (0.8, 0.7, 0.7)}
    for temperature, seed in ((0.5, 0), (0.5, 1), (0.1, 0)):
        add = builder.run(seed=seed, temperature=temperature)
        add("validation_top1", temperature)
        for corruption, values in accuracies.items():
            for severity, value in enumerate(values):
                add("corrupted_top1", value * (1 - 0.1 * seed), "h", severity, corruption)
    return builder.table()


def test_corruptions_are_kept_apart_and_averaged_within_a_run_before_seeds(
    target: Any, corrupted: pd.DataFrame
) -> None:
    points = target.fig_corruptions.points(corrupted).set_index(["corruption", "severity"])
    assert len(points) == 3 * 3
    assert set(points["runs"]) == {runs((0.5, 256))}
    assert points.loc["contrast", "mean"].tolist() == pytest.approx([0.76, 0.57, 0.38])
    assert points.loc["jpeg", "mean"].tolist() == pytest.approx([0.76, 0.665, 0.665])
    assert points.loc["mean", "mean"].tolist() == pytest.approx([0.76, 0.95 * 0.65, 0.95 * 0.55])
    assert points.loc[("mean", 1), "std"] == pytest.approx(0.065 / math.sqrt(2))


def test_the_table_of_corruptions_averages_severities_and_compares_with_clean(
    target: Any, corrupted: pd.DataFrame
) -> None:
    points = target.table_corruptions.points(corrupted)
    means = points.set_index("measure")["mean"]
    assert means.to_dict() == pytest.approx(
        {"clean": 0.76, "contrast": 0.95 * 0.5, "jpeg": 0.95 * 0.7, "mean": 0.95 * 0.6, "relative_drop": 0.25}
    )
    printed = target.table_corruptions.layout(points).iloc[0]
    assert printed[["Data set", "Loss", "Batch size"]].tolist() == ["CIFAR-10", "DHEL", "256"]
    assert printed["Clean"] == "0.760 ± 0.057 (n=2)"
    assert printed["Relative drop"] == "0.250 ± 0.000 (n=2)"


def test_training_of_a_run_that_is_not_over_needs_no_validation(target: Any, builder: Any) -> None:
    add = builder.run(temperature=0.5)
    for epoch in (1, 2):
        for metric in ("training_loss", "training_alignment", "training_energy"):
            add(metric, 4.0 - epoch, x=epoch)
    live = target.fig_training.live_points(builder.table())
    assert live.query("metric == 'training_loss'")[["epoch", "mean"]].to_numpy().tolist() == [[1, 3], [2, 2]]


def test_representation_prints_one_row_per_embedding(target: Any, experiment: pd.DataFrame) -> None:
    printed = target.table_representation.layout(target.table_representation.points(experiment))
    assert len(printed) == 2 * 2 * 7
    assert printed.iloc[0][["Data set", "Embedding", "Loss", "d"]].tolist() == ["CIFAR-10", "h", "InfoNCE", "24"]


def published(target: Target, results: pd.DataFrame) -> pd.DataFrame:
    points = target.points(results)
    assert len(points) == 22
    assert points["source"].notna().all()
    assert (points["reason"].isna() | (points["reason"] == "") == (points["n"] > 0)).all()
    return points


def test_an_exact_protocol_is_compared(target: Any, builder: Any) -> None:
    for seed, accuracy in enumerate((0.87, 0.89)):
        add = builder.run(batch_size=256, seed=seed, temperature=0.5)
        add("validation_top1", 0.5)
        add("linear_top1", accuracy, "h")
    other = builder.run(batch_size=256, temperature=0.1)
    other("validation_top1", 0.9)
    other("linear_top1", 0.1, "h")
    points = published(target.table_published, builder.table())
    ours = points[points["n"] > 0]
    assert ours["loss"].tolist() == ["DHEL (MV-DHEL with 2 views)"]
    assert ours["mean"].tolist() == pytest.approx([88.0])
    assert ours["runs"].tolist() == [runs((0.5, 256))]
    printed = target.table_published.layout(points)
    assert printed["Ours (%)"].tolist().count("88.0 ± 1.4 (n=2)") == 1
    assert printed["Source"].ne("").all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epochs": 100}, "not run: epochs differ"),
        ({"width": 0.25}, "not run: not at full width"),
        ({"train_images": 10_000}, "not run: not on the whole training set"),
        ({"loss": "ntxent"}, "not run: loss not in this experiment"),
        ({"batch_size": 128}, "not run: batch sizes differ"),
        ({"temperature": 0.3}, "not run: temperatures differ"),
        ({"dataset": "digits"}, "not run: data set not in this experiment"),
    ],
)
def test_anything_else_is_left_empty_with_the_reason(target: Any, builder: Any, change: Any, reason: str) -> None:
    add = builder.run(**{"temperature": 0.5, **change})
    add("validation_top1", 0.5)
    add("linear_top1", 0.87, "h")
    points = published(target.table_published, builder.table())
    row = points[(points["dataset"] == "cifar10") & points["loss"].str.startswith("DHEL")].iloc[0]
    assert (row["reason"], row["n"], row["runs"]) == (reason, 0, "")


def test_published_numbers_that_no_run_can_match_say_why(target: Any, grid: pd.DataFrame) -> None:
    points = published(target.table_published, grid)
    assert set(points.loc[points["batch_size"].isna(), "reason"]) == {"batch size not stated"}
    assert set(points.loc[points["protocol"] == "kNN k=10", "reason"]) == {"evaluation differs"}
    assert set(points.loc[points["loss"] == "best two-view baseline", "reason"]) == {"not one loss"}


def test_a_diverged_run_is_left_out(target: Any, experiment: pd.DataFrame) -> None:
    diverged = experiment.query("loss == 'dhel' and temperature == 0.1 and batch_size == 32")["run"].unique()
    for name in ("fig_batch_size", "fig_temperature", "fig_alignment_uniformity"):
        listed = set(";".join(getattr(target, name).points(experiment)["runs"]).split(";"))
        assert not listed & set(diverged)
        if name != "fig_temperature":
            assert listed == set(experiment.query("metric == 'linear_top1'")["run"])
