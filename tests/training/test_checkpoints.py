"""A checkpoint is whole or it is not used, and an old one outlives a failure to write a new one."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dhel_kcl.errors import InputError
from dhel_kcl.files import sha256_json
from dhel_kcl.training.checkpoints import Checkpoints

KEY, OTHER = sha256_json("settings"), sha256_json("other settings")


def state(step: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(step)), "step": step}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path, KEY, kept=2)
    for step in (5, 10, 15):
        checkpoints.save(step, state(step))
    return checkpoints


def newest_step(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.newest()
    return None if found is None else found["step"]


def test_the_newest_few_are_kept_and_the_newest_is_read(checkpoints: Checkpoints) -> None:
    assert [path.name[:13] for path in checkpoints.paths()] == ["step-00000015", "step-00000010"]
    found = checkpoints.newest()
    assert found is not None
    assert torch.equal(found["weights"], state(15)["weights"])


def test_anyone_can_read_one_with_torch_load(checkpoints: Checkpoints) -> None:
    assert torch.load(checkpoints.paths()[0], weights_only=True)["step"] == 15


@pytest.mark.parametrize("damage", ["empty", "truncated", "one bit"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(
    damage: str, checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoints.paths()[0]
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"empty": 0, "truncated": 1000}.get(damage, len(content))])
    assert newest_step(checkpoints) == 10
    assert f"{path}: damaged" in capsys.readouterr().err
    assert not path.exists(), "it would crowd out sound ones"
    checkpoints.paths()[0].write_bytes(b"")
    assert newest_step(checkpoints) is None


def test_one_that_holds_no_state_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, KEY, kept=1)
    checkpoints.save(1, [1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"step-00000001-.*: not a checkpoint of this program: it holds no training state"
    ):
        checkpoints.newest()


def test_those_of_other_settings_are_said_left_alone_and_not_used(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Checkpoints(tmp_path, OTHER, kept=1)
    assert newest_step(other) is None
    assert "other settings, code or images; they are not used" in capsys.readouterr().err
    other.save(1, state(1))
    assert newest_step(other) == 1
    other.discard()
    assert newest_step(checkpoints) == 15


def test_a_full_disk_is_an_error_that_leaves_the_earlier_ones(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(InputError, match=r"step-00000020-.*: no space left .*; free some"):
            checkpoints.save(20, state(20))
    assert newest_step(checkpoints) == 15
    assert sorted(path.suffix for path in checkpoints.own.iterdir()) == [".pt", ".pt"]
    assert not list(checkpoints.own.glob(".*"))


def test_a_folder_that_cannot_be_written_is_an_error_that_leaves_the_earlier_ones(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be written .*; check the folder's permissions"):
        Checkpoints(blocked, KEY, kept=2).save(1, state(1))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_error_that_leaves_the_earlier_ones(checkpoints: Checkpoints) -> None:
    checkpoints.own.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        checkpoints.save(20, state(20))
    assert newest_step(checkpoints) == 15


def test_they_go_when_the_run_is_over(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.discard()
    assert not tmp_path.exists()
