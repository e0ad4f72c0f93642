"""The HTML report, on two tiny scripts."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from workspace import REPOSITORY

from dhel_kcl.declarations import scripts
from dhel_kcl.errors import InputError
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.paper.page import write_page
from dhel_kcl.paper.render import RESULT_COLUMNS, load_target, render
from dhel_kcl.paper.report import compare_report, report_text

SCRIPT = '''"""Title of {name}.

Caption of
<{name}>.
"""
from matplotlib.figure import Figure

METRICS = ("linear_top1",)

def points(results):
    return results[["loss", "value", "run"]].rename(columns={{"run": "runs"}})

def {function}(points):
    {body}
'''
CONFIG = {
    "name": "tiny",
    "datasets": [
        {
            "name": "digits",
            "data": {"kind": "digits"},
            "image_size": 32,
            "augmentation": {},
            "encoder": {"width": 0.25},
            "optimizer": {"learning_rate": 0.5},
            "epochs": 7,
        }
    ],
    "losses": [{"name": "dhel", "temperature": [0.3, 0.5]}],
    "batch_sizes": [32],
    "seeds": [0],
}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "fig_a.py").write_text(
        SCRIPT.format(name="fig_a", function="draw", body="return Figure()"), encoding="utf-8"
    )
    (scripts / "table_b.py").write_text(
        SCRIPT.format(name="table_b", function="layout", body="return points"), encoding="utf-8"
    )
    texts = ("run", "dataset", "backbone", "loss", "metric", "representation", "corruption", "source", "source_sha256")
    row: dict[str, str | float | None] = {name: "" if name in texts else 0.0 for name in RESULT_COLUMNS}
    row |= {"run": "run<1>", "loss": "dhel", "metric": "linear_top1", "test_hits": None}
    results = tmp_path / "results" / "results.parquet"
    results.parent.mkdir()
    pd.DataFrame([{**row, "value": 0.875}]).to_parquet(results)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    for kind in ("fig_a", "table_b"):
        render(scripts / f"{kind}.py", [results], results.parent / kind[:3])
    return {
        "config_path": config,
        "results": results,
        "figures_dir": results.parent / "fig",
        "tables_dir": results.parent / "tab",
        "output": results.parent / "report.html",
        "scripts_dir": scripts,
    }


def write_report(
    config_path: Path,
    results: Path,
    figures_dir: Path,
    tables_dir: Path,
    output: Path,
    scripts_dir: Path,
    explorer: Path | None = None,
    manifests: Iterable[Path] = (),
) -> None:
    targets = [load_target(script.path) for script in scripts(scripts_dir).values()]
    folder = results.parent
    shown = (config_path, results, figures_dir, tables_dir, output, targets, (), explorer, manifests, folder)
    write_page(report_text(*shown), output)


def test_the_command_that_audits_can_be_copied_whatever_the_folder_is_called(inputs: dict[str, Path]) -> None:
    folder = inputs["results"].parent
    (folder / "a b; c").symlink_to(folder)
    write_report(**inputs | {"results": folder / "a b; c" / inputs["results"].name})
    assert f"dhel-kcl audit &#39;{folder}/a b; c&#39;" in inputs["output"].read_text(encoding="utf-8")


def test_the_report_holds_everything(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    html = inputs["output"].read_text(encoding="utf-8")
    assert "1 of the 2 runs" in html
    assert "<td>0.875</td>" in html
    assert "<td>7</td>" in html
    assert 'alt="Title of fig_a. Caption of &lt;fig_a&gt;."' in html
    assert f"dhel-kcl audit {inputs['results'].parent}" in html
    assert "temperature:" in html
    assert 'href="fig/fig_a.pdf"' in html
    assert 'href="tab/table_b.csv"' in html


def test_the_report_needs_nothing_else_to_be_read(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    html = inputs["output"].read_text(encoding="utf-8")
    assert "<script" not in html
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', html))
    assert not re.search(r"<link|@import|url\(", html)


def test_text_from_the_results_is_escaped(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    html = inputs["output"].read_text(encoding="utf-8")
    assert "run&lt;1&gt;" in html
    assert "run<1>" not in html


def test_writing_twice_gives_the_same_bytes(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    first = inputs["output"].read_bytes()
    write_report(**inputs)
    assert inputs["output"].read_bytes() == first


def test_the_stages_that_ran_their_times_and_their_hardware_are_shown(
    inputs: dict[str, Path], make_manifest: Callable[..., Path]
) -> None:
    jobs = {"cpu": "Model <X>"}
    manifests = [
        make_manifest("data", "a/train", outputs=["a.beton"], seconds=2.0, hardware=jobs),
        make_manifest("pretrain", "run<1>", inputs=["a.beton"], outputs=["1"], seconds=10.0, hardware=jobs),
        make_manifest("pretrain", "run2", inputs=["a.beton"], outputs=["2"], seconds=20.0, peak_memory_mib=700),
    ]
    write_report(**inputs, manifests=manifests)
    html = inputs["output"].read_text(encoding="utf-8")
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    assert ["data", "1", "0:00:02", "2.0 s", "2.0 s", "", ""] in rows
    assert ["pretrain", "2", "0:00:30", "15.0 s", "20.0 s", "700 MiB", "data"] in rows
    assert ["Model &lt;X&gt;", "2"] in rows


def test_a_fact_about_some_machines_has_a_column_too(
    inputs: dict[str, Path], make_manifest: Callable[..., Path]
) -> None:
    manifests = [
        make_manifest("data", "a/train", outputs=["a"], hardware={"cpu": "X"}),
        make_manifest("data", "a/test", outputs=["b"], hardware={"cpu": "X"}),
        make_manifest("pretrain", "run", inputs=["a"], hardware={"cpu": "Y", "gpu": "Z"}),
    ]
    write_report(**inputs, manifests=manifests)
    html = inputs["output"].read_text(encoding="utf-8")
    assert "<th>cpu</th><th>gpu</th><th>jobs</th>" in html
    assert "<td>X</td><td></td><td>2</td>" in html
    assert "<td>Y</td><td>Z</td><td>1</td>" in html


def test_the_report_gives_the_same_bytes_with_manifests_too(
    inputs: dict[str, Path], make_manifest: Callable[..., Path]
) -> None:
    manifests = [make_manifest("data", "a/train", outputs=["a"]), make_manifest("collect", "tiny", inputs=["a"])]
    write_report(**inputs, manifests=manifests)
    first = inputs["output"].read_bytes()
    write_report(**inputs, manifests=manifests)
    assert inputs["output"].read_bytes() == first


def test_the_verdicts_on_the_claims_come_first_then_the_other_tables_then_the_figures(inputs: dict[str, Path]) -> None:
    scripts = inputs["scripts_dir"]
    for name in ("table_claims", "table_a"):
        (scripts / f"{name}.py").write_text(
            SCRIPT.format(name=name, function="layout", body="return points"), encoding="utf-8"
        )
        render(scripts / f"{name}.py", [inputs["results"]], inputs["tables_dir"])
    write_report(**inputs)
    sections = re.findall(r'<section id="(\w+)">', inputs["output"].read_text(encoding="utf-8"))
    assert sections == ["table_claims", "table_a", "table_b", "fig_a"]


def test_the_explorer_is_linked_to_relative_to_the_report(inputs: dict[str, Path]) -> None:
    write_report(**inputs, explorer=inputs["output"].parent / "explorer.html")
    assert 'href="explorer.html"' in inputs["output"].read_text(encoding="utf-8")


def test_a_manifest_that_is_none_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.json: not a manifest"):
        write_report(**inputs, manifests=[broken])
    assert not inputs["output"].exists()


@pytest.mark.parametrize("missing", ["fig/fig_a.png", "tab/table_b.csv"])
def test_a_missing_product_names_the_command(inputs: dict[str, Path], missing: str) -> None:
    path = inputs["results"].parent / missing
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: missing; run snakemake --cores 1 {path.stem}"):
        write_report(**inputs)
    assert not inputs["output"].exists()


@pytest.fixture
def released(tmp_path: Path) -> Layout:
    """A shipped release, which an earlier version of the code made."""
    source = REPOSITORY / "docs" / "results" / "cifar10_quarter"
    return Layout(Path(shutil.copytree(source, tmp_path / "released")))


def compared(layout: Layout) -> tuple[bool, list[str]]:
    return compare_report(Experiment.open(layout.root, REPOSITORY / "paper_figures"))


def test_a_report_of_earlier_code_shows_what_lies_beside_it(released: Layout) -> None:
    assert compared(released)[1] == []


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("<td>CIFAR-10</td>", "<td>ImageNet</td>", "table_"),
        ('<img src="data:image/png;base64,iVBOR', '<img src="data:image/png;base64,iVBOS', "fig_"),
        ("<h2", '<img src="data:image/png;base64,iVBOR"><h2', "an image or a program"),
        ("<h2", "<script></script><h2", "an image or a program"),
        ("<h2", '<section id="table_other"></section><h2', "table_other, which the experiment does not have,"),
        ('<section id="table_robustness">', '<section id="table_robustness"><table></table>', "table_robustness"),
        ("optimizer:", "optimiser:", "the configuration"),
        ("<tr><td>results.parquet</td><td><code>", "<tr><td>results.parquet</td><td><code>0", "the sha256 of results"),
    ],
)
def test_a_report_of_earlier_code_that_shows_something_else_is_found(
    released: Layout, old: str, new: str, part: str
) -> None:
    page = released.report.read_text(encoding="utf-8")
    assert old in page
    released.report.write_text(page.replace(old, new, 1), encoding="utf-8")
    same, wrong = compared(released)
    assert not same
    assert wrong
    assert wrong[0].startswith(part)
