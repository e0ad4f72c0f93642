"""What holds for every figure and table."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import StudyConfig
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.paper.render import load_target, points_equal, read_points, rederive, render
from dhel_kcl.paper.report import report_text
from dhel_kcl.results.claims import judge

ROOT = Path(__file__).parent.parent.parent
NAMES = [
    *[
        "fig_alignment_uniformity",
        "fig_batch_loss",
        "fig_batch_size",
        "fig_claims",
        "fig_corruptions",
        "fig_effective_rank",
        "fig_heatmap",
        "fig_minibatch_asymptotic",
    ],
    *["fig_minimisers", "fig_population_minimisers", "fig_rank_accuracy", "fig_rank_training", "fig_robustness"],
    *["fig_similarity", "fig_spectrum", "fig_temperature", "fig_training", "fig_uniformity_measures"],
    *["table_claims", "table_comparisons", "table_corruptions", "table_linear_accuracy", "table_published"],
    *["table_representation", "table_robustness", "table_theory"],
]
FIGURES = [name for name in NAMES if name.startswith("fig_")]
SCRIPTS = declarations.scripts(ROOT / "paper_figures")
OF_THEORY = [name for name in NAMES if SCRIPTS[name].tables == ("theory",)]
OF_RESULTS = [name for name in NAMES if name not in OF_THEORY]

pytestmark = pytest.mark.xdist_group("all targets")  # drawing each of them once takes a while


@pytest.fixture(scope="module")
def source(tables: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """The Parquet files that a target reads."""
    folder = tmp_path_factory.mktemp("results")
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    return lambda target: [Layout(folder).table(name) for name in SCRIPTS[target].tables]


@pytest.fixture(scope="module")
def rendered(source: Callable[[str], list[Path]], scripts: Path) -> Path:
    for name in NAMES:
        render(scripts / f"{name}.py", source(name), source(name)[0].parent)
    return source(NAMES[0])[0].parent


@pytest.mark.parametrize("name", NAMES)
def test_what_the_workflow_reads_in_a_script_is_what_importing_it_gives(scripts: Path, name: str) -> None:
    module = load_target(scripts / f"{name}.py").points.__globals__
    title, _, caption = module["__doc__"].partition("\n")
    declared = SCRIPTS[name]
    assert (declared.title, declared.caption) == (title.rstrip("."), " ".join(caption.split()))
    assert declared.tables == module.get("TABLES", ("results",))
    assert [str(file) for file in declared.data] == list(module.get("DATA", ()))
    assert all((ROOT / file).is_file() for file in declared.data)


def test_these_are_all_the_scripts() -> None:
    assert list(SCRIPTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rendering_again_gives_the_same_bytes(
    rendered: Path, source: Callable[[str], list[Path]], scripts: Path, name: str, tmp_path: Path
) -> None:
    for path in render(scripts / f"{name}.py", source(name), tmp_path):
        assert path.read_bytes() == (rendered / path.name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_written_points_are_those_of_the_results(
    rendered: Path, source: Callable[[str], list[Path]], scripts: Path, name: str
) -> None:
    written = read_points(rendered / f"{name}.csv")
    assert points_equal(written, rederive(scripts / f"{name}.py", source(name)))
    assert written.columns[-1] == "runs"


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_results_does_not_matter(tables: dict[str, pd.DataFrame], scripts: Path, name: str) -> None:
    target = load_target(scripts / f"{name}.py")
    read = [tables[name] for name in target.tables]
    shuffled = [table.sample(frac=1, random_state=0) for table in read]
    assert points_equal(target.points(*read), target.points(*shuffled))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_declared_metrics_are_read(tables: dict[str, pd.DataFrame], scripts: Path, name: str) -> None:
    target = load_target(scripts / f"{name}.py")
    read = [tables[name] for name in target.tables]
    declared = [table[table["metric"].isin((*target.metrics, *target.optional_metrics))] for table in read]
    assert points_equal(target.points(*read), target.points(*declared))


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_runs_of_the_results(
    rendered: Path, tables: dict[str, pd.DataFrame], scripts: Path, name: str
) -> None:
    listed = read_points(rendered / f"{name}.csv")["runs"].dropna()
    known = [tables[table]["run"] for table in load_target(scripts / f"{name}.py").tables]
    assert {run for cell in listed for run in cell.split(";")} <= set().union(*known)
    assert all(cell == ";".join(sorted(set(cell.split(";")))) for cell in listed)


@pytest.mark.parametrize(
    ("name", "panels", "lines"),
    [
        ("fig_batch_loss", 2, 8),
        ("fig_batch_size", 2, 7),
        ("fig_corruptions", 12, 7),
        ("fig_effective_rank", 4, 7),
        ("fig_spectrum", 4, 7),
        ("fig_similarity", 4, 8),
        ("fig_training", 14, 3),
        ("fig_temperature", 8, None),
        ("fig_alignment_uniformity", 4, 0),
        ("fig_heatmap", 2 + 2, None),  # with a scale of colours for each data set
        ("fig_robustness", 2, 7),
        ("fig_rank_accuracy", 4, 0),
        ("fig_rank_training", 4, 7),
    ],
)
def test_a_panel_per_data_set_and_a_line_per_loss(
    rendered: Path, scripts: Path, name: str, panels: int, lines: int | None
) -> None:
    draw = load_target(scripts / f"{name}.py").draw
    assert draw
    figure = draw(read_points(rendered / f"{name}.csv"))
    assert len(figure.axes) == panels
    assert len(figure.legends) == 1
    if lines is not None:
        assert {len(axes.lines) for axes in figure.axes} == {lines}
    titles = {axes.get_title().split(",")[0] for axes in figure.axes} - {""}
    assert {"CIFAR-10", "CIFAR-100"} <= titles


@pytest.mark.parametrize("name", [name for name in FIGURES if name in OF_RESULTS])
@pytest.mark.parametrize("shape", ["one run", "one data set", "everything"])
def test_nothing_is_covered_or_cut(
    make_experiment: Callable[..., pd.DataFrame], scripts: Path, name: str, shape: str
) -> None:
    experiment = {
        "one run": lambda: make_experiment(
            ("digits",), ("dhel",), (256,), temperatures=(0.3,), seeds=(0,), epochs=1, dimensions=(8, 8)
        ),
        "one data set": lambda: make_experiment(("cifar10",), seeds=(0,), dimensions=(12, 8)),
        "everything": lambda: make_experiment(
            ("cifar10", "cifar100", "stl10", "imagenet100"),
            batch_sizes=(32, 64, 128, 256, 512),
            seeds=(0,),
            epochs=2,
            dimensions=(12, 8),
        ),
    }[shape]()
    target = load_target(scripts / f"{name}.py")
    assert target.draw
    tables = {"results": experiment, "verdicts": judge(experiment, StudyConfig())}
    assert_nothing_is_covered_or_cut(target.draw(target.points(*(tables[name] for name in target.tables))))


@pytest.mark.parametrize("name", [name for name in FIGURES if name in OF_THEORY])
@pytest.mark.parametrize(("dimension", "starts"), [(2, 1), (4, 6), (8, 3)])
def test_nothing_of_the_theory_is_covered_or_cut(
    make_theory: Callable[..., pd.DataFrame], scripts: Path, name: str, dimension: int, starts: int
) -> None:
    target = load_target(scripts / f"{name}.py")
    assert target.draw
    assert_nothing_is_covered_or_cut(target.draw(target.points(make_theory(dimension, starts))))


def assert_nothing_is_covered_or_cut(figure: Figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox.padded(1)
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    legends = [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in (*boxes, *legends):
        assert page.containsx(box.x0)
        assert page.containsx(box.x1)
        assert page.containsy(box.y0)
        assert page.containsy(box.y1)
    assert all(box.y1 <= legend.y0 + 1 for box in boxes for legend in legends)
    assert not any(one.padded(-1).overlaps(two) for one in boxes for two in boxes if one is not two)


def test_a_target_that_may_have_nothing_to_show_says_why(
    make_experiment: Callable[..., pd.DataFrame], scripts: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results.parquet"
    one_loss = make_experiment(("cifar10",), ("dhel",))
    one_loss[one_loss["metric"] != "training_effective_rank"].to_parquet(results)
    judge(one_loss, StudyConfig()).to_parquet(tmp_path / "verdicts.parquet")
    figure, table = (scripts / f"{name}.py" for name in ("fig_rank_training", "table_comparisons"))
    for script in (figure, table):
        tables = [Layout(tmp_path).table(name) for name in SCRIPTS[script.stem].tables]
        points = read_points(render(script, tables, tmp_path)[0])
        assert points.empty
        assert points.columns[-1] == "runs"
        assert points_equal(points, rederive(script, tables))
    assert load_target(table).nothing in (tmp_path / "table_comparisons.md").read_text(encoding="utf-8")
    draw = load_target(figure).draw
    assert draw
    drawn = draw(read_points(tmp_path / "fig_rank_training.csv"))
    assert " ".join(drawn.axes[0].texts[0].get_text().split()) == load_target(figure).nothing
    assert_nothing_is_covered_or_cut(drawn)


def test_a_missing_batch_size_is_a_gap_in_the_line(make_experiment: Callable[..., pd.DataFrame], scripts: Path) -> None:
    results = make_experiment(
        ("cifar10",),
        ("ntxent", "dhel"),
        (32, 64, 128),
        diverged=lambda **r: r["loss"] == "dhel" and r["batch_size"] == 64,
    )
    target = load_target(scripts / "fig_batch_size.py")
    points = target.points(results)
    assert points.query("loss == 'dhel'")["batch_size"].tolist() == [32, 128]
    assert target.draw
    dhel = target.draw(points).axes[0].lines[1]
    assert pd.isna(dhel.get_ydata()).tolist() == [False, True, False]


@pytest.mark.parametrize("reason", ["diverged", "not_measured"])
@pytest.mark.parametrize("name", OF_RESULTS)
def test_runs_that_all_diverged_or_could_not_be_measured_give_a_sentence(
    make_experiment: Callable[..., pd.DataFrame],
    theory: pd.DataFrame,
    scripts: Path,
    name: str,
    reason: str,
    tmp_path: Path,
) -> None:
    results = make_experiment(("cifar10",), ("dhel",), diverged=lambda **_: True)
    if reason == "not_measured":
        ended = results[results["metric"] == "diverged"]
        results = pd.concat([results, ended.assign(metric="not_measured", representation="h", x=math.nan)])
        results.loc[results["metric"] == "diverged", "value"] = 0.0
    results.to_parquet(tmp_path / "results.parquet")
    theory.to_parquet(tmp_path / "theory.parquet")
    judge(results, StudyConfig()).to_parquet(tmp_path / "verdicts.parquet")
    tables = [tmp_path / f"{table}.parquet" for table in SCRIPTS[name].tables]
    csv, shown, *_ = render(scripts / f"{name}.py", tables, tmp_path / "out")
    points, target = read_points(csv), load_target(scripts / f"{name}.py")
    assert points.empty
    assert points_equal(points, rederive(scripts / f"{name}.py", tables))
    if target.draw:
        said = " ".join(target.draw(points).axes[0].texts[0].get_text().split())
    else:
        said = shown.read_text(encoding="utf-8")
    assert "No run has " in said
    assert "each diverged or could not be measured." in said


@pytest.mark.parametrize("name", ["fig_batch_size", "table_robustness"])
def test_a_metric_that_a_run_lacks_for_no_recorded_reason_is_an_error(
    make_experiment: Callable[..., pd.DataFrame], scripts: Path, name: str, tmp_path: Path
) -> None:
    results = make_experiment(("cifar10",), ("dhel",))
    results[results["metric"] != "linear_top1"].to_parquet(tmp_path / "results.parquet")
    with pytest.raises(InputError, match=rf"no rows of linear_top1, which {name} needs"):
        render(scripts / f"{name}.py", [tmp_path / "results.parquet"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fig_batch_loss", "fig_corruptions", "table_corruptions"])
def test_without_the_optional_stage_a_product_says_so_and_keeps_the_header_of_its_numbers(
    rendered: Path, experiment: pd.DataFrame, scripts: Path, name: str, tmp_path: Path
) -> None:
    target, results = load_target(scripts / f"{name}.py"), tmp_path / "results.parquet"
    experiment[~experiment["metric"].isin(target.optional_metrics)].to_parquet(results)
    render(scripts / f"{name}.py", [results], tmp_path)
    written = read_points(tmp_path / f"{name}.csv")
    assert written.empty
    assert list(written) == list(read_points(rendered / f"{name}.csv"))
    assert points_equal(written, rederive(scripts / f"{name}.py", [results]))
    if target.draw:
        (text,) = target.draw(written).axes[0].texts
        assert " ".join(text.get_text().split()) == target.nothing
    else:
        assert f"| {target.nothing} |" in (tmp_path / f"{name}.md").read_text(encoding="utf-8")


def test_the_report_shows_every_target(
    rendered: Path, source: Callable[[str], list[Path]], scripts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    (results,), (theory,) = source("fig_batch_size"), source("table_theory")
    html = report_text(
        ROOT / "config" / "quickstart.yaml",
        results,
        rendered,
        rendered,
        output,
        [load_target(script.path) for script in declarations.scripts(scripts).values()],
        [theory],
        explorer=None,
        manifests=(),
        experiment=results.parent,
    )
    tables = [name for name in NAMES if name not in FIGURES]
    assert re.findall(r'<section id="([^"]*)"', html) == [*tables, *FIGURES]
    assert html.count("data:image/png;base64,") == len(FIGURES)
    assert sha256_file(results) in html
    assert sha256_file(theory) in html
