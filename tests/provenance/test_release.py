"""Releases: complete, whole, verified before use, and enough to make every figure and table again."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from workspace import FINISHED, REPOSITORY, make_workspace, run

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.files import sha256_file, write_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest, locate
from dhel_kcl.paper.render import read_points
from dhel_kcl.provenance.release import redraw, verify
from dhel_kcl.provenance.release import release as publish

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
    outcome = run("dhel-kcl", "release", "results/tiny", "--yes", "--output", str(tmp_path / "released"), cwd=finished)
    assert outcome.returncode == 0, outcome.stderr
    return tmp_path / "released"


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
        ("verdicts.parquet", Path.unlink, "runs/verdicts.parquet: missing, but listed in SHA256SUMS"),
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
        list(redraw([theory, runs], tmp_path / "redrawn", SCRIPTS))
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


@pytest.mark.parametrize(("name", "table", "stage"), [("runs", "results", "collect"), ("theory", "theory", "theory")])
def test_a_changed_number_is_found_by_the_manifest_when_the_sums_were_written_again(
    request: pytest.FixtureRequest, name: str, table: str, stage: str
) -> None:
    folder = request.getfixturevalue(name)
    _change_a_number(folder / f"{table}.parquet")
    list_again(folder)
    with pytest.raises(InputError, match=f"{table}.parquet: not the file that manifests/{stage}.json records"):
        verify(folder)


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
    assert f"{theory} fig_minimisers: DIFFERENT NUMBERS" in outcome.stdout
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
        list(redraw([theory], tmp_path / "redrawn", tmp_path / "scripts"))


def test_two_folders_of_one_name_and_the_releases_own_place_are_refused(theory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another folder is called theory too"):
        list(redraw([theory, REPOSITORY / "docs" / "results" / "theory"], tmp_path / "redrawn", SCRIPTS))
    with pytest.raises(InputError, match="would replace files of an experiment or a release"):
        list(redraw([theory], tmp_path, SCRIPTS))


def test_a_release_holds_every_table_product_measurement_and_manifest_but_nothing_large(
    finished: Path, layout: Layout, released: Path
) -> None:
    names = set(contents(released))
    assert {"config.yaml", "results.parquet", "theory.parquet", "report.html", "explorer.html", "sbom.json"} <= names
    assert {"ro-crate-metadata.json", "source/Snakefile"} <= names
    assert "audit.json" not in names
    assert {path.suffix for path in map(Path, names)} <= {
        *(".yaml", ".parquet", ".html", ".json", ".csv", ".png", ".pdf", ".md"),
        *(".py", ".rst", ".smk", ".txt", ".sh"),  # of the crate
        "",  # SHA256SUMS, Snakefile
    }
    manifests = {
        str(path.relative_to(layout.root)) for path in layout.root.rglob("*.json") if path.parent.name != "data"
    }
    betons = {str(path.relative_to(layout.root)) for path in layout.root.rglob("*.beton.json")}
    assert manifests - betons - {"audit.json"} <= names
    assert all(f"runs/{run}/training_log.csv" in names for run in load_config(layout.config).runs)
    of_the_crate = {name for name in names if name.startswith("source/")} | {"ro-crate-metadata.json", "sbom.json"}
    for name in names - of_the_crate - {"SHA256SUMS"}:
        assert (released / name).read_bytes() == (layout.root / name).read_bytes()
    assert coreutils("sha256sum", "--check", "--strict", "SHA256SUMS", folder=released).returncode == 0


def test_a_release_is_drawn_again_without_its_experiment(released: Path, tmp_path: Path) -> None:
    outcome = run("dhel-kcl", "redraw", str(released), "--output", str(tmp_path / "redrawn"), cwd=REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    count = len(FINISHED)
    assert f"{count + 2} of {count + 2} have the released numbers" in outcome.stdout
    assert f"{count} of {count} figures and tables have the released bytes" in outcome.stdout
    redrawn, was = contents(tmp_path / "redrawn" / "released"), contents(released)
    same = [name for name in redrawn.keys() & was.keys() if not name.endswith((".html", "SHA256SUMS"))]
    assert len(same) > 2 * count
    assert all(was[name] == redrawn[name] for name in same)
    assert {"report.html", "explorer.html"} <= set(redrawn)


def test_a_release_can_be_released_again_without_checkpoints_and_keeps_its_readme(runs: Path) -> None:
    (runs / "README.md").write_text("what was found", encoding="utf-8")
    before = contents(runs)
    outcome = run("dhel-kcl", "release", str(runs), "--yes", "--output", str(runs), cwd=REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    assert contents(runs) == before


def test_the_theorems_can_be_released_alone(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    outcome = run("dhel-kcl", "release", "results/tiny", "--theory-only", "--yes", "--output", str(alone), cwd=finished)
    assert outcome.returncode == 0, outcome.stderr
    of_theory = [name for name in OF_THEORY if name in FINISHED]
    products = {str(path) for name in of_theory for path in Layout(Path()).products(name)}
    renders = {f"manifests/render-{name}.json" for name in of_theory}
    others = {"config.yaml", "theory.parquet", "SHA256SUMS", "manifests/configure.json", "manifests/theory.json"}
    assert products | renders | others <= set(contents(alone))
    assert not {"results.parquet", "runs"} & {path.name for path in alone.iterdir()}
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
        publish(Experiment.open(runs, SCRIPTS), tmp_path / "again")
    assert list(tmp_path.iterdir()) == [runs]


def test_a_folder_that_holds_something_else_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    config, output = load_config(runs / "config.yaml"), tmp_path / "notes"
    output.mkdir()
    (output / "README.md").write_text("kept", encoding="utf-8")
    publish(Experiment(config, Layout(runs), SCRIPTS), output)
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(output)
    with pytest.raises(InputError, match=r"notes\.txt: not part of a release, and would be lost"):
        publish(Experiment(config, Layout(runs), SCRIPTS), output)
    assert contents(output) == before
    assert before["README.md"] == b"kept"


def publish_theory(source: Path, output: Path) -> int:
    return publish(Experiment.open(source, SCRIPTS), output, theory_only=True)


def make_experiment(folder: Path) -> Path:
    """An experiment's folder, finished as far as the theorems go: what a release of them has, and a log."""
    shutil.copytree(REPOSITORY / "docs" / "results" / "theory", folder)
    (folder / "SHA256SUMS").unlink()
    (folder / "README.md").unlink()
    (folder / "logs").mkdir()
    (folder / "logs" / "theory.log").write_text("done", encoding="utf-8")
    return folder


def _add(name: str, content: str = "mine") -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return add


def _add_and_list(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        _add(name)(folder)
        list_again(folder)

    return add


def _add_a_manifest(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        shutil.copy(folder / "manifests" / "configure.json", folder / name)
        if "/" not in name:
            text = (folder / name).read_text(encoding="utf-8").replace('"../config.yaml"', '"config.yaml"')
            (folder / name).write_text(text, encoding="utf-8")
        list_again(folder)

    return add


def _link(name: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parent / "precious.txt")

    return link


def _open_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(folder / "socket"))  # a longer name would not fit


def _link_a_listed_file(folder: Path) -> None:
    moved = folder.parent / "elsewhere.parquet"
    (folder / "theory.parquet").rename(moved)
    (folder / "theory.parquet").symlink_to(moved)


def _replace_configuration(folder: Path) -> None:
    shutil.copy(REPOSITORY / "config" / "quickstart.yaml", folder / "config.yaml")
    list_again(folder)


def _keep_only_foreign_files(folder: Path) -> None:
    shutil.rmtree(folder)
    _add("thesis.txt")(folder)
    list_again(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_keep_only_foreign_files, r"config\.yaml: cannot be read"),
        (_add("notes.txt"), r"notes\.txt: not part of a release, and would be lost; choose another folder$"),
        (_add_and_list("notes.txt"), r"notes\.txt: not a file of a release; so nothing was replaced"),
        (_add_and_list("figures/fig_mine.png"), r"fig_mine\.png: not a file of a release; so nothing was replaced"),
        (_add_and_list("manifests/mine.json"), r"mine\.json: not valid JSON"),
        (_add_a_manifest("manifests/mine.json"), r"mine\.json: not a file of a release; so nothing was replaced"),
        (_add_a_manifest("notes.manifest.json"), r"notes\.manifest\.json: not a file of a release"),
        (_add("tables/table_theory.md"), r"table_theory\.md: not the file that SHA256SUMS lists.*nothing was replaced"),
        (_add("SHA256SUMS"), r"SHA256SUMS: line 1 is not a sha256, two spaces and a file"),
        (_replace_configuration, r"config\.yaml: not the file that manifests/configure\.json records"),
        (_link("link"), r"link: not part of a release, and would be lost"),
        (_link("README.md"), r"README\.md: not part of a release, and would be lost"),
        (_link("SHA256SUMS"), r"SHA256SUMS: not part of a release, and would be lost"),
        (_link_a_listed_file, r"theory\.parquet: not part of a release, and would be lost"),
        (_open_socket, r"socket: not part of a release, and would be lost"),
        (lambda folder: (folder / "empty" / "folder").mkdir(parents=True), r"empty/folder: not part of a release"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), r"output: an experiment's own folder"),
        (
            lambda folder: (folder / "theory.parquet").unlink(),
            r"theory\.parquet: missing, but listed.*nothing was repl",
        ),
    ],
)
def test_only_a_release_that_is_as_it_was_published_is_replaced(
    theory: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    output = tmp_path / "output"
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    publish_theory(theory, output)
    change(output)
    before = state(tmp_path)
    with pytest.raises(InputError, match=said) as refused:
        publish_theory(theory, output)
    assert "\n" not in str(refused.value)
    assert state(tmp_path) == before


def state(folder: Path) -> dict[str, bytes | Path | None]:
    """Everything below a folder: the bytes of files, where links lead, None for all else."""
    found: dict[str, bytes | Path | None] = {}
    for path in folder.rglob("*"):
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


@pytest.mark.parametrize("kind", ["file", "link to a folder", "link to a release", "link to nothing", "socket"])
def test_what_is_no_folder_is_not_replaced_by_a_release(theory: Path, tmp_path: Path, kind: str) -> None:
    output, target = tmp_path / "output", tmp_path / "target"
    if kind == "file":
        output.write_text("mine", encoding="utf-8")
    elif kind == "socket":
        _open_socket(tmp_path)
        (tmp_path / "socket").rename(output)
    else:
        if kind == "link to a folder":
            target.mkdir()
        elif kind == "link to a release":
            publish_theory(theory, target)
        output.symlink_to(target)
    before = state(tmp_path)
    with pytest.raises(InputError, match=rf"^{output}: (a link|not a folder), (which|and) would be lost"):
        publish_theory(theory, output)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("results/mine", "an experiment's own folder; choose another one"),
        ("results/mine/release", "inside .*/results/mine, an experiment; choose a folder outside of it"),
        ("results/mine/figures", "inside .*/results/mine, an experiment"),
        ("results", "not part of a release, and would be lost"),
        ("results/other", "an experiment's own folder"),
        ("results/other/a/b", "inside .*/results/other, an experiment"),
        ("link/release", "inside .*/results/mine, an experiment"),
        ("published/again", "inside .*/published, a release"),
    ],
)
def test_a_release_is_never_written_into_an_experiment_or_into_another_release(
    tmp_path: Path, output: str, said: str
) -> None:
    mine = make_experiment(tmp_path / "results" / "mine")
    make_experiment(tmp_path / "results" / "other")
    (tmp_path / "link").symlink_to(mine)
    publish_theory(mine, tmp_path / "published")
    before = state(tmp_path)
    with pytest.raises(InputError, match=said) as refused:
        publish_theory(mine, tmp_path / output)
    assert "\n" not in str(refused.value)
    assert state(tmp_path) == before


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a README.md", "the same release"])
def test_a_release_goes_where_nothing_is_lost(tmp_path: Path, there: str) -> None:
    mine, output = make_experiment(tmp_path / "results" / "mine"), tmp_path / "docs" / "results" / "mine"
    if there != "nothing":
        output.mkdir(parents=True)
    if there in ("a README.md", "the same release"):
        (output / "README.md").write_text("what was found", encoding="utf-8")
    if there == "the same release":
        publish_theory(mine, output)
    publish_theory(mine, output)
    verify(output)
    assert (output / "README.md").exists() == (there in ("a README.md", "the same release"))
    assert sorted(path.name for path in output.parent.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "results",
            r"results/theory/figures/fig_training.png(/mine.txt)?: not from an earlier redraw; choose another output",
        ),
        ("other", "other/theory: would replace files of an experiment or a release; choose another output"),
        ("", "theory: would replace files of an experiment or a release; choose another output"),
        ("theory", "theory/theory: inside .*/theory, a release; choose a folder outside of it"),
        ("notes", "notes/theory/report.html: not from an earlier redraw"),
        ("links", "links/theory: not a folder; choose another output"),
        ("files", "files/theory: not a folder; choose another output"),
    ],
)
def test_a_redraw_writes_where_nothing_is_or_an_earlier_one_and_nowhere_else(
    theory: Path, tmp_path: Path, output: str, said: str
) -> None:
    _add("results/theory/figures/fig_training.png/mine.txt")(tmp_path)
    make_experiment(tmp_path / "other" / "theory")
    (tmp_path / "notes" / "theory").mkdir(parents=True)
    (tmp_path / "notes" / "theory" / "report.html").symlink_to(tmp_path / "precious.txt")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "theory").symlink_to(tmp_path / "other" / "theory")
    _add("files/theory")(tmp_path)
    before = state(tmp_path)
    with pytest.raises(InputError, match=said):
        list(redraw([theory], tmp_path / output, SCRIPTS))
    assert state(tmp_path) == before


def test_a_redraw_can_be_repeated_where_it_was(theory: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "table_theory.py", tmp_path / "scripts")
    for _ in range(2):
        assert [product.numbers for product in redraw([theory], tmp_path / "drawn", tmp_path / "scripts")] == [True]
    (tmp_path / "drawn" / "theory" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"notes\.txt: not from an earlier redraw; choose another output"):
        list(redraw([theory], tmp_path / "drawn", tmp_path / "scripts"))


def test_a_redraw_replaces_no_figure_that_it_did_not_draw(theory: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("table_theory.py",):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    output = tmp_path / "drawn"
    list(redraw([theory], output, tmp_path / "scripts"))
    for name in ("tables/table_theory.md", "figures/fig_x.png"):
        _add(f"theory/{name}")(output)
        before = state(output)
        with pytest.raises(InputError, match=rf"{name}: not from an earlier redraw; choose another output"):
            list(redraw([theory], output, tmp_path / "scripts"))
        assert state(output) == before
        shutil.rmtree(output)
        output.mkdir()


def test_a_link_among_the_contents_is_not_published(theory: Path, tmp_path: Path) -> None:
    _link_a_listed_file(theory)
    with pytest.raises(InputError, match=r"theory\.parquet: a link, not the file that its job wrote"):
        publish_theory(theory, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_file_that_is_put_into_the_folder_while_it_is_replaced_is_not_lost(
    theory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "output", Path.rename
    publish_theory(theory, output)

    def late(path: Path, to: Path) -> Path:
        if path == output:
            (output / "notes.txt").write_text("mine", encoding="utf-8")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", late)
    before = contents(output)
    with pytest.raises(InputError, match=f"{output}: changed in the meantime, so nothing was replaced"):
        publish_theory(theory, output)
    assert contents(output) == before | {"notes.txt": b"mine"}
    assert sorted(tmp_path.iterdir()) == [output, theory]


def test_a_readme_keeps_its_mode(theory: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    publish_theory(theory, output)
    (output / "README.md").write_text("what was found", encoding="utf-8")
    (output / "README.md").chmod(0o640)
    publish_theory(theory, output)
    assert (output / "README.md").stat().st_mode & 0o777 == 0o640


def test_a_release_with_a_link_or_a_socket_that_it_does_not_list_is_not_whole(theory: Path) -> None:
    (theory / "folder").symlink_to(theory.parent)
    _open_socket(theory)
    with pytest.raises(InputError) as caught:
        verify(theory)
    assert [line.partition(": ")[2] for line in str(caught.value).splitlines()] == [
        "not listed in SHA256SUMS; remove it"
    ] * 2


def test_a_release_that_fails_half_way_leaves_the_one_before(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output, copied = load_config(runs / "config.yaml"), tmp_path / "output", []
    publish(Experiment(config, Layout(runs), SCRIPTS), output)
    before = contents(output)

    def fails_at_the_tenth(source: Path, copy: Path) -> None:
        copied.append(copy)
        copy.write_text("half", encoding="utf-8")
        if len(copied) == 10:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fails_at_the_tenth)
    with pytest.raises(OSError, match="No space left"):
        publish(Experiment(config, Layout(runs), SCRIPTS), output)
    assert contents(output) == before
    assert sorted(tmp_path.iterdir()) == [output, runs]


@pytest.mark.parametrize("happened", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_release_that_cannot_take_the_place_of_the_one_before_puts_it_back(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: BaseException
) -> None:
    config, output, rename = load_config(runs / "config.yaml"), tmp_path / "output", Path.rename
    publish(Experiment(config, Layout(runs), SCRIPTS), output)
    before = contents(output)

    def fails_for_the_new_one(path: Path, to: Path) -> Path:
        if path.name == "made":
            raise happened
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises(type(happened)):
        publish(Experiment(config, Layout(runs), SCRIPTS), output)
    assert contents(output) == before
