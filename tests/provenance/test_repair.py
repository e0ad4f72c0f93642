"""After a crash, what is not what its manifest says is moved aside; nothing else is touched."""

import errno
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import REPOSITORY, TINY, run, snakemake

from dhel_kcl import cli
from dhel_kcl.errors import InputError
from dhel_kcl.files import TEMPORARY, write_json
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest, record
from dhel_kcl.jobs.running import RunningMark, is_running, marks
from dhel_kcl.provenance.repair import check_is_experiment, outputs, repair, repair_after_crash


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An experiment of three jobs: `configure`, `evaluate` of one run, and `theory`."""
    layout = Layout(tmp_path / "results" / "small")
    cli.configure(str(TINY), layout.root)
    jobs = {
        layout.run_manifest("evaluate", "run"): layout.evaluation("run"),
        layout.manifest("theory"): layout.theory,
    }
    for manifest, output in jobs.items():
        with record(manifest, stage="", subject="", settings={}, source="", inputs={}, outputs={"output": output}):
            write_json(output, list(range(50)))
    write_json(layout.audit, {"points": 12345, "files": 67})
    return layout


def crashed(layout: Layout, host: str = platform.node()) -> Path:
    """The mark that a workflow has left."""
    layout.running.mkdir(exist_ok=True)
    mark = layout.running / f"{host}-1"
    mark.touch()
    return mark


def contents(layout: Layout) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in layout.root.rglob("*") if path.is_file()}


def truncate(path: Path) -> None:
    """As a disk does: the time of the last writing stays."""
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


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
    manifest = layout.run_manifest("evaluate", "run")
    del before[output], before[manifest]
    assert contents(layout) == before
    reason = f"not what {layout.run_manifest('evaluate', 'run')} records"
    assert f"{output}: damaged ({reason}); moved to evaluation.json.damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [zero, empty, lambda path: path.write_bytes(path.read_bytes()[:-2])])
@pytest.mark.parametrize("name", ["manifests/theory.json", "runs/run/evaluate.manifest.json", "audit.json"])
def test_so_is_a_damaged_manifest_or_audit(damage: Callable[[Path], None], name: str, layout: Layout) -> None:
    damage(layout.root / name)
    assert repair(layout) == [layout.root / name]
    assert not (layout.root / name).exists()


def test_a_dry_run_says_the_same_and_changes_nothing(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(layout.theory)
    (layout.root / f"{TEMPORARY}x.json").write_text("{", encoding="utf-8")
    before = contents(layout)
    assert repair(layout, dry_run=True) == [layout.theory]
    assert contents(layout) == before
    assert "would be moved to theory.parquet.damaged" in capsys.readouterr().err


def test_what_killed_jobs_were_writing_is_removed(layout: Layout) -> None:
    (layout.root / "runs" / "run" / f"{TEMPORARY}encoder-abc.safetensors").write_bytes(b"half")
    before = contents(layout)
    assert repair(layout) == []
    assert set(before) - set(contents(layout)) == {layout.run("run") / f"{TEMPORARY}encoder-abc.safetensors"}


def test_a_job_whose_output_is_gone_is_done_again_unless_the_workflow_discards_such_files(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.theory.unlink()
    assert repair(layout) == []
    assert f"{layout.theory}: missing" in capsys.readouterr().err
    assert not layout.manifest("theory").exists()
    features, manifest = layout.features("run"), layout.run_manifest("features", "run")
    with record(manifest, stage="", subject="", settings={}, source="", inputs={}, outputs={"features": features}):
        write_json(features, [])
    features.unlink()
    repair(layout)
    assert manifest.exists()


def test_a_mark_is_an_empty_file_of_the_folder_itself(layout: Layout, tmp_path: Path) -> None:
    layout.running.mkdir()
    for name in ("host-1", "host-2", "host-3"):
        (layout.running / name).touch()
    (layout.running / "photo-2024").write_text("mine", encoding="utf-8")
    os.mkfifo(layout.running / "pipe-4")
    (layout.running / "link-5").symlink_to(layout.running / "host-1")
    assert [path.name for path in marks(layout)] == ["host-1", "host-2", "host-3"]
    layout.running.rename(tmp_path / "elsewhere")
    layout.running.symlink_to(tmp_path / "elsewhere")
    assert marks(layout) == []
    repair(layout)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 6


def test_whether_a_pipe_is_locked_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "host-1")
    assert is_running(tmp_path / "host-1") is None


def test_a_mark_alone_does_not_make_a_folder_an_experiments(tmp_path: Path) -> None:
    foreign = Layout(tmp_path / "foreign")
    (foreign.root / "manifests").mkdir(parents=True)
    for name in ("theory.csv", "results.parquet", f"{TEMPORARY}x", "manifests/theory.json", "config.yaml"):
        (foreign.root / name).write_text("mine", encoding="utf-8")
    crashed(foreign)
    before = contents(foreign)
    with pytest.raises(InputError, match="no job has left a sound manifest in it"):
        check_is_experiment(foreign)
    repair_after_crash(foreign)
    assert contents(foreign) == before


@pytest.mark.parametrize("beside", [None, "config.yaml", "theory.parquet"])
def test_copies_of_manifests_are_not_removed_where_their_files_are_not(
    beside: str | None, layout: Layout, tmp_path: Path
) -> None:
    copied = Layout(tmp_path / "copied")
    shutil.copytree(layout.root / "manifests", copied.root / "manifests")
    for stage in ("explorer", "report"):
        shutil.copy(layout.manifest("theory"), copied.manifest(stage))
    if beside:
        shutil.copy(layout.root / beside, copied.root) if beside != "config.yaml" else (
            copied.config.write_text("mine", encoding="utf-8")
        )
    before = set(contents(copied).values())
    if beside:
        check_is_experiment(copied)
        repair(copied)
    else:
        with pytest.raises(InputError, match="no job has left a sound manifest in it"):
            check_is_experiment(copied)
    after = set(contents(copied).values())
    assert before - after <= {layout.manifest("configure").read_bytes()}, "whose config.yaml is another"


def test_names_in_messages_are_harmless_and_commands_can_be_copied(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Layout(layout.root.rename(layout.root.with_name("a \x1b[31m; b")))
    crashed(odd, "elsewhere")
    repair_after_crash(odd)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert f"dhel-kcl repair '{odd.root}'".replace("\x1b", "\\x1b") in said


def test_without_a_mark_nothing_is_hashed_and_with_one_everything_is_once(layout: Layout) -> None:
    truncate(layout.theory)
    repair_after_crash(layout)
    assert layout.theory.exists()
    mark = crashed(layout)
    repair_after_crash(layout, dry_run=True)
    assert layout.theory.exists()
    repair_after_crash(layout)
    assert not layout.theory.exists()
    assert not mark.exists()


def test_after_a_crash_nothing_is_touched_that_a_job_of_a_cluster_may_be_writing(layout: Layout) -> None:
    crashed(layout)
    unfinished = layout.run("run") / f"{TEMPORARY}encoder-abc.safetensors"
    unfinished.write_bytes(b"half")
    layout.theory.write_text("of a job that has not written its manifest yet", encoding="utf-8")
    later = layout.manifest("theory").stat().st_mtime_ns + 10**9
    os.utime(layout.theory, ns=(later, later))
    repair_after_crash(layout)
    assert layout.theory.exists()
    assert unfinished.exists()
    assert repair(layout) == [layout.theory], "by hand, nothing is spared"
    assert not unfinished.exists()


def edit_manifest(manifest: Path, listed: str) -> None:
    manifest.write_text(
        re.sub(r'"path": ".*?"', f'"path": "{listed}"', manifest.read_text(encoding="utf-8")), encoding="utf-8"
    )


@pytest.mark.parametrize("listed", ["{outside}", "../{up}", "../../notes.txt", "../runs/run/notes.txt", "/dev/zero"])
def test_what_a_manifest_lists_and_no_job_of_the_experiment_writes_is_named_and_left_alone(
    listed: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious.txt"
    for file in (precious, *(folder / "notes.txt" for folder in (layout.root, layout.root.parent, layout.run("run")))):
        file.write_text("mine", encoding="utf-8")
    manifest = layout.manifest("theory")
    edit_manifest(manifest, listed.format(outside=precious, up="../../precious.txt"))
    before = contents(layout)
    assert repair(layout) == []
    assert contents(layout) == before
    assert precious.read_text(encoding="utf-8") == "mine"
    said = capsys.readouterr().err
    assert f"listed by {manifest}, but no job of {layout.root} writes it; left alone" in said


def lying_elsewhere(layout: Layout, folder: str, tmp_path: Path) -> Path:
    """Replace a folder of the experiment by a link to where it lies now, and add a beton."""
    elsewhere = tmp_path / "a" / "large" / "disk"
    elsewhere.parent.mkdir(parents=True)
    (layout.root / "data").mkdir()
    (layout.root / folder).rename(elsewhere)
    (layout.root / folder).symlink_to(elsewhere)
    jobs = {
        layout.manifest("theory"): layout.theory,  # again: a manifest that was moved tells of another place
        layout.manifest("data", "digits-train"): layout.beton("digits", "train"),
    }
    for manifest, output in jobs.items():
        with record(manifest, stage="", subject="", settings={}, source="", inputs={}, outputs={"output": output}):
            write_json(output, list(range(50)))
    return elsewhere


def below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("folder", "behind"), [("runs", "evaluation"), ("runs/run", "evaluation"), ("data", "beton"), ("manifests", None)]
)
def test_what_is_damaged_behind_a_link_is_named_and_left_while_all_else_is_repaired(
    folder: str, behind: str | None, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere, mark = lying_elsewhere(layout, folder, tmp_path), crashed(layout)
    (elsewhere / f"{TEMPORARY}x").write_text("half", encoding="utf-8")
    files = {"theory": layout.theory, "evaluation": layout.evaluation("run"), "beton": layout.beton("digits", "train")}
    for file in files.values():
        truncate(file)
    left = below(elsewhere)
    for call in (repair_after_crash, repair):
        with pytest.raises(InputError, match=rf"behind links were left, .* call: dhel-kcl repair {layout.root}$"):
            call(layout)
        assert below(elsewhere) == left
        said = " ".join(capsys.readouterr().err.split())
        named = files[behind] if behind else layout.manifest("theory")
        assert f"{named}: " in said
        assert f"behind the link {layout.root / folder}; left alone" in said.replace("\n", " ")
        assert mark.exists(), "the next workflow looks again"
    assert {name for name, file in files.items() if file.exists()} == ({behind} if behind else set())


def test_what_was_damaged_behind_a_link_is_made_again_once_it_was_removed(layout: Layout, tmp_path: Path) -> None:
    lying_elsewhere(layout, "data", tmp_path)
    beton, manifest = layout.beton("digits", "train"), layout.manifest("data", "digits-train")
    truncate(beton)
    for _ in range(2):
        with pytest.raises(InputError, match="1 files behind links"):
            repair(layout)
        assert manifest.exists(), "or the damage would be forgotten"
    beton.unlink()
    assert repair(layout) == []
    assert not manifest.exists()


def test_links_that_lead_in_circles_are_not_followed(layout: Layout) -> None:
    for folder in (layout.root, layout.run("run"), layout.root / "runs", layout.source):
        folder.mkdir(exist_ok=True)
        for number in range(3):
            (folder / f"circle{number}").symlink_to(layout.root)
        (folder / "self").symlink_to(folder / "self")
    truncate(layout.theory)
    assert repair(layout) == [layout.theory]


WRITE = """
import sys, time
from pathlib import Path
from dhel_kcl.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half", encoding="utf-8")  # by its name, as libraries do
    print(temporary, flush=True)
    sys.stdin.readline()
    temporary.write_text("whole", encoding="utf-8")
"""


def test_what_a_job_is_writing_stays_though_no_workflow_runs_and_goes_when_it_was_killed(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", WRITE, str(layout.encoder("run"))]
    for killed in (True, False):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None
            unfinished = Path(job.stdout.readline().rstrip("\n"))
            repair(layout)
            assert unfinished.read_text(encoding="utf-8") == "half"
            said = " ".join(capsys.readouterr().err.split())
            assert "a process may be writing it; left alone" in said
            if killed:
                job.kill()
            else:
                job.communicate("go on\n")
        repair(layout)
        assert not unfinished.exists()
    assert layout.encoder("run").read_text(encoding="utf-8") == "whole"


def test_files_that_only_look_unfinished_or_lie_where_no_job_writes_stay(layout: Layout, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine", encoding="utf-8")
    nested = layout.root / "earlier" / "runs" / "run" / f"{TEMPORARY}x"
    nested.parent.mkdir(parents=True)
    nested.write_text("of another experiment", encoding="utf-8")
    link = layout.run("run") / f"{TEMPORARY}link"
    link.symlink_to(precious)
    folder = layout.run("run") / f"{TEMPORARY}folder"
    folder.mkdir()
    pipe = layout.run("run") / f"{TEMPORARY}pipe"
    os.mkfifo(pipe)
    repair(layout)
    assert nested.read_text(encoding="utf-8") == "of another experiment"
    assert precious.read_text(encoding="utf-8") == "mine"
    assert link.is_symlink()
    assert folder.is_dir()
    assert pipe.is_fifo()


def test_an_earlier_damaged_file_and_a_users_json_keep_their_names(layout: Layout) -> None:
    notes = layout.root / "manifests" / "notes.json"
    notes.write_text("mine, not a manifest", encoding="utf-8")
    for number in ("", ".2", ".3"):
        write_json(layout.audit, [])
        layout.audit.write_text(f"damaged {number}", encoding="utf-8")
        assert repair(layout) == [layout.audit]
        aside = layout.root / f"audit.json{number}.damaged"
        assert aside.read_text(encoding="utf-8") == f"damaged {number}"
    assert (layout.root / "audit.json.damaged").read_text(encoding="utf-8") == "damaged "
    assert notes.read_text(encoding="utf-8") == "mine, not a manifest"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("results", "results: no job has left a sound manifest in it; give one experiment's folder"),
        (".", ".: no job has left a sound manifest in it; give one experiment's folder"),
        ("results/smal", "results/smal: no such folder; give an experiment's, such as results/quickstart"),
        ("results/small/theory.parquet", "theory.parquet: no such folder"),
        ("release", "release: a release, which stays as it was published"),
        ("foreign", "foreign: no job has left a sound manifest in it; give one experiment's folder"),
    ],
)
def test_repair_by_hand_works_on_one_experiment_and_changes_nothing_elsewhere(
    folder: str, said: str, layout: Layout, tmp_path: Path
) -> None:
    shutil.copytree(REPOSITORY / "docs" / "results" / "theory", tmp_path / "release")
    (tmp_path / "release" / "theory.parquet").write_bytes(b"damaged")
    (tmp_path / "foreign" / "manifests").mkdir(parents=True)
    for name in ("config.yaml", "manifests/configure.json", "manifests/theory.json"):
        (tmp_path / "foreign" / name).write_text("name: foreign\n", encoding="utf-8")
    for parent in ("", "results", "results/small", "release", "foreign"):
        (tmp_path / parent / f"{TEMPORARY}x").write_text("half", encoding="utf-8")
    before = below(tmp_path)
    outcome = run("dhel-kcl", "repair", folder, cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    assert said in outcome.stderr
    assert below(tmp_path) == before


@pytest.mark.parametrize("sound", ["a manifest", "the configuration", "the mark"])
def test_after_a_crash_any_one_sound_file_shows_that_the_folder_is_an_experiments(sound: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "results" / "tiny")
    assert run("dhel-kcl", "configure", str(TINY), cwd=tmp_path).returncode == 0
    if sound == "the mark":
        crashed(layout)
    damaged = {
        "a manifest": [layout.config],
        "the configuration": [layout.manifest("configure")],
        "the mark": [layout.config, layout.manifest("configure")],
    }[sound]
    for file in damaged:
        zero(file)
    outcome = run("dhel-kcl", "repair", "results/tiny", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert not layout.manifest("configure").exists()
    assert layout.config.exists() == (sound == "the configuration")
    again = run("dhel-kcl", "configure", str(TINY), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert layout.manifest("configure").exists()


@pytest.mark.parametrize("left", ["nothing", "half", "zeros", "a configuration with fewer keys"])
def test_the_workflow_goes_on_where_a_crash_left_neither_its_configuration_nor_the_record_of_it(
    left: str, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "results" / "tiny")
    assert run("dhel-kcl", "configure", str(TINY), cwd=tmp_path).returncode == 0
    whole = layout.config.read_text(encoding="utf-8")
    crashed(layout)
    (log := layout.log("theory")).parent.mkdir(exist_ok=True)
    log.write_text("of a job that the crash ended", encoding="utf-8")
    zero(layout.manifest("configure"))
    remains = {
        "nothing": "",
        "half": whole[: len(whole) // 2],
        "zeros": "\0" * len(whole),
        "a configuration with fewer keys": TINY.read_text(encoding="utf-8"),
    }[left]
    layout.config.write_text(remains, encoding="utf-8")
    repair_after_crash(layout)
    again = run("dhel-kcl", "configure", str(TINY), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert layout.config.read_text(encoding="utf-8") == whole
    assert layout.config.with_name("config.yaml.damaged").read_text(encoding="utf-8") == remains


def test_every_output_of_published_experiments_is_one_that_a_job_writes(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    published = (REPOSITORY / "docs" / "results").glob("*/")
    listed = {
        os.path.relpath(path.parent / output.path, root)
        for root in published
        for path in [*root.glob("manifests/*.json"), *root.glob("runs/*/*.manifest.json")]
        for output in load_manifest(path).outputs.values()
    }
    assert len(listed) > 100
    assert [name for name in listed if not any(Path(name).match(pattern) for pattern in outputs(layout))] == []


@pytest.mark.parametrize("name", ["theory.parquet", "manifests/theory.json", "audit.json"])
def test_a_file_that_cannot_be_read_is_named(name: str, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layout.root / name
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: cannot be checked \\(Is a directory\\)"):
        repair(layout)
    path.rmdir()

    def broken_disk(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("dhel_kcl.jobs.history.sha256_file", broken_disk)
    with pytest.raises(InputError, match=r"(yaml|parquet|json): cannot be checked \(Input/output"):
        repair(layout)


@pytest.mark.parametrize("why", ["another machine", "no locks", "not readable"])
def test_where_it_cannot_be_told_whether_a_workflow_runs_only_repair_by_hand_acts(
    why: str, layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> int:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    truncate(layout.theory)
    mark = crashed(layout, "elsewhere" if why == "another machine" else platform.node())
    if why == "no locks":
        monkeypatch.setattr(fcntl, "flock", refused)
    if why == "not readable":  # also by root, whom permissions do not stop
        monkeypatch.setattr(os, "open", refused)
    assert is_running(mark) is None
    for dry_run in (True, False):
        repair_after_crash(layout, dry_run=dry_run)
        said = "".join(capsys.readouterr().err.splitlines())
        assert mark.name in said
        assert f"dhel-kcl repair {layout.root}".replace(" ", "") in said.replace(" ", "")
    monkeypatch.undo()
    assert layout.theory.exists()
    by_hand = run("dhel-kcl", "repair", str(layout.root), cwd=layout.root)
    assert by_hand.returncode == 0, by_hand.stderr
    assert not layout.theory.exists()
    assert not mark.exists()


def test_a_workflow_runs_and_ends_on_a_file_system_without_locks(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    mark = RunningMark(layout.running)
    mark.set()
    assert is_running(mark.path) is None
    mark.clear()
    assert not mark.path.exists()


RUN_WORKFLOW = """
import sys, time
from pathlib import Path
from dhel_kcl.jobs.running import RunningMark
RunningMark(Path(sys.argv[1])).set()
print("set", flush=True)
time.sleep(600)
"""


def test_a_workflow_that_runs_is_told_from_one_that_was_killed(layout: Layout) -> None:
    truncate(layout.theory)
    own = RunningMark(layout.running)
    command = [sys.executable, "-c", RUN_WORKFLOW, str(layout.running)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "set\n"
        mark = layout.running / f"{platform.node()}-{other.pid}"
        assert is_running(mark)
        repair_after_crash(layout)
        assert layout.theory.exists(), "its jobs may be writing"
        by_hand = run("dhel-kcl", "repair", str(layout.root), cwd=layout.root)
        assert by_hand.returncode == 1
        assert "a workflow is running on this experiment; wait until it ends" in by_hand.stderr
        own.set()
        own.clear()
        assert not own.path.exists()
        assert is_running(mark), "the end of one of two workflows is not that of both"
        other.kill()
    assert is_running(mark) is False
    repair_after_crash(layout)
    assert not layout.theory.exists()
    assert not mark.exists()


def test_the_workflow_after_a_crash_says_in_a_dry_run_and_makes_again_in_a_run_what_was_damaged(
    workspace: Path,
) -> None:
    layout = Layout(Path("results/tiny"))
    assert snakemake("table_theory", cwd=workspace).returncode == 0
    table = workspace / layout.tables / "table_theory.md"
    original = table.read_bytes()
    truncate(table)
    left = table.read_bytes()
    assert not any((workspace / layout.running).iterdir())
    mark = crashed(Layout(workspace / layout.root))
    outcome = snakemake("table_theory", "--dry-run", cwd=workspace)
    assert "table_theory.md: damaged" in outcome.stderr
    assert table.read_bytes() == left
    assert mark.exists()
    (workspace / ".snakemake" / "locks").mkdir(exist_ok=True)
    lock = workspace / ".snakemake" / "locks" / "0.output.lock"
    lock.write_text(f"{layout.tables / 'table_theory.md'}\n", encoding="utf-8")
    assert snakemake("--unlock", cwd=workspace).returncode == 0
    assert not lock.exists()
    assert not table.exists()
    outcome = snakemake("table_theory", cwd=workspace)
    assert outcome.returncode == 0, outcome.stderr
    assert table.read_bytes() == original
    assert table.with_name("table_theory.md.damaged").read_bytes() == left
    assert not any((workspace / layout.running).iterdir())
