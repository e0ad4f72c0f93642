"""Whatever is changed in a finished experiment, the audit finds it and names the file."""

import io
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from forgery import sign_again, sign_everything_again
from workspace import REPOSITORY
from workspace import run as run_program

from dhel_kcl import cli, console
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.files import TEMPORARY, read_json, sha256_file, write_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.paper.explorer import read_rows
from dhel_kcl.provenance.audit import audit, conclude
from dhel_kcl.provenance.crate import write_crate
from dhel_kcl.provenance.seal import file_digests, read_seal

pytestmark = pytest.mark.usefixtures("drawn_once")

LAYOUT = Layout(Path("results/tiny"))
RUN = "digits-dhel-temperature0.3-bs128-seed0"
OWN = {LAYOUT.log("audit"), LAYOUT.benchmark("audit")}
"""What the audit's own job writes while it seals the rest."""

Damage = Callable[[Path], object]


@pytest.fixture
def experiment(copy_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A finished experiment, to be damaged, below the current folder."""
    monkeypatch.chdir(copy_of_finished)
    return LAYOUT


def found() -> list[str]:
    """The problems that `dhel-kcl audit` lists."""
    try:
        return audit(Experiment.open(LAYOUT.root)).problems
    except InputError as error:
        return str(error).splitlines()


def named(file: Path) -> list[str]:
    return [problem for problem in found() if problem.startswith(f"{file}: ")]


def append_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def append_comment(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_text(old: str, new: str) -> Damage:
    def change(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def swap_picture(path: Path) -> None:
    shutil.copy(LAYOUT.figures / "fig_batch_size.png", path)


def forge_cell(report: Path) -> None:
    before, section, tables = report.read_text(encoding="utf-8").partition("<section")
    assert "<td>0." in tables
    report.write_text(before + section + tables.replace("<td>0.", "<td>1.", 1), encoding="utf-8")


def set_metric(path: Path) -> None:
    values = read_json(path)
    values["knn_top1"]["20"] = 0.999
    write_json(path, values)


def files() -> list[Path]:
    return sorted(path for path in LAYOUT.root.rglob("*") if path.is_file() and path not in OWN)


def test_an_untouched_experiment_has_no_problem_and_a_seal_of_every_file(experiment: Layout) -> None:
    assert found() == []
    assert {LAYOUT.root / name for name in read_seal(LAYOUT.audit).sha256} == {*files()} - {LAYOUT.audit}


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (LAYOUT.config, replace_text("epochs: 2", "epochs: 3"), "changed since"),
        (LAYOUT.beton("digits", "train"), append_byte, "changed since"),
        (LAYOUT.encoder(RUN), append_byte, "changed since"),
        (LAYOUT.encoder(RUN), Path.unlink, "missing, but recorded in"),
        (LAYOUT.features(RUN), append_byte, "changed since"),
        (LAYOUT.classifier(RUN), append_byte, "changed since"),
        (LAYOUT.evaluation(RUN), set_metric, "changed since"),
        (LAYOUT.corruptions(RUN), truncate, "changed since"),
        (LAYOUT.results, truncate, "changed since"),
        (LAYOUT.theory, append_byte, "changed since"),
        (LAYOUT.figures / "fig_spectrum.csv", replace_text("digits", "stigid"), "changed since"),
        (LAYOUT.figures / "fig_spectrum.png", append_byte, "changed since"),
        (LAYOUT.tables / "table_robustness.md", replace_text("0.", "1."), "changed since"),
        (LAYOUT.explorer, append_byte, "changed since"),
        (LAYOUT.report, Path.unlink, "missing, but recorded in"),
        (LAYOUT.run_manifest("pretrain", RUN), Path.unlink, "missing"),
        (LAYOUT.manifest("theory"), Path.unlink, "missing"),
        (LAYOUT.manifest("report"), truncate, "not valid JSON"),
        (LAYOUT.manifest("report"), replace_text('"stage"', '"stag"'), "not a manifest"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else getattr(value, "__name__", None),
)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "no-seal"])
def test_what_a_manifest_describes_is_named_when_it_changes_with_a_seal_or_without(
    experiment: Layout, file: Path, damage: Damage, said: str, sealed: bool
) -> None:
    if not sealed:
        LAYOUT.audit.unlink()
    damage(file)
    assert any(said in problem for problem in named(file)), found()


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (LAYOUT.log("pretrain", RUN), append_byte, "changed since the audit sealed it"),
        (LAYOUT.log("data", "digits-train"), append_byte, "changed since the audit sealed it"),  # it was empty
        (LAYOUT.benchmark("collect"), Path.unlink, "missing, but sealed"),
        (LAYOUT.results.with_suffix(".csv"), truncate, "changed since"),
        (LAYOUT.manifest("report"), replace_text('"stage"', '"stage" '), "changed since the audit sealed it"),
        (LAYOUT.run(RUN) / "notes.txt", Path.touch, "added after the audit sealed the folder"),
        (LAYOUT.run(RUN) / ".hidden", Path.touch, "added after the audit sealed the folder"),
        (LAYOUT.audit, replace_text("\n", "\n "), "not what an audit wrote"),
        (LAYOUT.audit, replace_text('"points": ', '"points": 1'), "not what an audit wrote"),
        (LAYOUT.audit, truncate, "not what an audit wrote"),
        (LAYOUT.audit, lambda path: path.write_bytes(b"\xff[]"), "not what an audit wrote"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_everything_else_is_named_by_the_seal(experiment: Layout, file: Path, damage: Damage, said: str) -> None:
    damage(file)
    assert [said in problem for problem in found()] == [True]
    assert named(file)


def test_a_seal_with_counts_of_its_own_is_found_even_when_its_digest_was_forged(experiment: Layout) -> None:
    seal = read_seal(LAYOUT.audit)
    seal.points += 1
    LAYOUT.audit.write_text(seal.text(), encoding="utf-8")
    assert "the counts differ" in named(LAYOUT.audit)[0]


def test_any_single_byte_that_changes_anywhere_is_found_and_its_file_named(experiment: Layout) -> None:
    draw = random.Random(18045)
    candidates = [path for path in files() if path.stat().st_size]  # an empty file has no byte to change
    assert len(candidates) > 150
    missed = []
    for file in draw.sample(candidates, 50):
        content = file.read_bytes()
        offset, mask = draw.randrange(len(content)), draw.randrange(1, 256)
        changed = bytearray(content)
        changed[offset] ^= mask
        file.write_bytes(changed)
        if not named(file):
            missed.append((file, offset, mask))
        file.write_bytes(content)
    assert not missed
    assert found() == []


def test_a_metric_signed_again_in_its_own_manifest_is_not_the_one_that_was_collected(experiment: Layout) -> None:
    LAYOUT.audit.unlink()
    set_metric(LAYOUT.evaluation(RUN))
    sign_again(LAYOUT.run_manifest("evaluate", RUN))
    assert any("collect of tiny used a different version" in problem for problem in named(LAYOUT.evaluation(RUN)))


@pytest.mark.parametrize(
    ("file", "damage", "blamed", "said"),
    [
        (LAYOUT.evaluation(RUN), set_metric, LAYOUT.results, f"knn_top1 of {RUN} is not what runs/{RUN}/evaluation"),
        (LAYOUT.figures / "fig_spectrum.csv", replace_text("0.", "1."), None, "results.parquet gives different values"),
        (LAYOUT.tables / "table_theory.csv", replace_text("0.", "1."), None, "theory.parquet gives different values"),
        (LAYOUT.tables / "table_robustness.md", replace_text("0.", "1."), None, "does not show the values of"),
        (LAYOUT.figures / "fig_spectrum.csv", replace_text("-seed0", "-seed9"), None, "names an unknown run digits"),
        (
            LAYOUT.evaluation(RUN),
            lambda path: path.write_text("[]", encoding="utf-8"),
            None,
            "not what its stage writes",
        ),
        (
            LAYOUT.representation(RUN),
            lambda path: path.write_text('{"h": 1}', encoding="utf-8"),
            None,
            "not what its stage writes",
        ),
        (LAYOUT.training_log(RUN), lambda path: path.write_bytes(b"\xff\n1"), None, "not what its stage writes"),
        (LAYOUT.beton("digits", "train"), truncate, None, "the beton has"),
        (LAYOUT.results, truncate, None, "not a readable results table"),
        (LAYOUT.theory, append_byte, None, "not a readable theory table"),
        (LAYOUT.tables / "table_theory.csv", lambda path: path.write_bytes(b"\xff"), None, "not a readable CSV"),
        (
            LAYOUT.tables / "table_theory.csv",
            lambda path: path.write_text("a\n1\n", encoding="utf-8"),
            None,
            "cannot be used (KeyError",
        ),
        (
            LAYOUT.tables / "table_theory.md",
            lambda path: path.write_bytes(b"\xff"),
            None,
            "does not show the values of",
        ),
        (LAYOUT.explorer, truncate, None, "not a page of the explorer"),
        (LAYOUT.explorer, replace_text("<h1>Explorer of 4", "<h1>Explorer of 40"), None, "on a page that was changed"),
        (LAYOUT.figures / "fig_spectrum.png", swap_picture, None, "does not show the values of fig_spectrum.csv"),
        (LAYOUT.figures / "fig_spectrum.pdf", append_byte, None, "does not show the values of fig_spectrum.csv"),
        (LAYOUT.results.with_suffix(".csv"), replace_text("0.", "1."), None, "results.parquet gives different values"),
        (LAYOUT.theory.with_suffix(".csv"), replace_text("0.", "1."), None, "theory.parquet gives different values"),
        (LAYOUT.verdicts.with_suffix(".csv"), replace_text("not run", "supported"), None, "verdicts.parquet gives"),
        (LAYOUT.report, forge_cell, None, "does not match the experiment"),
        (LAYOUT.report, replace_text("<figure>", '<figure><img src="a.png">'), None, "does not match the experiment"),
        (
            LAYOUT.report,
            replace_text("epochs: 2", "epochs: 200"),
            None,
            "configuration does not match the experiment",
        ),
        (LAYOUT.report, replace_text("averaging over seeds", "choosing"), None, "but was changed elsewhere"),
        (LAYOUT.report, replace_text("4 of the 4 runs", "9 of the 9 runs"), None, "but was changed elsewhere"),
        (LAYOUT.explorer, replace_text('id="data">', 'id="data">1</script>'), None, "cannot be used (TypeError"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_what_was_changed_and_signed_again_everywhere_is_not_what_it_is_derived_from(
    experiment: Layout, file: Path, damage: Damage, blamed: Path | None, said: str
) -> None:
    damage(file)
    sign_everything_again(LAYOUT)
    problems = named(blamed or file)
    assert any(said in problem for problem in problems), problems


def forge(file: Path, table: pd.DataFrame) -> None:
    table.to_parquet(file, index=False)
    sign_everything_again(LAYOUT)


def test_a_value_forged_in_the_results_is_not_what_the_run_measured(experiment: Layout) -> None:
    table = pd.read_parquet(LAYOUT.results)
    table.loc[(table["run"] == RUN) & (table["metric"] == "linear_top1"), "value"] = 0.999
    forge(LAYOUT.results, table)
    assert f"linear_top1 of {RUN} is not what runs/{RUN}/evaluation.json says" in named(LAYOUT.results)[0]
    assert "results.parquet gives different values" in named(LAYOUT.tables / "table_linear_accuracy.csv")[0]


@pytest.mark.parametrize("change", [lambda table: table[1:], lambda table: table.assign(value=table["value"].map(str))])
def test_results_of_another_form_are_named(experiment: Layout, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    forge(LAYOUT.results, change(pd.read_parquet(LAYOUT.results)))
    assert named(LAYOUT.results)


def test_a_theorem_that_a_forged_table_contradicts_is_found(experiment: Layout) -> None:
    table = pd.read_parquet(LAYOUT.theory)
    table.loc[(table["loss"] == "dhel") & (table["metric"] == "minimum"), "value"] -= 0.5
    forge(LAYOUT.theory, table)
    assert "theory.parquet gives different values" in named(LAYOUT.figures / "fig_minimisers.csv")[0]


def test_a_verdict_that_the_results_contradict_is_found(experiment: Layout) -> None:
    forge(LAYOUT.verdicts, pd.read_parquet(LAYOUT.verdicts).assign(state="supported"))
    assert "results.parquet gives different verdicts; rerun judge" in named(LAYOUT.verdicts)[0]


def test_a_point_forged_in_the_explorer_is_found(experiment: Layout) -> None:
    value = next(row["linear_top1"] for row in read_rows(LAYOUT.explorer) if row["run"] == RUN)
    replace_text(f'"linear_top1":{value}', '"linear_top1":0.999')(LAYOUT.explorer)
    sign_everything_again(LAYOUT)
    assert "results.parquet gives different values; rerun explorer" in named(LAYOUT.explorer)[0]


def test_a_stale_input_is_found_even_when_every_file_matches_its_own_manifest(experiment: Layout) -> None:
    other = "digits-dhel-temperature0.3-bs256-seed0"
    for path in (LAYOUT.encoder, LAYOUT.training_log, LAYOUT.throughput):
        shutil.copy(path(other), path(RUN))
    manifest = load_manifest(LAYOUT.run_manifest("pretrain", RUN))
    manifest.outputs = load_manifest(LAYOUT.run_manifest("pretrain", other)).outputs
    write_json(LAYOUT.run_manifest("pretrain", RUN), manifest.model_dump())
    assert any(f"features of {RUN} used a different version" in problem for problem in named(LAYOUT.encoder(RUN)))


def without_inputs(path: Path) -> dict[str, object]:
    return load_manifest(path).model_dump() | {"inputs": {}}


def made_from_itself(path: Path) -> dict[str, object]:
    return load_manifest(path).model_dump() | {"inputs": load_manifest(path).model_dump()["outputs"]}


@pytest.mark.parametrize("forged", [without_inputs, made_from_itself])
def test_a_chain_with_a_missing_link_is_found(experiment: Layout, forged: Callable[[Path], dict[str, object]]) -> None:
    for manifest in (LAYOUT.run_manifest("features", RUN), LAYOUT.manifest("explorer")):
        write_json(manifest, forged(manifest))
    sign_everything_again(LAYOUT)
    for file in (LAYOUT.features(RUN), LAYOUT.explorer):
        assert "its manifest does not lead back to" in named(file)[0]


def test_a_crate_that_is_not_what_would_be_made_now_is_a_warning(experiment: Layout) -> None:
    write_crate(Experiment.open(LAYOUT.root))
    assert audit(Experiment.open(LAYOUT.root)).warnings == []
    for file, damage, said in (
        (LAYOUT.sbom, append_comment, "describes a different sbom.json"),
        (LAYOUT.source / "Snakefile", append_comment, "describes a different source/Snakefile"),
        (LAYOUT.crate, replace_text("#run", "#ran"), "does not match the manifests"),
    ):
        whole = file.read_bytes()
        damage(file)
        outcome = audit(Experiment.open(LAYOUT.root))
        assert (outcome.problems, len(outcome.warnings)) == ([], 1)
        assert said in outcome.warnings[0]
        file.write_bytes(whole)


def test_a_path_that_no_file_can_have_is_no_manifest(experiment: Layout) -> None:
    replace_text('"path": "', '"path": "\\u0000')(LAYOUT.manifest("report"))
    assert "not a manifest" in named(LAYOUT.manifest("report"))[0]


def test_a_failed_audit_keeps_the_seal_and_its_problems_until_one_passes(experiment: Layout) -> None:
    log, sealed = LAYOUT.log("pretrain", RUN), LAYOUT.audit.read_bytes()
    before = log.read_bytes()
    append_byte(log)
    for _ in range(2):  # the first failure does not hide the change from the second
        outcome = audit(Experiment.open(LAYOUT.root))
        conclude(outcome, LAYOUT)
        assert len(outcome.problems) == 1
    assert LAYOUT.audit.read_bytes() == sealed
    assert LAYOUT.audit_problems.read_text(encoding="utf-8") == outcome.problems[0]
    log.write_bytes(before)
    conclude(audit(Experiment.open(LAYOUT.root)), LAYOUT)
    assert LAYOUT.audit.read_bytes() == sealed
    assert not LAYOUT.audit_problems.exists()


def test_what_cannot_be_kept_is_a_warning_after_every_problem(
    experiment: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    append_byte(LAYOUT.encoder(RUN))
    LAYOUT.audit_problems.mkdir()
    with pytest.raises(InputError, match="the audit found 1 problems, listed above"):
        cli.audit(LAYOUT.root, strict=False)
    problem, warning = capsys.readouterr().err.splitlines()[-2:]
    assert re.match(f"error: {LAYOUT.encoder(RUN)}: changed since", problem)
    assert re.match(f"warning: .*{LAYOUT.audit_problems.name}", warning)


def test_nothing_is_written_into_a_release(experiment: Layout) -> None:
    LAYOUT.audit.unlink()
    (LAYOUT.root / "SHA256SUMS").touch()
    before = files()
    with pytest.raises(InputError, match="a release; verify it with `dhel-kcl redraw results/tiny`"):
        cli.audit(LAYOUT.root, strict=False)
    assert files() == before
    with pytest.raises(InputError, match="a release, so nothing was written into it"):
        conclude(audit(Experiment.open(LAYOUT.root)), LAYOUT)
    assert files() == before


def test_drawings_of_a_watched_run_temporary_and_damaged_files_are_no_results_and_not_sealed(
    experiment: Layout,
) -> None:
    LAYOUT.live(RUN).mkdir()
    (LAYOUT.live(RUN) / "fig_training.png").touch()
    (LAYOUT.run(RUN) / f"{TEMPORARY}encoder-abc.safetensors").touch()
    (LAYOUT.run(RUN) / "encoder.safetensors.damaged").touch()
    assert found() == []


def test_a_seal_is_the_same_when_a_folder_of_the_experiment_is_a_link(experiment: Layout, tmp_path: Path) -> None:
    config = load_config(LAYOUT.config)
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"keep_features": False})})
    before = file_digests(Experiment.open(LAYOUT.root), sha256_file)
    runs = shutil.move(LAYOUT.root / "runs", tmp_path / "elsewhere")
    (LAYOUT.root / "runs").symlink_to(runs)
    LAYOUT.live(RUN).mkdir()
    (LAYOUT.live(RUN) / "fig_training.png").touch()
    assert file_digests(Experiment.open(LAYOUT.root), sha256_file) == before


def test_a_link_in_the_place_of_a_file_is_named_by_its_place_and_what_it_leads_to_is_not_blamed(
    experiment: Layout,
) -> None:
    other = "digits-dhel-temperature0.3-bs256-seed0"
    LAYOUT.encoder(RUN).unlink()
    LAYOUT.encoder(RUN).symlink_to(LAYOUT.encoder(other).resolve())
    for problems in (found(), (LAYOUT.audit.unlink(), found())[1]):
        assert f"{LAYOUT.encoder(RUN)}: a link, not the file that its job wrote" in problems[0]
        assert not any(other in problem for problem in problems)


def test_a_link_to_the_file_itself_kept_elsewhere_is_no_file_of_the_experiment(
    experiment: Layout, tmp_path: Path
) -> None:
    shutil.move(LAYOUT.encoder(RUN), tmp_path / "encoder")
    LAYOUT.encoder(RUN).symlink_to(tmp_path / "encoder")
    assert [problem.partition(";")[0] for problem in found()] == [
        f"{LAYOUT.encoder(RUN)}: a link, not the file that its job wrote"
    ]


@pytest.mark.parametrize("target", ["..", "../..", "/"])
def test_a_link_that_leads_around_in_a_circle_is_named_once_and_nothing_else_is(
    experiment: Layout, target: str
) -> None:
    (LAYOUT.run(RUN) / "circle").symlink_to(target)
    LAYOUT.audit.unlink()
    assert [problem.partition(";")[0] for problem in found()] == [
        f"{LAYOUT.run(RUN) / 'circle'}: a link to a folder that contains it"
    ]


@pytest.mark.parametrize("moved", ["data", "runs", "manifests", f"runs/{RUN}", "."])
def test_an_experiment_passes_as_before_when_a_folder_of_it_or_its_own_is_a_link(
    experiment: Layout, tmp_path: Path, moved: str
) -> None:
    folder = Path(os.path.normpath(LAYOUT.root / moved))
    elsewhere = shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    assert found() == []


def test_an_experiment_passes_by_whatever_name_its_clone_is_reached(experiment: Layout, tmp_path: Path) -> None:
    link = tmp_path / "deep" / "link"
    link.parent.mkdir()
    link.symlink_to(Path.cwd())
    for cwd, name in ((Path.cwd(), link / LAYOUT.root), (link, LAYOUT.root)):
        outcome = run_program("dhel-kcl", "audit", str(name), cwd=cwd)
        assert outcome.returncode == 0, outcome.stderr


def test_an_unexpected_error_says_what_it_is_and_never_to_delete_the_experiment(
    experiment: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dhel_kcl.provenance.audit.file_digests", fail)
    assert found() == [f"{LAYOUT.root}: cannot be used (ZeroDivisionError: a bug); report this line as a bug"]


def test_a_file_that_cannot_be_read_is_named_and_the_audit_goes_on(
    experiment: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_byte(LAYOUT.theory)
    whole = sha256_file

    def refuse(path: Path) -> str:
        if path.name == "train.beton":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr("dhel_kcl.jobs.history.sha256_file", refuse)
    beton = LAYOUT.beton("digits", "train")
    assert f"{beton}: cannot be read (Permission denied); check the disk and its permissions" in found()
    assert named(LAYOUT.theory)


def test_other_bytes_by_another_version_of_a_library_are_a_warning_that_names_it(experiment: Layout) -> None:
    picture, path = LAYOUT.figures / "fig_spectrum.pdf", LAYOUT.manifest("render", "fig_spectrum")
    picture.write_bytes(picture.read_bytes()[:-1] + b"\0")
    manifest = load_manifest(path)
    was = manifest.packages["matplotlib"]
    write_json(path, manifest.model_dump() | {"packages": manifest.packages | {"matplotlib": "3.9.0"}})
    sign_everything_again(LAYOUT)
    outcome = audit(Experiment.open(LAYOUT.root))
    assert outcome.problems == []
    assert [warning for warning in outcome.warnings if "not byte for byte" in warning] == [
        f"not byte for byte what would be made now, which may be because matplotlib was 3.9.0 and is {was}: {picture}"
    ]


def test_a_folder_that_cannot_be_read_is_named(experiment: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, closed = os.scandir, LAYOUT.root / "logs"

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    assert found() == [f"{closed}: cannot be read (Permission denied); check the disk and its permissions"]


def test_features_that_an_experiment_discards_are_neither_sealed_nor_missed(experiment: Layout) -> None:
    config = load_config(LAYOUT.config)
    discarding = config.model_copy(update={"compute": config.compute.model_copy(update={"keep_features": False})})
    LAYOUT.audit.unlink()
    LAYOUT.features(RUN).unlink()
    kept, discarded = (audit(Experiment(each, LAYOUT)) for each in (config, discarding))
    other = "digits-dhel-temperature0.3-bs256-seed0/features.safetensors"
    assert any("features.safetensors: missing" in problem for problem in kept.problems)
    assert any(other in name for name in kept.sha256)
    assert not any("features.safetensors" in text for text in [*discarded.problems, *discarded.sha256])


@pytest.fixture
def clone(experiment: Layout) -> Path:
    """The finished workspace as a Git repository of its own, with the package's source in it."""
    folder = Path.cwd()
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (folder / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    code = ["src", "paper_figures", "workflow", "Snakefile", "envs"]
    commands = (["init", "-q"], ["add", *code], [*who, "commit", "-qm", "all"])
    for command in commands:
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def in_clone(clone: Path, *arguments: str) -> tuple[int, str]:
    outcome = subprocess.run(
        [sys.executable, "-m", "dhel_kcl.cli", *arguments],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    return outcome.returncode, outcome.stderr


def warned(pattern: str) -> list[str]:
    warnings = audit(Experiment.open(LAYOUT.root)).warnings
    return [warning for warning in warnings if re.search(pattern, warning)]


def test_a_job_that_ran_uncommitted_code_is_named(clone: Path) -> None:
    first = "fig_batch_size"
    uncommitted = f"uncommitted changes were in the code when render ran for {first}"
    assert in_clone(clone, "render", "results/tiny", first)[0] == 0
    assert warned(uncommitted) == []
    append_comment(clone / "paper_figures" / "fig_spectrum.py")
    assert in_clone(clone, "render", "results/tiny", first)[0] == 0
    assert len(warned(uncommitted)) == 1


@pytest.mark.parametrize(
    ("recorded", "warning"),
    [
        ({"git_dirty": True}, "uncommitted changes were in the code when theory ran for tiny"),
        ({"git_dirty": None}, "the code's commit is not known for theory of tiny"),
        ({"git_dirty": None, "git_commit": None}, "the code's commit is not known for theory of tiny"),
    ],
)
def test_code_that_was_not_committed_or_may_not_have_been_is_told_on_the_terminal_and_by_the_seal_and_show(
    recorded: dict[str, bool | None],
    warning: str,
    experiment: Layout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = LAYOUT.manifest("theory")
    write_json(path, load_manifest(path).model_dump() | recorded)
    sign_everything_again(LAYOUT)
    terminal = io.StringIO()
    monkeypatch.setattr(console, "_terminal", terminal)
    cli.audit(LAYOUT.root, strict=False)
    assert f"warning: {warning}\n" in terminal.getvalue()
    assert warning in read_seal(LAYOUT.audit).uncommitted
    assert found() == []
    capsys.readouterr()
    cli.show(LAYOUT.root)
    assert f"warning: {warning}" in capsys.readouterr().out
    with pytest.raises(InputError, match="the audit found"):
        cli.audit(LAYOUT.root, strict=True)
    assert f"error: {LAYOUT.root}: {warning}\n" in terminal.getvalue()


def test_code_that_changed_since_is_named_and_fails_a_strict_audit(clone: Path) -> None:
    append_comment(clone / "paper_figures" / "fig_spectrum.py")
    module = clone / "src" / "dhel_kcl" / "evaluation" / "evaluate.py"
    module.write_text(module.read_text(encoding="utf-8") + "CHANGED = True\n", encoding="utf-8")
    expected = (
        "dhel_kcl.evaluation.evaluate or code that it uses has changed since evaluate ran for",
        "paper_figures/fig_spectrum.py",
    )
    status, said = in_clone(clone, "audit", "results/tiny")
    assert status == 0, said
    assert all(re.search(f"^warning: .*{re.escape(part)}", said, re.MULTILINE) for part in expected), said
    assert read_seal(LAYOUT.audit).text() == LAYOUT.audit.read_text(encoding="utf-8")
    status, said = in_clone(clone, "audit", "results/tiny", "--strict")
    assert status == 1
    assert all(re.search(f"^error: .*{re.escape(part)}", said, re.MULTILINE) for part in expected), said


def test_a_failure_is_told_by_show_and_a_seal_taken_away_does_not_mend_it(experiment: Layout) -> None:
    append_byte(LAYOUT.encoder(RUN))
    LAYOUT.audit.unlink()
    assert run_program("dhel-kcl", "audit", "results/tiny", cwd=Path.cwd()).returncode == 1
    shown = run_program("dhel-kcl", "show", "results/tiny", cwd=Path.cwd()).stdout
    assert "failed; results/tiny/audit_problems.txt" in shown


def show() -> tuple[int, str]:
    outcome = run_program("dhel-kcl", "show", "results/tiny", cwd=Path.cwd())
    return outcome.returncode, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("ended_by", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_audit_that_does_not_end_leaves_no_pass_but_the_seal(
    experiment: Layout, monkeypatch: pytest.MonkeyPatch, ended_by: type[BaseException]
) -> None:
    def end(*_: object) -> None:
        raise ended_by

    sealed = LAYOUT.audit.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("dhel_kcl.provenance.audit.audit", end)
        with pytest.raises(ended_by):
            cli.audit(LAYOUT.root, strict=False)
    assert "an audit started and did not finish" in LAYOUT.audit_problems.read_text(encoding="utf-8")
    assert "passed" not in show()[1].partition("audit ")[2]
    assert LAYOUT.audit.read_bytes() == sealed
    cli.audit(LAYOUT.root, strict=False)
    assert "passed: " in show()[1]
    assert show()[0] == 0


def test_an_audit_of_a_configuration_that_is_no_longer_one_leaves_no_pass(experiment: Layout) -> None:
    text = LAYOUT.config.read_text(encoding="utf-8")
    LAYOUT.config.write_text("name: [", encoding="utf-8")
    assert run_program("dhel-kcl", "audit", "results/tiny", cwd=Path.cwd()).returncode == 1
    LAYOUT.config.write_text(text, encoding="utf-8")
    assert "passed" not in show()[1].partition("audit ")[2]


@pytest.mark.parametrize(
    "file",
    [LAYOUT.tables / "table_linear_accuracy.md", LAYOUT.results, LAYOUT.report, LAYOUT.figures / "fig_spectrum.png"],
    ids=lambda file: file.name,
)
def test_show_does_not_call_passed_what_was_changed_since(experiment: Layout, file: Path) -> None:
    append_byte(file)
    status, said = show()
    assert status == 1
    assert f"error: {file}: not the file that passed the audit" in said
    assert "passed: " not in said
