"""A folder whose name others can guess is used only if nobody else can have put anything into it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dhel_kcl.errors import InputError
from dhel_kcl.files import private_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_made_once_for_each_purpose_and_is_this_users_alone(temporary: Path) -> None:
    folder = private_folder("gpus")
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "kept").touch()
    assert list(private_folder("gpus").iterdir()) == [folder / "kept"]
    assert private_folder("numba") != folder


def a_link_to_a_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def a_folder_that_others_can_enter(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def a_folder_of_somebody_else(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)


def a_file(path: Path) -> None:
    path.touch(mode=0o700)


@pytest.mark.parametrize(
    "foreign",
    [a_link_to_a_folder, a_link_to_nothing, a_folder_that_others_can_enter, a_folder_of_somebody_else, a_file],
)
def test_what_somebody_else_may_have_made_is_refused_in_one_line(
    foreign: Callable[[Path], None], temporary: Path
) -> None:
    path = temporary / f"dhel-kcl-gpus-{os.geteuid()}"
    foreign(path)
    with pytest.raises(InputError, match="set TMPDIR to another folder") as caught:
        private_folder("gpus")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (temporary / "nowhere").exists()


def test_a_place_that_cannot_be_written_is_named(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "file"))
    with pytest.raises(InputError, match=r"file/dhel-kcl-gpus-\d+: cannot be created \(Not a directory\); set TMPDIR"):
        private_folder("gpus")
