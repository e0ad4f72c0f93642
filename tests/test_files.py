"""Files are written whole or not at all."""

import errno
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.files import TEMPORARY, atomic_path, read_json, remove_abandoned, sha256_file, sha256_json, write_json
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.paper.explorer import read_rows
from dhel_kcl.paper.render import read_points
from dhel_kcl.provenance.seal import read_seal
from dhel_kcl.results.measurements import read_training_log
from dhel_kcl.training.checkpoints import Checkpoints
from dhel_kcl.training.tensor_files import read_tensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(FileNotFoundError), atomic_path(target) as temporary:
        temporary.write_text("half" + (tmp_path / "missing").read_text(encoding="utf-8"), encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("a", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_full_disk_is_said_in_one_line_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(InputError, match=r"file\.txt: no space left \(No space.*\); free some"), atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text(encoding="utf-8") == "old"


WRITE_MORE_THAN_ALLOWED = """
import resource, sys
from pathlib import Path
import torch
from dhel_kcl.training.checkpoints import Checkpoints
from dhel_kcl.experiment.config import EncoderConfig
from dhel_kcl.evaluation.feature_cache import save_features
from dhel_kcl.training.encoder import build_encoder, save_encoder

encoder = build_encoder(EncoderConfig(), seed=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
write = {
    "encoder": lambda: save_encoder(encoder, Path("encoder")),
    "features": lambda: save_features({"test_h": torch.zeros(1000, 1000)}, Path("features")),
    "checkpoint": lambda: Checkpoints(Path("."), "", kept=1).save(7, encoder.state_dict()),
}
write[sys.argv[1]]()
"""


@pytest.mark.parametrize("what", ["encoder", "features", "checkpoint"])
def test_large_files_say_so_too_when_the_system_refuses_to_write_more(what: str, tmp_path: Path) -> None:
    (tmp_path / what).write_text("old", encoding="utf-8")
    name = "step-00000007-.*" if what == "checkpoint" else what
    command = [sys.executable, "-c", WRITE_MORE_THAN_ALLOWED, what]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.search(rf"InputError: {name}: no space left \(File too large\); free some", outcome.stderr)
    assert (tmp_path / what).read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == [what]


def test_a_file_that_is_being_written_is_told_from_one_that_a_killed_process_left(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        for content in ("half", "whole"):
            temporary.write_text(content, encoding="utf-8")  # opened and closed by its name, as libraries do
            assert not remove_abandoned(temporary)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole"
    left = tmp_path / f"{TEMPORARY}a-x.txt"
    left.write_text("half", encoding="utf-8")
    assert remove_abandoned(left)
    assert remove_abandoned(left), "it is gone"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_temporary_file_that_was_removed_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic_path(tmp_path / "a.txt") as temporary:
        assert temporary.exists()
        assert temporary not in removed
        assert not remove_abandoned(temporary)
        temporary.write_text("whole", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_without_locks_only_a_file_that_nobody_wrote_for_a_day_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert not remove_abandoned(temporary)
    left = tmp_path / f"{TEMPORARY}a-x.txt"
    left.write_text("half", encoding="utf-8")
    for hours, goes in ((23, False), (25, True)):
        os.utime(left, (time.time() - hours * 3600,) * 2)
        assert remove_abandoned(left) == goes


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"), atomic_path(tmp_path / "file" / "x.txt"):
        pass


def test_json_round_trip_refuses_nan_and_names_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"value": 0.1 + 0.2})
    assert read_json(path) == {"value": 0.1 + 0.2}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"value": float("nan")})
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(path)
    with pytest.raises(InputError, match="missing"):
        read_json(tmp_path / "b.json")


READERS: list[Callable[[Path], object]] = [
    *(sha256_file, read_json, load_manifest, read_seal, read_points, read_rows, read_training_log, load_config),
    lambda path: read_tensors(path, "missing", "run again"),
]


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
@pytest.mark.parametrize("read", READERS)
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused_in_one_line_and_not_waited_for(
    read: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"^{path}: expected a file, not a pipe or a device; [^\n]*$"):
        read(path)


def test_so_is_one_in_the_place_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "0" * 16, kept=1)
    checkpoints.own.mkdir()
    os.mkfifo(checkpoints.own / f"step-00000005-{'0' * 16}.pt")
    with pytest.raises(InputError, match=r"\.pt: expected a file, not a pipe or a device"):
        checkpoints.newest()


@pytest.mark.parametrize("depth", [150, 900, 200_000])
@pytest.mark.parametrize("read", [read_json, load_manifest, read_seal, read_rows, load_config])
def test_json_that_is_nested_too_deeply_is_one_line(read: Callable[[Path], object], depth: int, tmp_path: Path) -> None:
    path, content = tmp_path / "file", "[" * depth + "]" * depth
    page = f'<script type="application/json" id="data">{content}</script>'
    path.write_text(page if read is read_rows else content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^{path}: [^\n]*$"):
        read(path)


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})
