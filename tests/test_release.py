"""Releases: complete, whole, verified before use, and enough to make every figure and table again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from workspace import REPOSITORY, make_workspace, run

from dhel_kcl import declarations
from dhel_kcl.artifacts import sha256_file, write_json
from dhel_kcl.config import load_config
from dhel_kcl.errors import InputError
from dhel_kcl.layout import Layout
from dhel_kcl.paper import points_equal, read_points
from dhel_kcl.provenance import load_manifest, locate
from dhel_kcl.release import redraw, verify
from dhel_kcl.release import release as publish

SHIPPED = sorted(path.parent for path in (REPOSITORY / "docs" / "results").glob("*/SHA256SUMS"))
SCRIPTS = REPOSITORY / "paper_figures"
TARGETS = declarations.scripts(SCRIPTS)
OF_THEORY = [name for name, script in TARGETS.items() if script.tables == ("theory",)]


def coreutils(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def list_again(folder: Path) -> None:
    """Write SHA256SUMS as anybody can without this package."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in ("SHA256SUMS", "README.md")
    )
    (folder / "SHA256SUMS").write_text(coreutils("sha256sum", *names, folder=folder).stdout, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def theory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "docs" / "results" / "theory", tmp_path / "theory"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "docs" / "results" / "cifar10_quarter", tmp_path / "runs"))


@pytest.fixture
def released(finished: Path, tmp_path: Path) -> Path:
    """The release of the tiny experiment, away from the experiment."""
    outcome = run("dhel-kcl", "release", "results/tiny", "--output", str(tmp_path / "released"), cwd=finished)
    assert outcome.returncode == 0, outcome.stderr
    return tmp_path / "released"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make to read the Makefile")
def test_make_figures_in_a_clone_makes_every_shipped_product_again_without_torch_and_ffcv(tmp_path: Path) -> None:
    top = coreutils("git", "rev-parse", "--show-toplevel", folder=REPOSITORY)
    if top.returncode or not REPOSITORY.samefile(top.stdout.strip()):
        pytest.skip("the tests do not lie in a git clone, so there is no commit to clone")
    clone, absent = tmp_path / "clone", tmp_path / "absent"
    cloned = coreutils("git", "clone", "--quiet", "--no-hardlinks", f"file://{REPOSITORY}", str(clone), folder=tmp_path)
    assert cloned.returncode == 0, cloned.stderr
    absent.mkdir()
    for module in ("torch", "ffcv"):
        (absent / f"{module}.py").write_text("raise ImportError('hidden by a test')", encoding="utf-8")
    setup, command = coreutils("make", "--no-print-directory", "--dry-run", "figures", folder=clone).stdout.splitlines()
    assert setup == "envs/setup.sh"
    programs = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{absent}{os.pathsep}{clone / 'src'}",
    }
    made = subprocess.run(
        command, shell=True, cwd=clone, env=os.environ | programs, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    releases = sorted((clone / "docs" / "results").iterdir())
    assert len(releases) >= 3
    for release in releases:
        redrawn = clone / "results" / "redrawn" / release.name
        tables = {f"{table}.parquet" for table in declarations.TABLES} & {path.name for path in release.iterdir()}
        scripts = declarations.scripts(clone / "paper_figures").values()
        names = [script.name for script in scripts if {f"{table}.parquet" for table in script.tables} <= tables]
        assert len(names) >= 3
        for name in names:
            for new, old in zip(Layout(redrawn).products(name), Layout(release).products(name), strict=True):
                assert new.stat().st_size > 50
                if new.suffix == ".csv":
                    assert points_equal(read_points(new), read_points(old))
        assert (redrawn / "report.html").exists() == (redrawn / "explorer.html").exists()
        assert (redrawn / "report.html").exists() == ("results.parquet" in tables)
    assert coreutils("git", "status", "--porcelain", folder=clone).stdout == ""


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_release_is_whole_as_anybody_can_check(folder: Path) -> None:
    verify(folder)
    checked = coreutils("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", folder=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("results.parquet", _truncate, "runs/results.parquet: not the file that SHA256SUMS lists"),
        ("results.parquet", _append_byte, "runs/results.parquet: not the file that SHA256SUMS lists"),
        ("theory.parquet", Path.unlink, "runs/theory.parquet: missing, but listed in SHA256SUMS"),
        ("other.parquet", Path.touch, "runs/other.parquet: not listed in SHA256SUMS"),
        ("figures/fig_training.png", _append_byte, "fig_training.png: not the file that SHA256SUMS lists"),
        ("manifests/collect.json", Path.unlink, "collect.json: missing, but listed in SHA256SUMS"),
        ("SHA256SUMS", Path.unlink, "runs/SHA256SUMS: missing; give the folder of a release"),
        ("SHA256SUMS", lambda path: path.write_text("", encoding="utf-8"), "runs/SHA256SUMS: lists no file"),
        ("SHA256SUMS", _truncate, "not listed in SHA256SUMS"),
        (
            "SHA256SUMS",
            lambda path: path.write_text(path.read_text(encoding="utf-8").replace("  ", " "), encoding="utf-8"),
            "runs/SHA256SUMS: line 1 is not a sha256, two spaces and a file",
        ),
        (
            "SHA256SUMS",
            lambda path: path.write_text(2 * path.read_text(encoding="utf-8"), encoding="utf-8"),
            "is not a sha256, two spaces and a file not listed before",
        ),
    ],
)
def test_a_damaged_release_is_refused_before_anything_is_drawn(
    runs: Path, theory: Path, tmp_path: Path, file: str, damage: Callable[[Path], object], said: str
) -> None:
    damage(runs / file)
    with pytest.raises(InputError, match=said):
        list(redraw([theory, runs], SCRIPTS, tmp_path / "redrawn"))
    assert not (tmp_path / "redrawn").exists()


def test_every_damaged_file_is_named(runs: Path) -> None:
    _truncate(runs / "results.parquet")
    (runs / "figures" / "fig_training.csv").unlink()
    with pytest.raises(InputError) as caught:
        verify(runs)
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        str(runs / "figures" / "fig_training.csv"),
        str(runs / "results.parquet"),
    ]


def _change_a_number(parquet: Path) -> None:
    table = pd.read_parquet(parquet)
    table.loc[table["metric"].isin(["linear_top1", "minimum"]), "value"] += 0.01
    table.to_parquet(parquet, index=False)


@pytest.mark.parametrize(("table", "stage"), [("results", "collect"), ("theory", "theory")])
def test_a_changed_number_is_found_by_the_manifest_when_the_sums_were_written_again(
    runs: Path, table: str, stage: str
) -> None:
    _change_a_number(runs / f"{table}.parquet")
    list_again(runs)
    with pytest.raises(InputError, match=f"{table}.parquet: not the file that manifests/{stage}.json records"):
        verify(runs)


def test_a_table_that_no_manifest_records_is_refused(theory: Path) -> None:
    (theory / "manifests" / "theory.json").unlink()
    list_again(theory)
    with pytest.raises(InputError, match=r"theory\.parquet: no manifest records the job that wrote it"):
        verify(theory)


def test_a_changed_point_is_found_by_drawing_when_sums_and_manifests_were_forged(theory: Path, tmp_path: Path) -> None:
    forged = theory / "figures" / "fig_minimisers.csv"
    points = read_points(forged)
    points.assign(value=points["value"] + 0.01).to_csv(forged, index=False)
    for path in (theory / "manifests").iterdir():
        manifest = load_manifest(path)
        for artifact in (*manifest.inputs.values(), *manifest.outputs.values()):
            if locate(path, artifact).is_relative_to(theory) and locate(path, artifact).exists():
                artifact.sha256 = sha256_file(locate(path, artifact))
        write_json(path, manifest.model_dump())
    list_again(theory)
    outcome = run("dhel-kcl", "redraw", str(theory), "--output", str(tmp_path / "redrawn"), cwd=REPOSITORY)
    assert outcome.returncode == 1
    assert f"error: {theory}: fig_minimisers does not show the released numbers" in outcome.stderr
    assert f"{theory} fig_minimisers: OTHER NUMBERS" in outcome.stdout
    assert f"{theory} fig_minibatch_asymptotic: same numbers" in outcome.stdout


def test_a_readers_own_script_is_drawn_too(theory: Path, tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    clone = make_workspace(tmp_path / "clone")
    shutil.copy(clone / "paper_figures" / "table_theory.py", clone / "paper_figures" / "table_own.py")
    outcome = run("dhel-kcl", "redraw", str(theory), cwd=clone)
    assert outcome.returncode == 0, outcome.stderr
    assert f"{theory} table_own: not compared" in outcome.stdout
    assert f"{len(OF_THEORY)} of {len(OF_THEORY)} have the released numbers" in outcome.stdout
    assert (clone / "results" / "redrawn" / "theory" / "tables" / "table_own.md").exists()


def test_releases_from_which_no_script_draws_are_refused(theory: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "fig_spectrum.py", tmp_path / "scripts")
    with pytest.raises(InputError, match="no figure or table is drawn from the tables of these releases"):
        list(redraw([theory], tmp_path / "scripts", tmp_path / "redrawn"))


def test_two_folders_of_one_name_and_the_releases_own_place_are_refused(theory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another folder is called theory too"):
        list(redraw([theory, REPOSITORY / "docs" / "results" / "theory"], SCRIPTS, tmp_path / "redrawn"))
    with pytest.raises(InputError, match="would replace the released files"):
        list(redraw([theory], SCRIPTS, tmp_path))


def test_a_release_holds_every_table_product_measurement_and_manifest_but_nothing_large(
    finished: Path, layout: Layout, released: Path
) -> None:
    names = set(contents(released))
    assert {"config.yaml", "results.parquet", "theory.parquet", "report.html", "explorer.html", "sbom.json"} <= names
    assert {"audit.json", "ro-crate-metadata.json"}.isdisjoint(names)
    assert {path.suffix for path in map(Path, names)} <= {
        *(".yaml", ".parquet", ".html", ".json", ".csv", ".png", ".pdf", ".md"),
        "",  # SHA256SUMS
    }
    manifests = {
        str(path.relative_to(layout.root)) for path in layout.root.rglob("*.json") if path.parent.name != "data"
    }
    betons = {str(path.relative_to(layout.root)) for path in layout.root.rglob("*.beton.json")}
    assert manifests - betons - {"audit.json", "ro-crate-metadata.json"} <= names
    assert all(f"runs/{run}/training_log.csv" in names for run in load_config(layout.config).runs)
    for name in names - {"SHA256SUMS"}:
        assert (released / name).read_bytes() == (layout.root / name).read_bytes()
    assert coreutils("sha256sum", "--check", "--strict", "SHA256SUMS", folder=released).returncode == 0


def test_a_release_is_drawn_again_without_its_experiment(released: Path, tmp_path: Path) -> None:
    outcome = run("dhel-kcl", "redraw", str(released), "--output", str(tmp_path / "redrawn"), cwd=REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    count = len(TARGETS)
    assert f"{count + 2} of {count + 2} have the released numbers" in outcome.stdout
    assert f"{count} of {count} figures and tables have the released bytes" in outcome.stdout
    redrawn, was = contents(tmp_path / "redrawn" / "released"), contents(released)
    assert all(was[name] == data for name, data in redrawn.items() if not name.endswith(".html"))
    assert {"report.html", "explorer.html"} <= set(redrawn)


def test_a_release_can_be_released_again_without_checkpoints_and_keeps_its_readme(runs: Path) -> None:
    (runs / "README.md").write_text("what was found", encoding="utf-8")
    before = contents(runs)
    outcome = run("dhel-kcl", "release", str(runs), "--output", str(runs), cwd=REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    assert contents(runs) == before


def test_the_theorems_can_be_released_alone(runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    outcome = run("dhel-kcl", "release", str(runs), "--theory-only", "--output", str(alone), cwd=REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    products = {str(path) for name in OF_THEORY for path in Layout(Path()).products(name)}
    renders = {f"manifests/render-{name}.json" for name in OF_THEORY}
    others = {"config.yaml", "theory.parquet", "SHA256SUMS", "manifests/configure.json", "manifests/theory.json"}
    assert set(contents(alone)) == products | renders | others
    verify(alone)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (
            "results.parquet",
            Path.unlink,
            r"results\.parquet: missing, and 0 more; a release needs a finished experiment",
        ),
        ("figures/fig_training.png", Path.unlink, r"fig_training\.png: missing"),
        ("manifests/report.json", Path.unlink, r"report\.json: missing"),
        ("results.parquet", _append_byte, r"results\.parquet: not the file that manifests/collect\.json records"),
        ("report.html", _append_byte, r"report\.html: not the file that manifests/report\.json records"),
    ],
)
def test_an_experiment_that_is_not_complete_or_not_consistent_is_not_released(
    runs: Path, tmp_path: Path, file: str, damage: Callable[[Path], object], said: str
) -> None:
    damage(runs / file)
    with pytest.raises(InputError, match=said):
        publish(load_config(runs / "config.yaml"), Layout(runs), SCRIPTS, tmp_path / "again")
    assert list(tmp_path.iterdir()) == [runs]


def test_a_folder_that_holds_something_else_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    config, output = load_config(runs / "config.yaml"), tmp_path / "notes"
    output.mkdir()
    (output / "README.md").write_text("kept", encoding="utf-8")
    publish(config, Layout(runs), SCRIPTS, output)
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(output)
    with pytest.raises(InputError, match=r"notes\.txt: not of a release, and would be lost"):
        publish(config, Layout(runs), SCRIPTS, output)
    assert contents(output) == before
    assert before["README.md"] == b"kept"


def test_a_release_that_fails_half_way_leaves_the_one_before(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output, copied = load_config(runs / "config.yaml"), tmp_path / "output", []
    publish(config, Layout(runs), SCRIPTS, output)
    before = contents(output)

    def fails_at_the_tenth(source: Path, copy: Path) -> None:
        copied.append(copy)
        copy.write_text("half", encoding="utf-8")
        if len(copied) == 10:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fails_at_the_tenth)
    with pytest.raises(OSError, match="No space left"):
        publish(config, Layout(runs), SCRIPTS, output)
    assert contents(output) == before
    assert sorted(tmp_path.iterdir()) == [output, runs]


@pytest.mark.parametrize("happened", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_release_that_cannot_take_the_place_of_the_one_before_puts_it_back(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: BaseException
) -> None:
    config, output, rename = load_config(runs / "config.yaml"), tmp_path / "output", Path.rename
    publish(config, Layout(runs), SCRIPTS, output)
    before = contents(output)

    def fails_for_the_new_one(path: Path, to: Path) -> Path:
        if path.name == "made":
            raise happened
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises(type(happened)):
        publish(config, Layout(runs), SCRIPTS, output)
    assert contents(output) == before
