"""After a crash, what is not what its manifest says is moved aside; nothing else is touched."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import run, snakemake

from dhel_kcl.artifacts import TEMPORARY, write_json
from dhel_kcl.layout import Layout
from dhel_kcl.provenance import record
from dhel_kcl.repair import RunningMark, repair, repair_after_crash


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An experiment of two jobs: `evaluate` of one run, and `theory`."""
    layout = Layout(tmp_path / "results" / "small")
    jobs = {
        layout.run_manifest("evaluate", "run"): layout.evaluation("run"),
        layout.manifest("theory"): layout.theory,
    }
    for manifest, output in jobs.items():
        with record(manifest, stage="", subject="", settings={}, source="", inputs={}, outputs={"output": output}):
            write_json(output, list(range(50)))
    write_json(layout.audit, {"points": 12345, "files": 67})
    return layout


def contents(layout: Layout) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in layout.root.rglob("*") if path.is_file()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zero(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(len(content) - 20))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = pytest.mark.parametrize("damage", [truncate, zero, empty, flip_a_bit])


@DAMAGES
def test_a_damaged_output_is_named_and_moved_aside(
    damage: Callable[[Path], None], layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    before, output = contents(layout), layout.evaluation("run")
    damage(output)
    left = output.read_bytes()
    assert repair(layout) == [output]
    before[output.with_name("evaluation.json.damaged")] = left
    del before[output]
    assert contents(layout) == before
    reason = f"not what {layout.run_manifest('evaluate', 'run')} records"
    assert f"{output}: damaged ({reason}); moved to evaluation.json.damaged" in capsys.readouterr().err


def test_a_damaged_copy_in_source_makes_its_job_run_again(layout: Layout) -> None:
    copy, manifest = layout.source / "Snakefile", layout.manifest("crate")
    with record(manifest, stage="", subject="", settings={}, source="", inputs={}, outputs={"copy": copy}):
        copy.parent.mkdir()
        copy.write_text("rule all:")
    empty(copy)
    assert repair(layout) == [copy, manifest]
    assert not manifest.exists()


@pytest.mark.parametrize("damage", [zero, empty, lambda path: path.write_bytes(path.read_bytes()[:-2])])
@pytest.mark.parametrize("name", ["manifests/theory.json", "runs/run/evaluate.manifest.json", "audit.json"])
def test_so_is_a_damaged_manifest_or_audit(damage: Callable[[Path], None], name: str, layout: Layout) -> None:
    damage(layout.root / name)
    assert repair(layout) == [layout.root / name]
    assert not (layout.root / name).exists()


def test_a_dry_run_says_the_same_and_changes_nothing(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(layout.theory)
    (layout.root / f"{TEMPORARY}x.json").write_text("{")
    before = contents(layout)
    assert repair(layout, dry_run=True) == [layout.theory]
    assert contents(layout) == before
    assert "would be moved to theory.parquet.damaged" in capsys.readouterr().err


def test_what_killed_jobs_were_writing_is_removed(layout: Layout) -> None:
    (layout.root / "runs" / "run" / f"{TEMPORARY}encoder-abc.safetensors").write_bytes(b"half")
    before = contents(layout)
    assert repair(layout) == []
    assert set(before) - set(contents(layout)) == {layout.run("run") / f"{TEMPORARY}encoder-abc.safetensors"}


def test_a_job_whose_output_is_gone_is_left_to_snakemake(layout: Layout) -> None:
    layout.theory.unlink()
    assert repair(layout) == []


def test_without_a_mark_nothing_is_hashed_and_with_one_everything_is_once(layout: Layout) -> None:
    truncate(layout.theory)
    repair_after_crash(layout)
    assert layout.theory.exists()
    layout.running.touch()
    repair_after_crash(layout, dry_run=True)
    assert layout.theory.exists()
    repair_after_crash(layout)
    assert not layout.theory.exists()
    assert not layout.running.exists()


RUN_WORKFLOW = """
import sys, time
from pathlib import Path
from dhel_kcl.repair import RunningMark
RunningMark(Path(sys.argv[1])).set()
print("set", flush=True)
time.sleep(600)
"""


def test_a_workflow_that_runs_is_told_from_one_that_was_killed(layout: Layout) -> None:
    truncate(layout.theory)
    mark = RunningMark(layout.running)
    command = [sys.executable, "-c", RUN_WORKFLOW, str(layout.running)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "set\n"
        assert mark.is_held()
        repair_after_crash(layout)
        assert layout.theory.exists(), "its jobs may be writing"
        by_hand = run("dhel-kcl", "repair", str(layout.root), cwd=layout.root)
        assert by_hand.returncode == 1
        assert "a workflow runs on this experiment; wait for its end" in by_hand.stderr
        mark.set()
        mark.clear()
        assert mark.is_held(), "the end of one of two workflows is not that of both"
        other.kill()
    assert mark.is_left_behind()
    mark.set()
    mark.clear()
    assert not layout.running.exists()


def test_the_workflow_after_a_crash_says_in_a_dry_run_and_makes_again_in_a_run_what_was_damaged(
    workspace: Path,
) -> None:
    layout = Layout(Path("results/tiny"))
    assert snakemake("table_theory", cwd=workspace).returncode == 0
    table = workspace / layout.tables / "table_theory.md"
    original = table.read_bytes()
    truncate(table)
    left = table.read_bytes()
    assert not (workspace / layout.running).exists()
    (workspace / layout.running).touch()
    outcome = snakemake("table_theory", "--dry-run", cwd=workspace)
    assert "table_theory.md: damaged" in outcome.stderr
    assert table.read_bytes() == left
    outcome = snakemake("table_theory", cwd=workspace)
    assert outcome.returncode == 0, outcome.stderr
    assert table.read_bytes() == original
    assert table.with_name("table_theory.md.damaged").read_bytes() == left
    assert not (workspace / layout.running).exists()
