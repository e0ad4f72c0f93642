"""Code that git does not look into counts as uncommitted."""

import os
import time
from pathlib import Path

import pytest
from test_commit import clone, commit_all, git, state  # noqa: F401 # clone is a fixture


@pytest.mark.parametrize("folder", ["src/dhel_kcl/extra", "paper_figures/mylib"])
@pytest.mark.parametrize("kind", ["repository", "link to a folder", "link to a file", "compiled"])
def test_hidden_code_is_no_committed_code(clone: Path, tmp_path: Path, folder: str, kind: str) -> None:  # noqa: F811
    (clone / ".git" / "info" / "exclude").write_text(f"{folder}\n{folder}*\n", encoding="utf-8")
    assert state(clone / "src")[1] is False
    place, elsewhere = clone / folder, tmp_path / "elsewhere"
    made = place if kind == "repository" else elsewhere
    made.mkdir()
    (made / "__init__.py").write_text("A = 1\n", encoding="utf-8")
    match kind:
        case "repository":
            commit_all(place)
        case "link to a folder":
            place.symlink_to(elsewhere)
        case "link to a file":
            place.with_suffix(".txt").symlink_to(elsewhere / "__init__.py")
        case "compiled":
            place.with_suffix(".so").touch()
    assert state(clone / "src")[1] is True


def test_a_change_at_an_old_time_is_seen_whatever_the_repository_leaves_out(clone: Path) -> None:  # noqa: F811
    file = clone / "paper_figures" / "fig_training.py"
    os.utime(file, (1_700_000_000, 1_700_000_000))
    git(clone, "status")
    git(clone, "config", "core.trustctime", "false")
    git(clone, "config", "core.checkStat", "minimal")
    time.sleep(1.1)  # git may keep seconds alone
    content = file.read_bytes()
    file.write_bytes(content.replace(b"a", b"b", 1))
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert state(clone / "src")[1] is True
