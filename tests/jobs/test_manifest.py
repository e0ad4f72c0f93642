"""A job's record: nothing is computed that could not be kept, and nothing is lost that was."""

import os
import time
from pathlib import Path

import pytest

from dhel_kcl.errors import InputError
from dhel_kcl.jobs.manifest import CLOCK_SKEW_SECONDS, load_manifest, record


def run_job(folder: Path, ran: list[str], *inputs: Path) -> None:
    with record(
        folder / "manifest.json",
        stage="pretrain",
        subject="run",
        settings={},
        source="0",
        inputs={path.name: path for path in inputs},
        outputs={},
    ):
        ran.append("job")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    path.touch()
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new image.beton"
    path.touch()
    return path


def test_an_input_from_the_future_is_refused_before_the_job_runs(tmp_path: Path, old: Path, new: Path) -> None:
    ahead = time.time() + 3600
    os.utime(new, (ahead, ahead))
    ran: list[str] = []
    with pytest.raises(
        InputError, match=r"new image\.beton: was modified 3\d\d\d seconds in the future, so "
    ) as caught:
        run_job(tmp_path, ran, old, new)
    assert str(caught.value).endswith(f"check the clock, then touch '{new}'")
    assert ran == []
    assert not (tmp_path / "manifest.json").exists()


def test_a_link_from_the_future_is_refused_too(tmp_path: Path, old: Path) -> None:
    link, ahead = tmp_path / "link", time.time() + 3600
    link.symlink_to(old)
    os.utime(link, (ahead, ahead), follow_symlinks=False)
    with pytest.raises(InputError, match="link: was modified"):
        run_job(tmp_path, [], link)


def test_a_job_waits_for_an_input_that_is_little_ahead(
    tmp_path: Path, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("dhel_kcl.jobs.manifest.time.sleep", slept.append)
    run_job(tmp_path, [], old)
    assert slept == []
    ahead = time.time() + CLOCK_SKEW_SECONDS - 1
    os.utime(new, (ahead, ahead))
    ran: list[str] = []
    run_job(tmp_path, ran, old, new)
    assert ran == ["job"]
    assert 0 < slept[0] <= CLOCK_SKEW_SECONDS


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_an_input_that_is_no_file_is_refused_before_the_job_runs(kind: str, tmp_path: Path) -> None:
    path, ran = tmp_path / "input", list[str]()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=rf"^{path}: not a file, so its content cannot be recorded"):
        run_job(tmp_path, ran, path)
    assert ran == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_the_job_and_not_of_one_before_it_in_the_process(tmp_path: Path) -> None:
    peaks = []
    for name, size in (("large", 2**28), ("small", 2**10)):
        with record(tmp_path / name, stage=name, subject="run", settings={}, source="0", inputs={}, outputs={}):
            bytearray(b"x") * size
        peaks.append(load_manifest(tmp_path / name).peak_memory_mib)
    assert peaks[0] - peaks[1] > 200
