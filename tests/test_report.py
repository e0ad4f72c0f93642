"""The HTML report, on two tiny scripts."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dhel_kcl.errors import InputError
from dhel_kcl.paper import RESULT_COLUMNS, render
from dhel_kcl.report import write_report

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
    (scripts / "fig_a.py").write_text(SCRIPT.format(name="fig_a", function="draw", body="return Figure()"))
    (scripts / "table_b.py").write_text(SCRIPT.format(name="table_b", function="layout", body="return points"))
    row = {**dict.fromkeys(RESULT_COLUMNS, ""), "run": "run<1>", "loss": "dhel", "metric": "linear_top1"}
    results = tmp_path / "results" / "results.parquet"
    results.parent.mkdir()
    pd.DataFrame([{**row, "value": 0.875}]).to_parquet(results)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
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


def test_the_report_holds_everything(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    html = inputs["output"].read_text()
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
    html = inputs["output"].read_text()
    assert "<script" not in html
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', html))
    assert not re.search(r"<link|@import|url\(", html)


def test_text_from_the_results_is_escaped(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    html = inputs["output"].read_text()
    assert "run&lt;1&gt;" in html
    assert "run<1>" not in html


def test_writing_twice_gives_the_same_bytes(inputs: dict[str, Path]) -> None:
    write_report(**inputs)
    first = inputs["output"].read_bytes()
    write_report(**inputs)
    assert inputs["output"].read_bytes() == first


def test_hardware_is_shown_when_a_manifest_is_given(inputs: dict[str, Path], tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"hardware": {"cpu": "Model X, 2 cores"}}))
    write_report(**inputs, manifest=manifest)
    assert "Model X, 2 cores" in inputs["output"].read_text()


@pytest.mark.parametrize("missing", ["fig/fig_a.png", "tab/table_b.csv"])
def test_a_missing_product_names_the_command(inputs: dict[str, Path], missing: str) -> None:
    path = inputs["results"].parent / missing
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: missing; run snakemake --cores 1 {path.stem}"):
        write_report(**inputs)
    assert not inputs["output"].exists()


def test_a_folder_without_scripts_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no figure or table scripts"):
        write_report(**{**inputs, "scripts_dir": tmp_path / "nowhere"})
