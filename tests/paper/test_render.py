"""The contract of figure and table scripts, with tiny scripts of its own."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dhel_kcl.errors import InputError
from dhel_kcl.paper.render import (
    COLUMNS,
    load_results,
    load_target,
    points_equal,
    read_points,
    rederive,
    render,
    write_points,
)
from dhel_kcl.results.robustness import HYPERPARAMETERS

FIGURE = '''"""A figure.

What it
shows.
"""
from matplotlib.figure import Figure

METRICS = ("accuracy",)

def points(results):
    rows = results[results["value"] > 0]
    return rows.groupby("loss").agg(value=("value", "mean"), runs=("run", ";".join)).reset_index()

def draw(points):
    figure = Figure()
    figure.add_subplot().plot(points["value"])
    return figure
'''
TABLE = FIGURE.replace("def draw", "def layout").replace(
    'figure = Figure()\n    figure.add_subplot().plot(points["value"])\n    return figure',
    'return points.assign(value=[f"{value:.2f}" for value in points["value"]])',
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fig_tiny.py").write_text(FIGURE, encoding="utf-8")
    (tmp_path / "table_tiny.py").write_text(TABLE, encoding="utf-8")
    return tmp_path


def write_results(path: Path, value: float = 0.1, metric: str = "accuracy") -> Path:
    pd.DataFrame([tidy_row("results", metric, value), tidy_row("results", metric, 2 * value, run="b")]).to_parquet(path)
    return path


def tidy_row(table: str, metric: str, value: float, run: str = "a") -> dict[str, str | float]:
    numbers = {*HYPERPARAMETERS, "width", "epochs", "train_images", "learning_rate", "batch_size", "seed", "x"}
    row = {column: 0.0 if column in {*numbers, "embedding_dim"} else "" for column in COLUMNS[table]}
    row |= {"run": run, "loss": "dhel", "metric": metric, "value": value}
    return {column: value for column, value in row.items() if column != "test_hits"}


def test_a_figure_is_written_as_csv_png_and_pdf(folder: Path) -> None:
    paths = render(folder / "fig_tiny.py", [write_results(folder / "results.parquet")], folder / "out" / "figures")
    assert [path.name for path in paths] == ["fig_tiny.csv", "fig_tiny.png", "fig_tiny.pdf"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert paths[2].read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in paths[2].read_bytes()
    assert b"Software" not in paths[1].read_bytes()


def test_a_table_is_written_as_csv_and_markdown(folder: Path) -> None:
    _, markdown = render(folder / "table_tiny.py", [write_results(folder / "results.parquet")], folder)
    text = markdown.read_text(encoding="utf-8")
    assert text.startswith("# A figure\n\n|")
    assert "| dhel   | 0.15    | a;b    |" in text
    assert text.endswith("\n\nWhat it shows.\n")


def test_rendering_twice_gives_the_same_bytes(folder: Path) -> None:
    results = write_results(folder / "results.parquet")
    first = [path.read_bytes() for path in render(folder / "fig_tiny.py", [results], folder / "1")]
    second = [path.read_bytes() for path in render(folder / "fig_tiny.py", [results], folder / "2")]
    assert first == second


def test_written_points_equal_rederived_ones_until_the_results_change(folder: Path) -> None:
    script, results = folder / "fig_tiny.py", write_results(folder / "results.parquet", value=0.1 + 0.2)
    written = read_points(render(script, [results], folder)[0])
    assert points_equal(written, rederive(script, [results]))
    write_results(results, value=0.3)
    assert points_equal(written, rederive(script, [results])), "to rounding, which differs between processors"
    write_results(results, value=0.3 * (1 + 1e-10))
    assert not points_equal(written, rederive(script, [results]))


@pytest.mark.parametrize(
    "other",
    [
        {"loss": ["dhel", "dcl"], "value": [1.0, 2.0]},
        {"loss": ["dhel", "kcl"], "value": [1.0, float("nan")]},
        {"loss": ["dhel", "kcl"], "value": [1.0, 2.0 + 1e-9]},
        {"loss": ["dhel", "kcl"], "value": [1.0, 2.0], "runs": ["a", "b"]},
        {"value": [1.0, 2.0], "loss": ["dhel", "kcl"]},
        {"loss": ["dhel"], "value": [1.0]},
        {"loss": ["kcl", "dhel"], "value": [2.0, 1.0]},
        {},
    ],
)
def test_points_with_another_cell_column_or_order_are_others(other: dict[str, list[str | float]]) -> None:
    points = pd.DataFrame({"loss": ["dhel", "kcl"], "value": [1.0, 2.0]})
    assert not points_equal(points, pd.DataFrame(other))
    assert points_equal(points, points.copy())


def test_points_survive_the_csv_to_the_last_digit(tmp_path: Path) -> None:
    points = pd.DataFrame(
        {
            "loss": ["dhel", "None", "a,b"],
            "count": [1, 2, 3],
            "value": [0.1 + 0.2, 1e-300 / 3, float("nan")],
            "size": [256.0, float("nan"), 32.0],
            "chosen": [True, False, True],
            "empty": [None, None, None],
        }
    )
    write_points(points, tmp_path / "points.csv")
    back = read_points(tmp_path / "points.csv")
    assert points_equal(points, back)
    assert back["value"].iloc[0] == 0.1 + 0.2
    assert not points_equal(points, back.assign(value=back["value"] * (1 + 1e-9)))


def test_no_float_changes_on_its_way_through_the_csv(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal(20_000) * 10.0 ** random.integers(-300, 300, 20_000)
    write_points(pd.DataFrame({"value": values}), tmp_path / "points.csv")
    np.testing.assert_array_equal(read_points(tmp_path / "points.csv")["value"], values)


@pytest.mark.parametrize("name", ["fig_tiny", "table_tiny"])
def test_a_script_may_be_left_without_points_if_it_says_what_to_show_then(folder: Path, name: str) -> None:
    script, results = folder / f"{name}.py", write_results(folder / "results.parquet", value=-1.0)
    with pytest.raises(InputError, match="nothing to show"):
        rederive(script, [results])
    script.write_text(
        script.read_text(encoding="utf-8").replace("METRICS", 'NOTHING = "nobody came"\nMETRICS'), encoding="utf-8"
    )
    csv, shown, *_ = render(script, [results], folder)
    assert csv.read_text(encoding="utf-8") == "loss,value,runs\n"
    target = load_target(script)
    if target.draw:
        assert shown.read_bytes().startswith(b"\x89PNG")
        (text,) = target.draw(read_points(csv)).axes[0].texts
        assert text.get_text() == "nobody came"
    else:
        assert "| nobody came |" in shown.read_text(encoding="utf-8")
    write_results(results)
    assert "nobody came" not in render(script, [results], folder)[1].read_text(errors="ignore", encoding="utf-8")
    assert len(rederive(script, [results])) == 1


def test_title_and_caption_come_from_the_docstring(folder: Path) -> None:
    target = load_target(folder / "fig_tiny.py")
    assert (target.name, target.title, target.caption) == ("fig_tiny", "A figure", "What it shows.")


def test_load_results_can_keep_some_metrics(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.parquet")
    assert len(load_results(path)) == 2
    assert load_results(path, ("other",)).empty


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "results.parquet: missing; run the rule"),
        (lambda path: path.write_text("not parquet", encoding="utf-8"), "not a readable results table"),
        (lambda path: pd.DataFrame({"run": []}).to_parquet(path), "not a readable results table"),
        (lambda path: write_results(path, metric="other"), "no rows of accuracy, which fig_tiny needs"),
        (lambda path: write_results(path, value=-1.0), "nothing to show in fig_tiny"),
    ],
)
def test_unusable_results_are_one_line_and_leave_no_file(folder: Path, prepare, message: str) -> None:
    results = folder / "results.parquet"
    prepare(results)
    with pytest.raises(InputError, match=message) as caught:
        render(folder / "fig_tiny.py", [results], folder / "out")
    assert "\n" not in str(caught.value)
    assert str(results) in str(caught.value)
    assert not (folder / "out").exists()


def test_a_script_with_a_sentence_for_it_may_have_nothing_to_show(folder: Path) -> None:
    script, results = folder / "fig_tiny.py", write_results(folder / "results.parquet", value=-1.0)
    script.write_text(FIGURE.replace("METRICS", 'NOTHING = "No accuracy is positive."\nMETRICS'), encoding="utf-8")
    assert load_target(script).nothing == "No accuracy is positive."
    written = read_points(render(script, [results], folder)[0])
    assert written.empty
    assert written.columns.tolist() == ["loss", "value", "runs"]
    assert points_equal(written, rederive(script, [results]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("def points", "def other"), "does not define points"),
        (lambda text: text.replace("def draw", "def other"), "does not define draw or layout"),
        (lambda text: text.replace("METRICS", "OTHER"), "does not define METRICS"),
        (
            lambda text: text.replace("METRICS", 'TABLES = ("other",)\nMETRICS'),
            "TABLES must be a tuple of results, theory, verdicts",
        ),
        (lambda text: text.replace("METRICS", "import table_tiny\nMETRICS"), "table_tiny'; a script imports installed"),
    ],
)
def test_a_script_without_its_parts_is_refused(folder: Path, change, message: str) -> None:
    script = folder / "fig_tiny.py"
    script.write_text(change(FIGURE), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_target(script)


def test_a_script_reads_the_table_that_it_names(folder: Path) -> None:
    script = folder / "fig_tiny.py"
    script.write_text(FIGURE.replace("METRICS", 'TABLES = ("theory",)\nMETRICS'), encoding="utf-8")
    with pytest.raises(InputError, match=r"results\.parquet: not a readable theory table"):
        rederive(script, [write_results(folder / "results.parquet")])
    pd.DataFrame([tidy_row("theory", "accuracy", 0.5)]).to_parquet(folder / "theory.parquet")
    assert rederive(script, [folder / "theory.parquet"])["value"].tolist() == [0.5]


def test_a_missing_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fig_none\.py: no such figure or table script"):
        load_target(tmp_path / "fig_none.py")


def test_missing_points_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="snakemake --cores 1 fig_tiny"):
        read_points(tmp_path / "fig_tiny.csv")


def test_a_drawing_that_fails_leaves_no_half_written_image(folder: Path) -> None:
    (folder / "fig_tiny.py").write_text(
        FIGURE.replace("figure = Figure()", "raise RuntimeError('broken')"), encoding="utf-8"
    )
    with pytest.raises(RuntimeError, match="broken"):
        render(folder / "fig_tiny.py", [write_results(folder / "results.parquet")], folder / "out")
    assert os.listdir(folder / "out") == ["fig_tiny.csv"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("value", "0.5", "column value does not hold numbers"),
        ("value", True, "column value does not hold numbers"),
        ("batch_size", "256", "column batch_size does not hold numbers"),
        ("loss", 1.0, "column loss does not hold text"),
        ("source", None, "column source does not hold text"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: str, value: object, said: str) -> None:
    path = tmp_path / "results.parquet"
    pd.DataFrame([{**tidy_row("results", "accuracy", 0.5), column: value}]).to_parquet(path)
    with pytest.raises(InputError, match=rf"results\.parquet: not a readable results table \({said}\); delete it"):
        load_results(path)


@pytest.mark.parametrize("reason", ["diverged", "not_measured"])
@pytest.mark.parametrize("name", ["fig_tiny", "table_tiny"])
def test_where_a_recorded_reason_says_why_no_run_has_a_metric_a_sentence_says_so(
    folder: Path, name: str, reason: str
) -> None:
    script, results = folder / f"{name}.py", folder / "results.parquet"
    rows = [tidy_row("results", reason, 1.0), tidy_row("results", reason, 1.0, run="b")]
    pd.DataFrame(rows).to_parquet(results)
    csv, shown, *_ = render(script, [results], folder)
    assert points_equal(read_points(csv), rederive(script, [results]))
    target, sentence = load_target(script), "No run has accuracy: each diverged or could not be measured."
    if target.draw:
        (text,) = target.draw(read_points(csv)).axes[0].texts
        assert " ".join(text.get_text().split()) == sentence
    else:
        assert f"| {sentence} |" in shown.read_text(encoding="utf-8")
    pd.DataFrame([*rows, tidy_row("results", "diverged", 0.0, run="c")]).to_parquet(results)
    with pytest.raises(InputError, match="no rows of accuracy, which"):  # run c has no reason
        render(script, [results], folder)
