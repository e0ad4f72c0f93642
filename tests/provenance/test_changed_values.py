"""Whatever the code is now, a value that was changed is an error; other looks are warnings that stay visible."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_up import sign_again
from workspace import TINY

from dhel_kcl import cli
from dhel_kcl.errors import InputError
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.ownership import SUMS
from dhel_kcl.provenance.audit import audit, conclude
from dhel_kcl.provenance.release import redraw
from dhel_kcl.provenance.release import release as publish
from dhel_kcl.provenance.seal import Seal, begin, read_seal

pytestmark = pytest.mark.usefixtures("drawn_once")

LAYOUT = Layout(Path("results/tiny"))


@pytest.fixture
def experiment(copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(copy_of_finished)
    return Experiment.open(LAYOUT.root)


def replace(path: Path, pattern: str, by: str) -> None:
    text = path.read_text(encoding="utf-8")
    changed = re.sub(pattern, by, text, count=1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def widen(path: Path) -> None:
    """Fill up a column of a table by more blanks and dashes."""
    replace(path, r"\|:-", "|:---")
    replace(path, r"\| Digits", "| Digits  ")


def append_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def test_values_are_compared_whatever_the_code_is(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    table, other = LAYOUT.tables / "table_linear_accuracy.md", LAYOUT.tables / "table_robustness.md"
    picture = LAYOUT.figures / "fig_spectrum.pdf"
    sound = table.read_bytes()
    replace(table, r"0\.\d+ test", "0.999 test")
    replace(LAYOUT.results.with_suffix(".csv"), r",linear_top1,h,,,[\d.]+", ",linear_top1,h,,,0.999")
    replace(LAYOUT.theory.with_suffix(".csv"), r",minimum,,[-\d.]+", ",minimum,,-9.5")
    widen(other)
    append_byte(picture)
    sign_again(experiment, code="0" * 16)
    outcome = audit(experiment)
    assert {problem.partition(": ")[0] for problem in outcome.problems} == {
        str(path) for path in (table, LAYOUT.results.with_suffix(".csv"), LAYOUT.theory.with_suffix(".csv"))
    }
    assert not outcome.unlike or all(str(table) not in line for line in outcome.unlike)

    table.write_bytes(sound)
    for name in ("results", "theory"):
        read = pd.read_parquet(LAYOUT.table(name))
        read.to_csv(LAYOUT.table(name).with_suffix(".csv"), index=False)
    sign_again(experiment)
    outcome = audit(experiment)
    assert outcome.problems == []
    assert all(str(path) in " ".join(outcome.unlike) for path in (picture, other))
    conclude(outcome, LAYOUT)
    assert read_seal(LAYOUT.audit).unlike == outcome.unlike
    assert not audit(experiment).problems, "what looks other is no other count"
    cli.show(LAYOUT.root)
    assert "warning: not byte for byte what would be made now" in capsys.readouterr().out


def test_other_bytes_of_the_same_code_are_an_error(experiment: Experiment) -> None:
    widen(LAYOUT.tables / "table_robustness.md")
    sign_again(experiment)
    (problem,) = audit(experiment).problems
    assert problem.startswith(f"{LAYOUT.tables / 'table_robustness.md'}: does not show the values")


def test_a_column_too_many_is_found(experiment: Experiment) -> None:
    for path in (LAYOUT.results, LAYOUT.theory):
        pd.read_parquet(path).assign(better=1.0).to_parquet(path, index=False)
    sign_again(experiment)
    problems = audit(experiment).problems
    for path in (LAYOUT.results, LAYOUT.theory):
        assert any(line.startswith(f"{path}: ") and "column better is not one" in line for line in problems)


def test_a_seal_without_such_warnings_is_what_it_was_before_there_were_any() -> None:
    seal = Seal(points=1, measurements=1, manifests=1, files=1, uncommitted=[], sha256={})
    assert list(json.loads(seal.text())) == [
        "points",
        "measurements",
        "manifests",
        "files",
        "uncommitted",
        "sha256",
        "seal",
    ]


@pytest.mark.parametrize("content", ["[5]", "5", "null", "[[1, 2]]", '"x"', "{}"])
def test_what_is_no_seal_is_said_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "audit.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"audit\.json: not what an audit wrote"):
        read_seal(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"audit\.json: cannot be read"):
        read_seal(path)


def an_experiment(folder: Path) -> Layout:
    """The least that `show` looks at: a configuration, a headline and a seal."""
    layout = Layout(folder)
    layout.tables.mkdir(parents=True)
    shutil.copy(TINY, layout.config)
    layout.manifest("configure").parent.mkdir()
    layout.manifest("configure").touch()
    (layout.tables / "table_linear_accuracy.md").write_bytes(b"# Accuracy\n\n\xff\xfe\n")
    seal = Seal(points=7, measurements=1, manifests=1, files=1, uncommitted=[], sha256={})
    layout.audit.write_text(seal.text(), encoding="utf-8")
    return layout


def test_a_list_of_sums_does_not_keep_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = an_experiment(tmp_path / "tiny")
    (layout.root / SUMS).touch()
    cli.show(layout.root)
    said = capsys.readouterr().out
    assert "passed: 7" not in said
    assert "not passed; a release; verify it with" in said
    with pytest.raises(InputError, match="a release; verify it"):
        cli.audit(layout.root)
    assert not layout.audit_problems.exists(), "nothing is written into what may be a release"


def test_a_headline_that_is_not_text_is_shown_as_far_as_it_is_and_as_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = an_experiment(tmp_path / "tiny")
    with pytest.raises(InputError, match=r"table_linear_accuracy\.md: not the file that passed the audit"):
        cli.show(layout.root)
    assert "Accuracy" in capsys.readouterr().out


def test_an_audit_begins_before_its_slow_imports(tmp_path: Path) -> None:
    layout = an_experiment(tmp_path / "tiny")
    program = (
        "import sys\nfrom pathlib import Path\nfrom dhel_kcl import cli\n"
        "sys.modules['dhel_kcl.provenance.audit'] = None\n"
        "try:\n    cli.audit(Path(sys.argv[1]))\nexcept ModuleNotFoundError:\n    pass\n"
        "print(sorted({'networkx', 'pandas', 'torch', 'matplotlib'} & sys.modules.keys()))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(layout.root)], capture_output=True, text=True, check=True, timeout=100
    )
    assert ended.stdout == "[]\n"
    assert "an audit started and did not finish" in layout.audit_problems.read_text(encoding="utf-8")


def test_nothing_begins_in_a_release(tmp_path: Path) -> None:
    layout = an_experiment(tmp_path / "tiny")
    (layout.root / SUMS).touch()
    begin(layout)
    assert not layout.audit_problems.exists()


@pytest.mark.parametrize("same_code", [True, False])
def test_what_was_changed_in_a_release_does_not_pass(experiment: Experiment, tmp_path: Path, same_code: bool) -> None:
    append_byte(LAYOUT.figures / "fig_minimisers.pdf")
    replace(LAYOUT.explorer, "</title>", " changed</title>")
    if not same_code:
        replace(LAYOUT.tables / "table_theory.md", r"(\d)\.(\d)", r"\g<1>9.\2")
    sign_again(experiment, code=None if same_code else "0" * 16)
    publish(experiment, tmp_path / "released")
    made = {each.name: each for each in redraw([tmp_path / "released"], tmp_path / "redrawn")}
    assert made["fig_minimisers"].other_bytes == (".pdf",)
    wrong = {name for name, each in made.items() if each.numbers is False}
    assert wrong == ({"fig_minimisers", "explorer"} if same_code else {"table_theory"})
