"""What a run says: exact means, an event when a term is not finite, and where it goes."""

import itertools
import math
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dhel_kcl.training.log import Diverged, Throughput, TrainingLog
from dhel_kcl.training.outcome import TERMS
from dhel_kcl.training.progress import TensorBoard, progress_display

CPU = torch.device("cpu")


def fill(log: TrainingLog, values: list[float]) -> None:
    for value in values:
        log.add(torch.tensor([value, 2 * value, 3 * value, 4 * value]))
        if log.is_full:
            log.read()
    log.read()


@pytest.mark.parametrize("read_every", [1, 2, 3, 100])
def test_an_epoch_is_the_mean_of_its_steps_however_often_it_is_read(read_every: int, tmp_path: Path) -> None:
    log = TrainingLog(CPU, steps_per_epoch=3, read_every=read_every)
    for epoch, values in enumerate(([1.0, 2.0, 6.0], [0.0, 0.5, 1.0]), start=1):
        fill(log, values)
        row = log.end_epoch(0.1 * epoch, {"knn_top1": 0.5} if epoch == 2 else {})
        assert [row[name] for name in TERMS] == [scale * sum(values) / 3 for scale in (1, 2, 3, 4)]
    log.write(tmp_path / "log.csv")
    table = pd.read_csv(tmp_path / "log.csv")
    assert table[["epoch", "step", "loss", "learning_rate"]].to_numpy().tolist() == [[1, 3, 3, 0.1], [2, 6, 0.5, 0.2]]
    assert table["knn_top1"].isna().tolist() == [True, False]


def test_a_run_without_a_finished_epoch_has_a_log_without_rows(tmp_path: Path) -> None:
    TrainingLog(CPU, 3, 1).write(tmp_path / "log.csv")
    assert list(pd.read_csv(tmp_path / "log.csv")["loss"]) == []


@pytest.mark.parametrize(("term", "value"), [*itertools.product(range(4), [math.nan, math.inf, -math.inf])])
def test_a_term_that_is_not_finite_is_an_event_at_its_step(term: int, value: float) -> None:
    log = TrainingLog(CPU, steps_per_epoch=10, read_every=10)
    for step in range(1, 6):
        terms = torch.ones(4)
        if step >= 4:
            terms[term] = value
        log.add(terms)
    with pytest.raises(Diverged) as event:
        log.read()
    assert event.value.step == 4
    assert event.value.terms[TERMS[term]] == pytest.approx(value, nan_ok=True)
    assert f"{TERMS[term]} {value:g}" in str(event.value)


def test_the_state_is_that_of_the_steps_read() -> None:
    log = TrainingLog(CPU, steps_per_epoch=4, read_every=10)
    fill(log, [0.1, 0.2])
    resumed = TrainingLog(CPU, steps_per_epoch=4, read_every=3)
    resumed.load_state_dict(log.state_dict())
    for each in (log, resumed):
        fill(each, [0.3, 0.4])
        each.end_epoch(1.0, {})
    assert resumed.epochs == log.epochs


def test_throughput_counts_the_images_and_the_time_waited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 100.0

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow() -> Iterator[int]:
        for number in range(4):
            takes(3.0)
            yield number

    monkeypatch.setattr("dhel_kcl.training.log.time.monotonic", lambda: now)
    throughput = Throughput(images_per_step=8)
    for _ in throughput.timed(slow()):
        takes(1.0)
    throughput.end_epoch(1)
    throughput.write(tmp_path / "throughput.csv")
    (row,) = pd.read_csv(tmp_path / "throughput.csv").to_dict("records")
    assert row == {"epoch": 1, "seconds": 16.0, "images_per_second": 4 * 8 / 16.0, "waiting_for_data": 12.0 / 16.0}


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_every_step_once_also_after_an_interruption(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    board = TensorBoard(folder, 0)
    board.steps([[1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 1.5, 2.0]], last_step=2)
    board.epoch({"epoch": 1, "step": 2, "loss": 0.75}, images_per_second=10.0)
    board.steps([[9.0, 9.0, 9.0, 9.0]], last_step=3)  # after the last checkpoint: lost
    board.close()
    resumed = TensorBoard(folder, 2)
    resumed.steps([[0.25, 1.0, 1.0, 1.0]], last_step=3)
    resumed.close()
    assert scalars(folder, "step/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert scalars(folder, "epoch/loss") == [(2, 0.75)]
    TensorBoard(folder, 0).close()
    assert EventAccumulator(str(folder)).Reload().Tags()["scalars"] == [], "a run that starts anew leaves nothing"


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Let no file grow beyond a few hundred bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_file_system(folder: Path) -> Iterator[None]:
    """Mount a file system of one page over the folder, which takes rights that not every user has."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("full", [full_disk, full_file_system])
def test_when_the_disk_is_full_one_line_says_so_and_the_run_goes_on_without_tensorboard(
    full: Callable[[Path], AbstractContextManager[None]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mounted" / "tensorboard"
    with full(folder.parent):
        board = TensorBoard(folder, 0)
        for step in range(1, 101):
            board.steps([[1.0, 2.0, 3.0, 4.0]], last_step=step)
            board.epoch({"epoch": step, "step": step, "loss": 0.75}, images_per_second=10.0)
        board.close()
        assert scalars(folder, "step/loss")[0] == (1, 1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder}: no more events for TensorBoard (")
    assert line.endswith("; the run goes on without")


def test_where_tensorboard_has_no_folder_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be", encoding="utf-8")
    board = TensorBoard(tmp_path / "tensorboard", 0)
    board.steps([[1.0, 2.0, 3.0, 4.0]], last_step=1)
    board.close()
    assert capsys.readouterr().err == (
        f"{tmp_path}/tensorboard: no more events for TensorBoard (File exists); the run goes on without\n"
    )


def test_without_a_terminal_a_line_is_printed_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dhel_kcl.training.progress.SECONDS_BETWEEN_LINES", 0)
    with progress_display("run", total_steps=10, completed=0) as display:
        display.update(5, 1.25, 100.0)
    assert "step 5/10: loss 1.2500, 100 images/s" in capsys.readouterr().err
