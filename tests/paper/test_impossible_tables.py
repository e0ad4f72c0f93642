"""A tidy table with what no job writes is refused in one line that names the file and the row."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dhel_kcl.errors import InputError
from dhel_kcl.paper.render import COLUMNS, load_results
from dhel_kcl.results.robustness import HYPERPARAMETERS

NUMBERS = {*HYPERPARAMETERS, "width", "epochs", "train_images", "learning_rate", "batch_size", "seed", "x", "value"}


def row(metric: str, value: float, **other: object) -> dict[str, object]:
    values: dict[str, object] = {name: 1.0 if name in NUMBERS else "" for name in COLUMNS["results"]}
    return {**values, "run": "a", "metric": metric, "value": value, "test_hits": None, **other}


def table() -> pd.DataFrame:
    return pd.DataFrame([row("linear_top1", 0.5), row("training_loss", -3.0), row("linear_top1", 1.0, run="b")])


Change = Callable[[pd.DataFrame], pd.DataFrame]


def given(column: str, value: object) -> Change:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.astype({column: type(value)})
        rows.loc[0, column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (given("value", -3.0), "value is -3.0 in the row linear_top1 of a"),
        (given("value", 1.5), "value is 1.5 in the row linear_top1 of a"),
        (given("value", float("nan")), "value is nan in the row linear_top1 of a"),
        (given("value", float("inf")), "value is inf in the row linear_top1 of a"),
        (given("batch_size", float("nan")), "batch_size is nan in the row linear_top1 of a"),
        (given("batch_size", 0.5), "batch_size is 0.5 in the row linear_top1 of a"),
        (given("epochs", -1.0), "epochs is -1.0 in the row linear_top1 of a"),
        (given("temperature", float("inf")), "temperature is inf in the row linear_top1 of a"),
        (given("learning_rate", 2.0), "the rows of a differ in what they say of the run"),
        (lambda rows: pd.concat([rows, rows.tail(1).assign(value=0.25)]), "the row linear_top1 of b is there twice"),
        (
            lambda rows: pd.concat(
                [rows, pd.DataFrame([row("not_measured", 1.0, source="a.json")] * 2)], ignore_index=True
            ),
            "the row not_measured of a is there twice",
        ),
        (lambda rows: rows.assign(test_hits="/w=="), "test_hits are in the row training_loss of a"),
        (lambda rows: rows.assign(better=1.0), "column better is not one of its columns"),
    ],
)
def test_what_no_job_writes_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    path = tmp_path / "results.parquet"
    change(table()).to_parquet(path)
    with pytest.raises(InputError) as caught:
        load_results(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_jobs_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    rows = table()
    rows.loc[0, ["x", *HYPERPARAMETERS]] = float("nan")
    rows.loc[1, HYPERPARAMETERS] = float("nan")
    reasons = [row("not_measured", 1.0, run="c", source=source) for source in ("evaluation.json", "corruptions.json")]
    pd.concat([rows, pd.DataFrame(reasons)], ignore_index=True).to_parquet(path)
    assert len(load_results(path)) == 5
    assert load_results(path, ("other",)).empty


def test_hits_of_the_test_images_are_read_and_missing_in_tables_from_before_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    rows = table().assign(test_hits=["8A==", None, None])
    rows.to_parquet(path)
    assert load_results(path)["test_hits"].fillna("").tolist() == ["8A==", "", ""]
    rows.drop(columns="test_hits").to_parquet(path)
    older = load_results(path)
    assert list(older) == COLUMNS["results"]
    assert older["test_hits"].isna().all()
