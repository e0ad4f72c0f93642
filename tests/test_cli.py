"""The command line: it teaches, and its errors are one line with a remedy."""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from workspace import REPOSITORY, TINY, run

from dhel_kcl import cli
from dhel_kcl.data.beton import sidecar_path
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs.configure import configure
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest, record
from dhel_kcl.jobs.stages import STAGES
from dhel_kcl.provenance.audit import Outcome, conclude
from dhel_kcl.provenance.seal import begin

RUN = "digits-dhel-temperature0.3-bs256-seed0"
FIRST = (
    "show",
    "trace",
    "runs",
    "watch",
    "audit",
    "repair",
    "plan",
    "configure",
    "stages",
    "release",
    "redraw",
    "crate",
)
OF_STAGES = [name.replace("_", "-") for name in STAGES if name != "configure"]


def test_help_names_what_a_user_types_first_and_comes_without_loading_torch(tmp_path: Path) -> None:
    outcome = run("dhel-kcl", "--help", cwd=tmp_path)
    for command in (*FIRST, "--version"):
        assert command in outcome.stdout
    assert "augmented-probe" not in outcome.stdout
    probe = (
        "import sys, dhel_kcl.cli, dhel_kcl.jobs.stages; sys.exit(bool({'torch', 'ffcv', 'pandas'} & set(sys.modules)))"
    )
    assert run("python", "-c", probe, cwd=tmp_path).returncode == 0


def test_the_package_does_not_know_the_workflow(tmp_path: Path) -> None:
    import grimp

    graph = grimp.build_graph("dhel_kcl", include_external_packages=True, cache_dir=None)
    assert "torch" in graph.modules
    assert "snakemake" not in graph.modules


@pytest.mark.parametrize("command", [[], *([name] for name in FIRST), *([name] for name in OF_STAGES)], ids=str)
def test_every_command_has_help_and_those_of_users_an_example(command: list[str], tmp_path: Path) -> None:
    outcome = run("dhel-kcl", *command, "--help", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert ("Example:" in outcome.stdout) == (command != [] and command[0] in FIRST)


def test_the_stages_are_listed_with_their_commands_in_the_order_of_the_path(tmp_path: Path) -> None:
    listed = run("dhel-kcl", "stages", cwd=tmp_path).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("dhel-kcl ")] == OF_STAGES
    assert listed.endswith("corruptions, analyse of a run in one process: dhel-kcl measure FOLDER RUN\n")


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    for command in (["dhel-kcl"], ["python", "-m", "dhel_kcl"]):
        assert run(*command, "--version", cwd=tmp_path).stdout == f"dhel-kcl {version('dhel-kcl')}\n"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    outcome = run("dhel-kcl", "configure", str(TINY), cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    return tmp_path


@pytest.mark.parametrize(("width", "warned"), [(0.03125, False), (0.015625, True)])
def test_a_projector_narrower_than_z_is_a_line_of_warning(tmp_path: Path, width: float, warned: bool) -> None:
    text = TINY.read_text(encoding="utf-8").replace("width: 0.0625", f"width: {width}")
    (tmp_path / "narrow.yaml").write_text(text, encoding="utf-8")
    outcome = run("dhel-kcl", "configure", "narrow.yaml", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    said = "warning: datasets.digits.encoder: the projector's hidden layer has 8 channels, so z varies in at most 8 of"
    assert (said in " ".join(outcome.stderr.split())) == warned
    assert ("warning" in outcome.stderr) == warned


def test_configure_resolves_every_default_and_lists_the_runs(experiment: Path) -> None:
    resolved = experiment / "results" / "tiny" / "config.yaml"
    assert load_config(resolved) == load_config(TINY)
    assert yaml.safe_load(resolved.read_text(encoding="utf-8"))["compute"]["checkpoint_every_steps"] == 500
    listed = run("dhel-kcl", "runs", "results/tiny", cwd=experiment).stdout.split()
    assert listed == list(load_config(TINY).runs)


def test_configuring_again_changes_nothing(experiment: Path) -> None:
    files = [path for path in experiment.rglob("*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in files]
    assert run("dhel-kcl", "configure", str(TINY), cwd=experiment).returncode == 0
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["runs", "results/nowhere"], "results/nowhere/config.yaml: missing; experiments here: results/tiny"),
        (["configure", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["data", "results/tiny", "mnist", "train"], "data set 'mnist' is not in experiment 'tiny'; it has digits"),
        (["data", "results/tiny", "digits", "dev"], "split 'dev': data set digits has train, test"),
        (["pretrain", "results/tiny", "digits-x"], "run 'digits-x' is not in experiment 'tiny'; one of its runs is"),
        (
            ["features", "results/tiny", "digits-dhel-temperature0.3-bs256-seed0"],
            "encoder.safetensors: missing; run the rule that writes it",
        ),
        (["collect", "results/tiny"], "outcome.json: missing; run the rule that writes it"),
        (["watch", "results/tiny", RUN, "--once"], "training_log.csv: missing; it appears when the first epoch"),
        (["render", "results/tiny", "fig_x"], "paper_figures: no figure or table scripts here; run this in the root"),
        (["show", "results/tiny"], "table_linear_accuracy.md: missing; run snakemake for results/tiny first"),
        (
            ["audit", "results/tiny"],
            "paper_figures: no figure or table scripts here; run this in the root of the repository",
        ),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_with_one_line_that_names_the_remedy(
    experiment: Path, command: list[str], said: str
) -> None:
    outcome = run("dhel-kcl", *command, cwd=experiment)
    assert outcome.returncode == 1
    *_, last = outcome.stderr.splitlines()
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in outcome.stderr


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ["data", "digits", "train"],
        ["pretrain", RUN],
        ["measure", RUN],
        ["features", RUN],
        ["evaluate", RUN],
        ["augmented-probe", RUN],
        ["corruptions", RUN],
        ["analyse", RUN],
        ["collect"],
        ["theory"],
        ["render", "table_theory"],
        ["watch", RUN, "--once"],
        ["explorer"],
        ["report"],
        ["crate"],
    ],
    ids=lambda command: str(command[0]),
)
@pytest.mark.parametrize("folder", ["a release", "a folder of somebody's own"])
def test_a_command_that_writes_leaves_a_folder_alone_that_is_no_experiments(
    command: list[str], folder: str, tmp_path: Path
) -> None:
    (tmp_path / "paper_figures").symlink_to(REPOSITORY / "paper_figures")
    shutil.copytree(REPOSITORY / "docs" / "results" / "theory", tmp_path / "folder")
    if folder == "a folder of somebody's own":
        (tmp_path / "folder" / "SHA256SUMS").unlink()
        (tmp_path / "folder" / "manifests" / "configure.json").unlink()
    before = contents(tmp_path)
    name, *arguments = command
    outcome = run("dhel-kcl", name, "folder", *arguments, cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    said = {
        "a release": "error: folder: a release, which stays as it was published; give the experiment's folder",
        "a folder of somebody's own": "error: folder/manifests/configure.json: missing, so this may not be an exp",
    }
    assert outcome.stderr.startswith(said[folder])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", [["runs"], ["trace", "fig_minimisers"]], ids=lambda command: str(command[0]))
def test_a_release_can_be_read(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "paper_figures").symlink_to(REPOSITORY / "paper_figures")
    shutil.copytree(REPOSITORY / "docs" / "results" / "theory", tmp_path / "folder")
    before = contents(tmp_path)
    name, *arguments = command
    outcome = run("dhel-kcl", name, "folder", *arguments, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout
    assert contents(tmp_path) == before


def _edit(folder: Path) -> None:
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("# mine\n")


def _release(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "output", "said"),
    [
        (_release, "results/tiny", "results/tiny: a release, which stays as it was published"),
        (_release, "results/tiny/more", "results/tiny/more: inside"),
        (lambda _: None, "results/tiny/more", "results/tiny/more: inside"),
        (_edit, "results/tiny", "results/tiny/config.yaml: not what `dhel-kcl configure` wrote there, and would be l"),
        (
            lambda folder: (folder / "manifests" / "configure.json").write_text("{}", encoding="utf-8"),
            "results/tiny",
            "results/tiny/manifests/configure.json: not a manifest; delete it",
        ),
        (lambda _: None, "mine", "mine/config.yaml: not what `dhel-kcl configure` wrote there, and would be lost"),
        (lambda _: None, "links", "links/config.yaml: not what `dhel-kcl configure` wrote there, and would be lost"),
    ],
    ids=["release", "inside a release", "inside an experiment", "edited", "manifest", "foreign", "link"],
)
@pytest.mark.parametrize("config", ["the same", "another"])
def test_configure_writes_over_nothing_that_it_did_not_write(
    experiment: Path, change: Callable[[Path], object], output: str, said: str, config: str
) -> None:
    change(experiment / "results" / "tiny")
    (experiment / "mine").mkdir()
    shutil.copy(TINY, experiment / "mine" / "config.yaml")
    (experiment / "links").mkdir()
    (experiment / "links" / "config.yaml").symlink_to("nowhere")
    before = contents(experiment)
    source = TINY if config == "the same" else REPOSITORY / "config" / "quickstart.yaml"
    outcome = run("dhel-kcl", "configure", str(source), "--output", output, cwd=experiment)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith(f"error: {said}")
    assert contents(experiment) == before
    assert (experiment / "links" / "config.yaml").is_symlink()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("theory.csv", "p/theory.csv: jobs would overwrite it, but none of them made it; choose another folder"),
        ("runs/a/encoder.safetensors", "p/runs/a/encoder.safetensors: jobs would overwrite it"),
        ("logs/theory.log", "p/logs/theory.log: jobs would overwrite it"),
        ("manifests/theory.json", "p/manifests/theory.json: jobs would overwrite it"),
        ("manifests/configure.json", "p/manifests/configure.json: not valid JSON"),
        ("elsewhere/configure.json", "p/manifests: a link, through which files of others would be replaced"),
    ],
)
def test_configure_refuses_a_folder_in_which_jobs_would_write_over_what_they_did_not_make(
    name: str, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine", encoding="utf-8")
    if name.startswith("elsewhere"):
        (folder / "manifests").symlink_to("elsewhere")
    before = contents(tmp_path)
    with pytest.raises(InputError) as refused:
        cli.configure(str(TINY), folder)
    assert str(refused.value).startswith(f"{tmp_path}/{said}")
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == before


def test_configure_refuses_a_manifest_of_another_job_in_the_place_of_its_own(tmp_path: Path) -> None:
    cli.configure(str(TINY), tmp_path / "p")
    manifest = Layout(tmp_path / "p").manifest("configure")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"configure"', '"theory"', 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"not a manifest of `dhel-kcl configure`, and would be lost; move it away"):
        cli.configure(str(TINY), tmp_path / "p")


def test_configure_goes_on_where_only_what_jobs_made_or_nobody_writes_is_left(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "p")
    cli.configure(str(TINY), layout.root)
    outputs = {"theory": layout.theory}
    with record(layout.manifest("theory"), stage="", subject="", settings={}, source="", inputs={}, outputs=outputs):
        layout.theory.write_text("numbers", encoding="utf-8")
    layout.config.unlink()
    cli.configure(str(TINY), layout.root)
    for path in (layout.config, layout.manifest("configure")):
        path.unlink()
    cli.configure(str(TINY), layout.root)
    assert load_config(layout.config) == load_config(TINY)
    layout.theory.write_text("mine", encoding="utf-8")
    layout.config.unlink()
    with pytest.raises(InputError, match="jobs would overwrite it"):
        cli.configure(str(TINY), layout.root)
    (tmp_path / "q" / ".running").mkdir(parents=True)
    for name in ("README.md", "notes.txt", ".running/host-1"):
        (tmp_path / "q" / name).touch()
    cli.configure(str(TINY), tmp_path / "q")


def test_configure_reads_a_pipe_once_and_records_no_input(tmp_path: Path) -> None:
    command = ["bash", "-c", '"$@" <(cat "$0") --output p', str(TINY), *PROGRAM, "configure"]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert load_manifest(Layout(tmp_path / "p").manifest("configure")).inputs == {}
    os.mkfifo(tmp_path / "named")
    with pytest.raises(InputError, match=rf"^{tmp_path}/named: expected a file, not a pipe or a device"):
        cli.configure(str(tmp_path / "named"), tmp_path / "q")


def test_an_audit_writes_only_into_an_experiments_folder(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "p")
    layout.root.mkdir()
    for path in (layout.config, layout.audit, layout.audit_problems):
        path.write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    begin(layout)
    with pytest.raises(InputError, match=r"p: not made by `dhel-kcl configure`, so nothing was written into it"):
        conclude(Outcome(problems=["bad"]), layout)
    assert contents(tmp_path) == before


def test_drawings_of_a_run_are_not_written_through_a_link(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(experiment / "results" / "tiny")
    layout.run(RUN).mkdir(parents=True)
    layout.training_log(RUN).touch()
    (experiment / "mine").mkdir()
    layout.live(RUN).symlink_to(experiment / "mine")
    monkeypatch.setattr("dhel_kcl.results.collect.training_rows", lambda *_: pd.DataFrame({"x": [1.0]}))
    with pytest.raises(InputError, match="live: a link, through which files of others would be replaced; remove it"):
        cli.watch(layout.root, RUN, once=True)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("link.log", "link.log: --log writes a file, and this is a link, a pipe or a device"),
        ("results/tiny/mine.log", "results/tiny/mine.log: inside {here}/results/tiny, an experiment"),
        ("results/tiny/runs/a.log", "results/tiny/runs/a.log: inside {here}/results/tiny, an experiment"),
        ("results/tiny/logs/../a.log", "results/tiny/logs/../a.log: inside {here}/results/tiny, an experiment"),
        ("to_release/a.log", "to_release/a.log: inside {here}/release, a release"),
        ("release/logs/a.log", "release/logs/a.log: inside {here}/release, a release"),
    ],
)
def test_a_log_is_not_written_through_a_link_nor_among_what_others_record(
    log: str, said: str, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (experiment / "results" / "tiny" / "logs").mkdir()
    (experiment / "release").mkdir()
    for name in ("config.yaml", "SHA256SUMS"):
        (experiment / "release" / name).touch()
    (experiment / "to_release").symlink_to("release")
    (experiment / "precious").write_text("mine", encoding="utf-8")
    (experiment / "link.log").symlink_to("precious")
    monkeypatch.chdir(experiment)
    before = contents(experiment)
    with pytest.raises(InputError) as refused:
        cli._options(Path(log))
    assert str(refused.value).startswith(said.format(here=experiment))
    assert contents(experiment) == before


def test_the_log_of_a_process_is_checked_under_its_own_name(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (experiment / "precious").write_text("mine", encoding="utf-8")
    (experiment / "a.process3.log").symlink_to("precious")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(InputError, match=r"a\.process3\.log: --log writes a file"):
        cli._options(experiment / "a.log")
    assert (experiment / "precious").read_text(encoding="utf-8") == "mine"


def test_show_prints_no_control_characters_and_commands_that_can_be_copied(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = experiment / "results" / "a \x1b[31m b"
    (experiment / "results" / "tiny").rename(folder)
    (folder / "tables").mkdir()
    (folder / "tables" / "table_linear_accuracy.md").write_text("0.5 \x1b[2J", encoding="utf-8")
    monkeypatch.chdir(REPOSITORY)
    cli.show(folder)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert f"dhel-kcl audit '{folder}'".replace("\x1b", "\\x1b") in said


def test_configure_changes_an_experiment_and_goes_on_where_it_was_killed(experiment: Path) -> None:
    folder, other = experiment / "results" / "tiny", REPOSITORY / "config" / "quickstart.yaml"
    assert run("dhel-kcl", "configure", str(other), "--output", str(folder), cwd=experiment).returncode == 0
    assert load_config(folder / "config.yaml") == load_config(other)
    (folder / "manifests" / "configure.json").unlink()
    before = contents(folder)
    assert run("dhel-kcl", "configure", str(other), "--output", str(folder), cwd=experiment).returncode == 0
    after = contents(folder)
    assert after[folder / "config.yaml"] == before[folder / "config.yaml"]
    assert folder / "manifests" / "configure.json" in after


def test_a_log_replaces_no_file_but_a_log(experiment: Path) -> None:
    config = experiment / "results" / "tiny" / "config.yaml"
    before = config.read_bytes()
    outcome = run("dhel-kcl", "--log", str(config), "runs", "results/tiny", cwd=experiment)
    assert outcome.returncode == 1
    assert outcome.stderr == f"error: {config}: --log overwrites a file, so it accepts only names that end in .log\n"
    assert config.read_bytes() == before


def test_a_run_can_be_watched_until_it_ends(copy_of_finished: Path) -> None:
    shutil.copy(REPOSITORY / "paper_figures" / "fig_training.py", copy_of_finished / "paper_figures")
    folder = copy_of_finished / "results" / "tiny" / "runs" / RUN
    log, outcome = folder / "training_log.csv", folder / "outcome.json"
    lines, end = log.read_text(encoding="utf-8").splitlines(keepends=True), outcome.read_text(encoding="utf-8")
    log.write_text("".join(lines[:2]), encoding="utf-8")
    outcome.unlink()
    command = [str(Path(sys.executable).parent / "dhel-kcl"), "watch", "results/tiny", RUN, "--every", "0.05"]
    with subprocess.Popen(command, cwd=copy_of_finished, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == f"results/tiny/runs/{RUN}/live/fig_training.png: 1 of 2 epochs\n"
        log.write_text("".join(lines), encoding="utf-8")
        assert watching.stdout.readline().endswith("fig_training.png: 2 of 2 epochs\n")
        outcome.write_text(end, encoding="utf-8")
        assert watching.wait(timeout=300) == 0
    assert pd.read_csv(folder / "live" / "fig_training.csv")["epoch"].max() == 2


PROGRAM = (sys.executable, "-m", "dhel_kcl")


def test_the_installed_command_starts_where_python_m_does() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["dhel-kcl"].partition(":")
    assert module == "dhel_kcl.__main__"
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("module", ["dhel_kcl", "dhel_kcl.cli"])
def test_the_command_line_is_a_module_too(module: str, experiment: Path) -> None:
    outcome = run("python", "-m", module, "runs", "results/tiny", cwd=experiment)
    assert outcome.stdout.split() == list(load_config(TINY).runs)


def in_the_foreground() -> None:
    """Hear Ctrl-C, as a process that a terminal starts does, whatever the tests' own process does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def in_the_background() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start(
    *command: str, cwd: Path, how: Callable[[], None] = in_the_foreground, **environment: str
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=how,
    )


def interrupted_when_it_says(line: str, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Press Ctrl-C when a process has printed a line; its status, and what else it says."""
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{line}\n", process.communicate()
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=300)
    return process.returncode, said, errors


def test_ctrl_c_while_modules_are_imported_ends_in_one_line(tmp_path: Path) -> None:
    slow = "try:\n    print('importing', flush=True)\n    import time; time.sleep(600)\nfinally:\n    print('hurt')\n"
    (tmp_path / "typer.py").write_text(slow, encoding="utf-8")
    process = start(*PROGRAM, "--help", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert interrupted_when_it_says("importing", process) == (130, "", "interrupted\n")


def test_ctrl_c_while_a_command_works_lets_it_clean_up_and_ends_in_one_line(tmp_path: Path) -> None:
    program = """
import sys, time
from dhel_kcl import cli
from dhel_kcl.jobs import configure
def read():
    try: print("reading", flush=True); time.sleep(600)
    finally: print("cleaned up")
configure._standard_input = read
sys.argv[1:] = ["configure", "-"]
cli.main()
"""
    process = start(sys.executable, "-c", program, cwd=tmp_path)
    assert interrupted_when_it_says("reading", process) == (130, "cleaned up\n", "interrupted\n")


def test_a_process_in_the_background_does_not_hear_ctrl_c(tmp_path: Path) -> None:
    deaf = "import os, signal; os.kill(os.getpid(), signal.SIGINT); raise SystemExit('went on')\n"
    (tmp_path / "typer.py").write_text(deaf, encoding="utf-8")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    process = start(*PROGRAM, "--help", cwd=tmp_path, how=in_the_background, PYTHONPATH=path)
    assert process.communicate() == ("", "went on\n")


def redirected(redirection: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The command line with its standard streams as a shell makes them."""
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", *PROGRAM, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("<&-", "error: standard input: closed; give the configuration's file, or its text on standard input\n"),
        ("<binary", "error: standard input: cannot be read (not UTF-8 text); give the configuration's file\n"),
    ],
)
def test_a_standard_input_without_text_is_one_line(redirection: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"name: \xff\xfe\x00")
    outcome = redirected(redirection, "configure", "-", cwd=tmp_path)
    assert (outcome.returncode, outcome.stderr) == (1, said)
    assert [path.name for path in tmp_path.iterdir()] == ["binary"]


@pytest.mark.parametrize("arguments", [["runs", "results/tiny"], ["--help"]], ids=lambda a: a[0])
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_an_output_that_is_full_or_closed_is_at_most_one_line(
    redirection: str, arguments: list[str], experiment: Path
) -> None:
    before = {path: path.read_bytes() for path in experiment.rglob("*") if path.is_file()}
    outcome = redirected(redirection, *arguments, cwd=experiment)
    full = redirection == ">/dev/full"
    assert outcome.returncode == int(full)
    said = "error: a file or the output: No space left on device; check the disk and permissions\n"
    assert outcome.stderr == (said if full else "")
    assert {path: path.read_bytes() for path in experiment.rglob("*") if path.is_file()} == before


def test_a_file_never_takes_the_number_of_a_stream_that_is_closed(tmp_path: Path) -> None:
    probe = (
        "import dhel_kcl.__main__ as m; m._open_standard_streams(); f = open('file', 'w'); raise SystemExit(f.fileno())"
    )
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", probe]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode > 2


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("full.log", "full.log: --log writes a file, and this is a link, a pipe or a device; choose another name"),
        ("folder.log", "folder.log: Is a directory; check the disk and permissions"),
        ("results", "results: --log overwrites a file, so it accepts only names that end in .log"),
        ("file/below.log", "file: File exists; check the disk and permissions"),
    ],
)
def test_a_log_that_cannot_be_written_is_one_line_on_the_terminal(log: str, said: str, experiment: Path) -> None:
    (experiment / "file").touch()
    (experiment / "folder.log").mkdir()
    (experiment / "full.log").symlink_to("/dev/full")
    outcome = redirected("", "--log", log, "runs", "results/tiny", cwd=experiment)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (1, "", f"error: {said}\n")


def test_compiled_code_is_not_taken_from_a_folder_that_others_may_have_made(experiment: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["compute"]["compile"] = True
    (experiment / "compile.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (experiment / f"dhel-kcl-torchinductor-{os.geteuid()}").symlink_to(experiment)
    assert run("dhel-kcl", "configure", "compile.yaml", "--output", "results/compiled", cwd=experiment).returncode == 0
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    outcome = subprocess.run(
        [*PROGRAM, "pretrain", "results/compiled", RUN],
        cwd=experiment,
        env=environment | {"TMPDIR": str(experiment)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"error: {experiment}/dhel-kcl-torchinductor-")
    assert outcome.stderr.count("\n") == 1


def ascii_locale(folder: Path) -> dict[str, str]:
    return {"LC_ALL": "C"}


def latin_1_locale(folder: Path) -> dict[str, str]:
    if shutil.which("localedef") is None:
        pytest.skip("no localedef makes a locale")
    made = subprocess.run(
        ["localedef", "--no-archive", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "latin_1")],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"localedef has no sources: {made.stderr.strip()}")
    return {"LC_ALL": "latin_1", "LOCPATH": str(folder)}


@pytest.mark.parametrize("other_locale", [ascii_locale, latin_1_locale])
def test_names_that_are_not_ascii_are_the_same_bytes_under_every_locale(
    other_locale: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "locales").mkdir()
    elsewhere = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **other_locale(tmp_path / "locales")}
    probe = [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"]
    said = subprocess.run(probe, env=os.environ | elsewhere, capture_output=True, text=True, check=True).stdout
    assert said.strip() != "utf-8", "the locale is another one"
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["datasets"][0]["data"] = {"kind": "imagefolder", "root": "bilder-ä"}
    values["datasets"][0]["optimizer"]["learning_rate"] = 0.1
    values["datasets"][0]["probe"]["batch_size"] = values["batch_sizes"][0] = 2
    values["batch_sizes"] = values["batch_sizes"][:1]
    values["evaluation"]["validation_fraction"] = 0.5
    seen = []
    for name, environment in {"utf-8": {"PYTHONUTF8": "1"}, "other": elsewhere}.items():
        folder = tmp_path / name
        for split in ("train", "test"):
            for label, kind in enumerate(("Äpfel", "œufs", "日本")):
                (folder / "bilder-ä" / split / kind).mkdir(parents=True)
                for number in (1, 2):
                    image = Image.new("RGB", (8, 8), (label, number, 0))
                    image.save(folder / "bilder-ä" / split / kind / f"{number}.png")
        (folder / "é.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        said = b""
        for arguments in (
            ["configure", "é.yaml", "--output", "résultats/日本"],
            ["runs", "résultats/日本"],
            ["data", "résultats/日本", "digits", "train"],
            ["runs", "résultats/où"],
        ):
            outcome = subprocess.run(
                [os.fsencode(part) for part in (*PROGRAM, *arguments)],
                cwd=folder,
                env=os.environ | environment,
                capture_output=True,
                check=False,
            )
            assert outcome.returncode == int("résultats/où" in arguments), outcome.stderr
            said += outcome.stdout + (outcome.stderr if outcome.returncode else b"")
        files = (folder / "résultats").rglob("*")
        written = {path.relative_to(folder): path.read_bytes() for path in files if path.is_file()}
        manifests = [path for path in written if "manifest" in str(path)]
        paths = [[line for line in written.pop(path).splitlines() if b'"path"' in line] for path in manifests]
        seen.append((said, written, manifests, paths))
    assert seen[0] == seen[1]
    assert "résultats/où/config.yaml: missing" in seen[1][0].decode()
    assert "résultats/日本/data/digits/train.beton" in seen[1][0].decode()


def test_a_training_outlives_a_manifest_that_cannot_be_written(
    digits_beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "results")
    configure(load_config(TINY), layout, TINY)
    beton = layout.beton("digits", "train")
    beton.parent.mkdir(parents=True)
    for path in (digits_beton, sidecar_path(digits_beton)):
        shutil.copy(path, beton.parent)

    def no_space(path: Path, value: object) -> None:
        raise InputError(f"{path}: no space left; free some and run the same command again")

    with monkeypatch.context() as patch:
        patch.setattr("dhel_kcl.jobs.manifest.write_json", no_space)
        with pytest.raises(InputError, match="no space left"):
            cli._do(STAGES["pretrain"], layout.root, RUN)
    assert list((layout.run(RUN) / "checkpoints").rglob("step-*.pt"))
    monkeypatch.delattr("dhel_kcl.training.pretrain.train_step")  # nothing is trained again
    cli._do(STAGES["pretrain"], layout.root, RUN)
    assert layout.run_manifest("pretrain", RUN).exists()
    assert not (layout.run(RUN) / "checkpoints").exists()


def test_brackets_in_a_folder_s_name_are_no_markup(experiment: Path) -> None:
    folder = "results/[/b]tiny[red]"
    (experiment / folder).parent.mkdir()
    (experiment / "results" / "tiny").rename(experiment / folder)
    (experiment / folder / "tables").mkdir()
    (experiment / folder / "tables" / "table_linear_accuracy.md").write_text("0.5 \xb1 0.1", encoding="utf-8")
    (experiment / "paper_figures").symlink_to(REPOSITORY / "paper_figures")
    outcome = run("dhel-kcl", "show", folder, cwd=experiment)
    assert outcome.returncode == 0, outcome.stderr
    assert f"report   {folder}/report.html" in outcome.stdout


def test_output_that_an_encoding_lacks_letters_for_is_escaped(experiment: Path) -> None:
    (experiment / "results" / "tiny" / "tables").mkdir()
    table = experiment / "results" / "tiny" / "tables" / "table_linear_accuracy.md"
    table.write_text("0.5 \xb1 0.1", encoding="utf-8")
    (experiment / "paper_figures").symlink_to(REPOSITORY / "paper_figures")
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        for interpreter in ([sys.executable], [sys.executable, "-X", "utf8=0"]):
            outcome = subprocess.run(
                [*interpreter, "-m", "dhel_kcl", "show", "results/tiny"],
                cwd=experiment,
                env=os.environ | environment,
                capture_output=True,
                check=False,
            )
            assert (outcome.returncode, outcome.stderr) == (0, b"")
            assert "0.5 \xb1 0.1".encode() in outcome.stdout or b"0.5 \\xb1 0.1" in outcome.stdout


def test_a_log_that_is_a_pipe_is_refused_instead_of_waited_for(experiment: Path) -> None:
    os.mkfifo(experiment / "pipe.log")
    outcome = redirected("", "--log", "pipe.log", "runs", "results/tiny", cwd=experiment)
    said = "error: pipe.log: --log writes a file, and this is a link, a pipe or a device; choose another name\n"
    assert (outcome.returncode, outcome.stderr) == (1, said)


def test_a_rank_that_is_no_number_names_no_file(experiment: Path) -> None:
    command = [*PROGRAM, "--log", "rank.log", "runs", "results/tiny"]
    environment = os.environ | {"RANK": "../../x"}
    assert subprocess.run(command, cwd=experiment, env=environment, check=False).returncode == 0
    assert (experiment / "rank.log").read_text(encoding="utf-8").split() == list(load_config(TINY).runs)


def test_a_message_with_a_terminal_s_escape_is_printed_escaped(experiment: Path) -> None:
    outcome = run("dhel-kcl", "runs", "results/\x1b[31m", cwd=experiment)
    assert "\\x1b[31m" in outcome.stderr
    assert "\x1b" not in outcome.stderr
