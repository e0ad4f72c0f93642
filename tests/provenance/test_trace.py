"""The lineage of a number says what the manifests say, and what no longer holds."""

from pathlib import Path

import pandas as pd
import pytest
from workspace import run as run_program

from dhel_kcl.errors import InputError
from dhel_kcl.files import sha256_file, write_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.provenance import trace as lineage

LAYOUT = Layout(Path("results/tiny"))
RUN = "digits-dhel-temperature0.3-bs128-seed0"
ACCURACY = LAYOUT.tables / "table_linear_accuracy.csv"
CELL = "loss=dhel,batch_size=128,metric=linear_top1"


@pytest.fixture
def here(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)


@pytest.fixture
def copy_here(copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy_of_finished)


def of_cell(what: str, *cell: str, column: str | None = None) -> list[str]:
    told = lineage.of_cell(Experiment.open(LAYOUT.root), what, cell, column)
    return list(lineage.lines(told))


def of_file(what: str) -> list[str]:
    return list(lineage.lines(lineage.of_file(Experiment.open(LAYOUT.root), what)))


def line(lines: list[str], *parts: str) -> str:
    """The only line with all these parts."""
    (found,) = [line for line in lines if all(part in line for part in parts)]
    return found


@pytest.mark.usefixtures("here")
def test_the_lineage_of_a_number_leads_to_its_run_checkpoint_images_and_configuration() -> None:
    told = of_cell("table_linear_accuracy", CELL)
    points = pd.read_csv(ACCURACY)
    (number,) = points.index[(points["runs"] == RUN) & (points["metric"] == "linear_top1")]
    value = str(points.loc[number, "mean"])
    assert told[0] == f"{value} is linear_top1 (mean) in row {number + 1} of {ACCURACY}"
    assert f"run {RUN}: linear_top1 {value}" in line(told, f"run {RUN}:")
    for file in (
        *(ACCURACY, LAYOUT.results, LAYOUT.evaluation(RUN), LAYOUT.features(RUN), LAYOUT.encoder(RUN)),
        *(LAYOUT.beton("digits", "train"), LAYOUT.beton("digits", "test"), LAYOUT.config),
    ):
        assert f"sha256 {sha256_file(file)}" in line(told, f"{file}: ")
    for stage in ("evaluate", "pretrain"):
        job = load_manifest(LAYOUT.run_manifest(stage, RUN))
        facts = line(told, "measured by evaluate" if stage == "evaluate" else "pretrained with")
        for fact in (job.host, job.started, f"took {job.seconds:g} s", job.source_digest, job.git_commit):
            assert str(fact) in facts
        assert ("UNCOMMITTED" in facts) == bool(job.git_dirty)
        assert ("NOT KNOWN" in facts) == (job.git_dirty is None)
    trained = "loss dhel, temperature 0.3, batch size 128, learning rate 0.1, 2 epochs, run seed 0"
    assert trained in line(told, "pretrained with")
    assert sum("written from kind digits" in each for each in told) == 2
    assert "CHANGED: " not in "".join(told)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("cell", [(CELL,), (CELL.replace("dhel", "DHEL"),), tuple(CELL.split(","))])
def test_a_row_is_named_by_its_values_or_by_its_number(cell: tuple[str, ...]) -> None:
    points = pd.read_csv(ACCURACY)
    matching = (points["loss"] == "dhel") & (points["batch_size"] == 128) & (points["metric"] == "linear_top1")
    number = str(points.index[matching].item() + 1)
    told = of_cell("table_linear_accuracy", *cell)
    assert f" in row {number} of " in told[0]
    assert told == of_cell("table_linear_accuracy", number)


@pytest.mark.usefixtures("here")
def test_a_figure_may_be_named_by_any_of_its_files_and_any_column_chosen() -> None:
    told = of_cell("results/tiny/figures/fig_effective_rank.png", "2", column="embedding_dim")
    points = pd.read_csv(LAYOUT.figures / "fig_effective_rank.csv", dtype=str)
    assert told[0].startswith(f"{points.loc[1, 'embedding_dim']} is embedding_dim in row 2 of ")
    assert line(told, "it is embedding_dim of 1 run")
    assert line(told, f"run {points.loc[1, 'runs']}: embedding_dim")


@pytest.mark.usefixtures("here")
def test_a_statistic_of_several_runs_lists_each_of_them_with_its_value() -> None:
    points = pd.read_csv(LAYOUT.tables / "table_robustness.csv", keep_default_na=False)
    (number, row) = next((number, row) for number, row in points.iterrows() if ";" in row["runs"])
    told = of_cell("table_robustness", str(int(str(number)) + 1), column="best")
    assert line(told, f"it is the highest linear_top1 of {len(row['runs'].split(';'))} runs")
    results = pd.read_parquet(LAYOUT.results)
    for run in row["runs"].split(";"):
        value = results.loc[(results["run"] == run) & (results["metric"] == "linear_top1"), "value"].item()
        assert line(told, f"run {run}: linear_top1 {value}")


@pytest.mark.usefixtures("here")
def test_a_point_of_a_curve_is_traced_to_its_position() -> None:
    points = pd.read_csv(LAYOUT.figures / "fig_spectrum.csv", dtype=str)
    told = of_cell("fig_spectrum", "2")
    assert told[0].startswith(f"{points.loc[1, 'mean']} is mean in row 2 of ")
    assert line(told, f"run {points.loc[1, 'runs']}: singular_value {points.loc[1, 'mean']}")
    assert line(told, "representation.json: sha256")


@pytest.mark.usefixtures("here")
def test_a_theorem_has_a_seed_and_no_checkpoint() -> None:
    told = of_cell("table_theory", "1", column="measured")
    assert "with run seed 0" in line(told, "made by theory")
    assert line(told, "config.yaml: sha256")
    assert "encoder" not in "".join(told)


@pytest.mark.usefixtures("copy_here")
def test_what_no_longer_holds_is_said_where_it_is_told() -> None:
    with LAYOUT.encoder(RUN).open("ab") as file:
        file.write(b"0")
    LAYOUT.features(RUN).unlink()
    manifest = load_manifest(LAYOUT.run_manifest("evaluate", RUN))
    manifest.git_dirty, manifest.host, manifest.source_digest = True, None, "0"
    manifest.outputs["evaluation.json"].sha256 = "1" * 64
    write_json(LAYOUT.run_manifest("evaluate", RUN), manifest.model_dump(exclude={"host"}))
    told = of_cell("table_linear_accuracy", CELL)
    assert f"CHANGED: its sha256 is now {sha256_file(LAYOUT.encoder(RUN))}" in line(told, "encoder.safetensors: ")
    assert line(told, "features.safetensors: ").endswith("no longer there")
    used = f"CHANGED: its sha256 is now {sha256_file(LAYOUT.evaluation(RUN))}; CHANGED: collect used"
    assert used in line(told, "evaluation.json: ")
    measured = line(told, "measured by evaluate with run seed 0 on a host without a name")
    assert measured.endswith("UNCOMMITTED changes in the code; the code has CHANGED since")
    manifest.git_commit, manifest.git_dirty = None, None
    write_json(LAYOUT.run_manifest("evaluate", RUN), manifest.model_dump(exclude={"host"}))
    measured = line(of_cell("table_linear_accuracy", CELL), "measured by evaluate with run seed 0")
    assert "commit unknown; whether the code was committed is NOT KNOWN; the code has CHANGED since" in measured


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("what", "cell", "column", "said"),
    [
        ("fig_x", ["1"], None, "fig_x: --cell needs a figure or table; there are fig_batch_size, "),
        ("table_linear_accuracy", ["0"], None, "no row 0; there are rows 1 to"),
        ("table_linear_accuracy", ["99"], None, "no row 99; there are rows 1 to"),
        ("table_linear_accuracy", ["best"], None, "no cell 'best'; give a row number, or values of dataset, loss, "),
        ("table_linear_accuracy", ["los=dhel"], None, "no cell 'los=dhel'; give a row number, or values of dataset, "),
        ("table_linear_accuracy", ["loss=dcl"], None, "no row with loss=dcl; loss is one of dhel, kcl_gaussian"),
        ("table_linear_accuracy", ["1"], "max", "no column 'max'; there are dataset, loss, "),
        ("table_linear_accuracy", ["loss=DHEL,metric=linear_top1"], None, "these 2 rows match; add a value or give"),
        ("table_linear_accuracy", [], "mean", "rows match; add a value or give the number"),
    ],
)
def test_a_cell_that_is_not_there_is_answered_with_what_is(
    what: str, cell: list[str], column: str | None, said: str
) -> None:
    with pytest.raises(InputError) as raised:
        of_cell(what, *cell, column=column)
    assert said in str(raised.value).splitlines()[-1]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("what", ["fig_batch_size", "results/tiny/figures/fig_batch_size.png"])
def test_a_file_is_traced_to_checkpoints_betons_and_configuration_each_told_of_once(what: str) -> None:
    told = of_file(what)
    for part in ("fig_batch_size.png", "results.parquet", "train.beton", "config.yaml", "encoder.safetensors"):
        assert any(f"{part}: sha256 " in each for each in told)
    files = [each.strip().partition(": ")[0] for each in told if ": sha256 " in each]
    assert len(files) == len(set(files))
    assert any("see above: " in each for each in told)


@pytest.mark.usefixtures("here")
def test_the_overview_of_a_product_has_only_the_runs_behind_it() -> None:
    told = of_file("table_theory")
    assert line(told, "theory.parquet: sha256 ", "theory of tiny, run seed 0")
    assert "runs/" not in "".join(told)


@pytest.mark.usefixtures("here")
def test_a_file_that_no_job_wrote_is_answered_with_the_figures_and_tables() -> None:
    with pytest.raises(InputError, match=r"README\.md: no job of results/tiny wrote such a file; .* table_theory"):
        of_file("README.md")


def test_the_command_prints_plain_lines_into_a_pipe(finished: Path) -> None:
    outcome = run_program("dhel-kcl", "trace", "results/tiny", "table_linear_accuracy", "--cell", "1", cwd=finished)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[0].endswith("in row 1 of results/tiny/tables/table_linear_accuracy.csv")
    assert outcome.stdout.isascii()
