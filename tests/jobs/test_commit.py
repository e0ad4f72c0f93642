"""Which commit a job ran: that of the code itself, and unknown where git does not tell."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from workspace import REPOSITORY

CODE = ("src", "paper_figures", "workflow", "Snakefile", "envs")
WHO = ("-c", "user.name=A", "-c", "user.email=a@example.org")


def git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *WHO, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def commit_all(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "HEAD").strip()


def state(source: Path, environment: Mapping[str, str] | None = None) -> tuple[str | None, bool | None]:
    """What the package in a folder records of its commit."""
    program = "import json; from dhel_kcl.jobs.manifest import _git_state; print(json.dumps(_git_state()))"
    asked = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    commit, dirty = json.loads(asked.stdout)
    return commit, dirty


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of the code, all of it committed."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in CODE:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    commit_all(folder)
    return folder


@pytest.fixture
def around(tmp_path: Path) -> Path:
    """Somebody's repository, which does not track the package that is installed in it."""
    folder = tmp_path / "around"
    installed = folder / "lib" / "site-packages"
    shutil.copytree(REPOSITORY / "src", installed, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("lib/\n", encoding="utf-8")
    commit_all(folder)
    return installed


def test_committed_code_has_its_commit_and_is_clean(clone: Path) -> None:
    assert state(clone / "src") == (git(clone, "rev-parse", "HEAD").strip(), False)


def an_edit(clone: Path) -> None:
    with (clone / "src" / "dhel_kcl" / "cli.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")


def a_deleted_rule(clone: Path) -> None:
    (clone / "workflow" / "rules" / "paper.smk").unlink()


def an_edit_that_is_staged(clone: Path) -> None:
    an_edit(clone)
    git(clone, "add", "src")


def a_new_file_where_git_shows_none(clone: Path) -> None:
    git(clone, "config", "status.showUntrackedFiles", "no")
    (clone / "src" / "dhel_kcl" / "new.py").touch()


def a_new_script_that_is_ignored(clone: Path) -> None:
    (clone / ".git" / "info" / "exclude").write_text("paper_figures/fig_mine.py\n", encoding="utf-8")
    (clone / "paper_figures" / "fig_mine.py").touch()


def an_edit_of_a_file_taken_for_unchanged(clone: Path) -> None:
    git(clone, "update-index", "--assume-unchanged", "src/dhel_kcl/cli.py")
    an_edit(clone)


def an_edit_of_a_file_left_alone(clone: Path) -> None:
    git(clone, "update-index", "--skip-worktree", "src/dhel_kcl/cli.py")
    an_edit(clone)


def another_tree_in_place_of_the_commit(clone: Path) -> None:
    commit = git(clone, "rev-parse", "HEAD").strip()
    an_edit(clone)
    git(clone, "commit", "-qam", "edited")
    edited = git(clone, "rev-parse", "HEAD").strip()
    git(clone, "reset", "-q", "--soft", commit)
    git(clone, "replace", commit, edited)
    assert git(clone, "status", "--porcelain") == "", "this is what git shows by default"


@pytest.mark.parametrize(
    "change",
    [
        an_edit,
        a_deleted_rule,
        an_edit_that_is_staged,
        a_new_file_where_git_shows_none,
        a_new_script_that_is_ignored,
        an_edit_of_a_file_taken_for_unchanged,
        an_edit_of_a_file_left_alone,
        another_tree_in_place_of_the_commit,
    ],
)
def test_changed_code_is_not_clean_however_git_is_told_to_hide_it(change: Callable[[Path], None], clone: Path) -> None:
    commit = git(clone, "rev-parse", "HEAD").strip()
    change(clone)
    assert state(clone / "src") == (commit, True)


def test_files_that_are_no_code_leave_it_clean(clone: Path) -> None:
    for name in ("results/tiny/config.yaml", "notes.txt"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert state(clone / "src")[1] is False


def test_a_repository_around_an_installed_package_says_nothing_about_its_code(around: Path) -> None:
    assert state(around) == (None, None)


def test_a_repository_that_tracks_the_installed_package_tells_its_changes(around: Path) -> None:
    repository = around.parents[1]
    git(repository, "add", "--force", "lib")
    git(repository, "commit", "-qm", "the environment")
    assert state(around) == (git(repository, "rev-parse", "HEAD").strip(), False)
    with (around / "dhel_kcl" / "cli.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert state(around)[1] is True


def test_no_program_of_a_repository_around_the_package_is_run(around: Path, tmp_path: Path) -> None:
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n", encoding="utf-8")
    monitor.chmod(0o755)
    git(around.parents[1], "config", "core.fsmonitor", str(monitor))
    git(around.parents[1], "status")
    assert (tmp_path / "ran").exists(), "git by itself runs it"
    (tmp_path / "ran").unlink()
    assert state(around) == (None, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("names", [("GIT_DIR", "GIT_WORK_TREE"), ("GIT_INDEX_FILE",)])
def test_the_repository_is_that_of_the_code_whatever_the_environment_names(
    names: tuple[str, ...], clone: Path, around: Path
) -> None:
    an_edit(clone)
    repository = around.parents[1]
    places = {
        "GIT_DIR": str(repository / ".git"),
        "GIT_WORK_TREE": str(repository),
        "GIT_INDEX_FILE": str(repository / ".git" / "index"),
    }
    environment = {name: places[name] for name in names}
    assert state(clone / "src", environment) == (git(clone, "rev-parse", "HEAD").strip(), True)
    assert state(around, {"GIT_DIR": str(clone / ".git"), "GIT_WORK_TREE": str(around)}) == (None, None)


def test_without_git_or_a_repository_the_commit_is_unknown(clone: Path, tmp_path: Path) -> None:
    assert state(clone / "src", {"PATH": str(tmp_path)}) == (None, None)
    shutil.rmtree(clone / ".git")
    assert state(clone / "src") == (None, None)


def test_a_repository_without_a_commit_has_none(clone: Path) -> None:
    shutil.rmtree(clone / ".git")
    git(clone, "init", "-q")
    git(clone, "add", ".")
    assert state(clone / "src") == (None, None)


def test_where_git_names_the_commit_but_fails_on_the_changes_they_are_unknown(clone: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    real = shutil.which("git")
    program.write_text(
        f'#!/bin/sh\nfor word in "$@"; do [ "$word" = status ] && exit 128; done\nexec {real} "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    commit = git(clone, "rev-parse", "HEAD").strip()
    assert state(clone / "src", {"PATH": f"{program.parent}:{os.environ['PATH']}"}) == (commit, None)


def test_a_repository_of_another_user_which_git_refuses_leaves_it_unknown(clone: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a repository away")
    os.chown(clone, 65534, 65534)
    os.chown(clone / ".git", 65534, 65534)
    assert state(clone / "src", {"HOME": str(tmp_path)}) == (None, None)
