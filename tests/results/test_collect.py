"""The tidy table says what the runs' files say, and whose they are."""

import json

import pandas as pd
import pytest

from dhel_kcl.data.corrupt import SEVERITIES
from dhel_kcl.evaluation.hits import unpack_hits
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.layout import Layout

RUN = "digits-kcl_gaussian-t2-gamma16-bs128-seed0"


@pytest.fixture
def results(layout: Layout) -> pd.DataFrame:
    return pd.read_parquet(layout.results)


def test_every_run_has_every_metric(results: pd.DataFrame, tiny_config: ExperimentConfig) -> None:
    assert set(results["run"]) == set(tiny_config.runs)
    metrics = {
        *(
            "linear_top1",
            "linear_top5",
            "validation_top1",
            "regularisation_c",
            "knn_top1",
            "test_images",
        ),
        *("augmented_top1", "augmented_top5", "corrupted_top1", "diverged", "gradient_norm", "waiting_for_data"),
        *("training_knn_top1", "training_effective_rank"),
        *("alignment", "uniformity_of_views", "uniformity", "rank", "effective_rank", "embedding_dim"),
        *("centred_effective_rank", "participation_ratio", "wasserstein_uniformity", "rankme", "rankme_images"),
        *("singular_value", "similarity_density"),
        *("mini_batch_loss", "mini_batch_loss_standard_error", "mini_batch_loss_growth"),
        *("training_loss", "training_alignment", "training_energy", "learning_rate", "images_per_second"),
    }
    for _, rows in results.groupby("run"):
        assert set(rows["metric"]) == metrics
    assert not results["value"].isna().any()
    keys = ["run", "metric", "representation", "corruption", "x"]
    assert not results.duplicated(keys).any()


def test_values_and_keys_are_those_of_the_source(results: pd.DataFrame, layout: Layout) -> None:
    rows = results[results["run"] == RUN]
    assert rows[["dataset", "loss", "t", "gamma", "batch_size", "seed", "width", "epochs"]].iloc[0].to_list() == [
        *("digits", "kcl_gaussian", 2.0, 16.0, 128, 0, 0.0625, 2)
    ]
    assert rows["temperature"].isna().all()
    evaluation = json.loads(layout.evaluation(RUN).read_text(encoding="utf-8"))
    top1 = rows[rows["metric"] == "linear_top1"].iloc[0]
    assert top1["value"] == evaluation["linear_top1"]
    assert top1["test_hits"] == evaluation["test_hits"]
    assert unpack_hits(top1["test_hits"], evaluation["test_images"]).mean() == top1["value"]
    assert results["test_hits"].notna().equals(results["metric"] == "linear_top1")
    assert top1["source_sha256"] == sha256_file(layout.root / top1["source"])
    assert (rows.loc[rows["metric"] == "similarity_density", "x"].between(-1, 1)).all()


def test_only_z_is_compared_with_the_uniform_law_and_has_rankme(results: pd.DataFrame) -> None:
    of_z = {"wasserstein_uniformity", "similarity_density", "rankme", "rankme_images"}
    of_z |= {"mini_batch_loss", "mini_batch_loss_standard_error", "mini_batch_loss_growth"}
    measured = results.groupby("representation")["metric"].agg(set)
    assert of_z <= measured["z"]
    assert not of_z & measured["h"]
    assert set(results.loc[results["metric"] == "rankme_images", "value"]) == {1437}, "all digits of the training set"


def test_the_loss_of_mini_batches_is_there_for_each_size_up_to_the_test_images(
    results: pd.DataFrame, layout: Layout
) -> None:
    for key in ("value", "standard_error", "growth"):
        metric = f"mini_batch_loss_{key}".removesuffix("_value")
        for run, rows in results[results["metric"] == metric].groupby("run"):
            curve = json.loads(layout.representation(str(run)).read_text(encoding="utf-8"))["z"]["mini_batch_loss"]
            assert rows["x"].tolist() == [16, 64, 256], "digits has 360 test images"
            assert rows["value"].tolist() == curve[key]


def test_nearest_neighbours_are_counted_for_each_run(results: pd.DataFrame) -> None:
    neighbours = results[results["metric"] == "knn_top1"].groupby("run")["x"].agg(list)
    assert neighbours.tolist() == [[20, 200]] * len(neighbours)


def test_curves_have_a_position_and_scalars_have_none(results: pd.DataFrame) -> None:
    curves = {"singular_value", "similarity_density", "images_per_second", "waiting_for_data", "learning_rate"}
    curves |= {
        "gradient_norm",
        "diverged",  # its position is the step at which training ended
        "corrupted_top1",
        "knn_top1",
        *("mini_batch_loss", "mini_batch_loss_standard_error", "mini_batch_loss_growth"),
    }
    is_curve = results["metric"].isin(curves) | results["metric"].str.startswith("training_")
    assert results.loc[is_curve, "x"].notna().all()
    assert results.loc[~is_curve, "x"].isna().all()


def test_each_corruption_is_measured_from_the_clean_images_on(results: pd.DataFrame) -> None:
    of_run = results[results["run"] == RUN].set_index("metric")
    corrupted = of_run.loc["corrupted_top1"]
    assert {*corrupted["corruption"]} == {*SEVERITIES}
    for _, rows in corrupted.groupby("corruption"):
        assert rows["x"].tolist() == [0, 1, 2, 3, 4, 5]
        assert rows["value"].iloc[0] == pytest.approx(of_run.loc["linear_top1", "value"], abs=1 / 360)
    assert (of_run.drop("corrupted_top1")["corruption"] == "").all()


def test_the_csv_holds_the_same_table(results: pd.DataFrame, layout: Layout) -> None:
    csv = pd.read_csv(
        layout.results.with_suffix(".csv"),
        keep_default_na=False,
        na_values=dict.fromkeys(("temperature", "t", "c", "gamma", "x", "test_hits"), ""),
    )
    pd.testing.assert_frame_equal(csv, results, check_dtype=False, check_exact=True)
