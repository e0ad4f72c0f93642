"""The benchmarks: every implementation has its row, ratios come from the rows, and what fails is reported."""

import importlib
import itertools
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from workspace import REPOSITORY, run

from dhel_kcl.plan import MEASURED, load_measured

BENCHMARKS = REPOSITORY / "benchmarks"
LIBRARIES = {"lightly": "lightly", "pytorch-metric-learning": "pytorch_metric_learning"}
BATCH_SIZE = 12
pytestmark = pytest.mark.xdist_group("benchmarks")


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick measurements and their page."""
    folder = tmp_path_factory.mktemp("benchmarks") / "measured"
    for script, options in (
        ("losses.py", ["--quick", "--batch-size", str(BATCH_SIZE), "--output", str(folder)]),
        ("metrics.py", ["--quick", "--samples", "200", "--output", str(folder)]),
        ("report.py", [str(folder)]),
    ):
        outcome = run("python", str(BENCHMARKS / script), *options, cwd=folder.parent)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return folder


def test_every_implementation_of_every_loss_has_a_row(measurements: Path) -> None:
    implementations = importlib.import_module("implementations")
    losses = pd.read_csv(measurements / "losses.csv")
    expected = {
        (loss, implementation)
        for loss, builders in implementations.BUILDERS.items()
        for implementation in builders
        if implementation != implementations.COMPILED
    }
    assert sorted(zip(losses["loss"], losses["implementation"], strict=True)) == sorted(expected)
    assert set(losses["batch_size"]) == {BATCH_SIZE}


def test_implementations_agree_or_say_that_they_are_not_installed(measurements: Path) -> None:
    losses = pd.read_csv(measurements / "losses.csv").set_index("implementation")
    for implementation, rows in losses.groupby(level=0):
        module = LIBRARIES.get(str(implementation))
        absent = module is not None and find_spec(module) is None
        assert set(rows["status"]) == ({f"not installed ({module})"} if absent else {"ok"}), implementation
        assert rows["milliseconds"].isna().all() == rows["memory_mib"].isna().all() == absent


@pytest.mark.parametrize("implementation", LIBRARIES)
def test_libraries_compute_the_same_losses(measurements: Path, implementation: str) -> None:
    pytest.importorskip(LIBRARIES[implementation], reason="run `make benchmark` to install the peers")
    losses = pd.read_csv(measurements / "losses.csv")
    rows = losses[losses["implementation"] == implementation]
    assert len(rows) == 2
    assert (rows["value_difference"] < 1e-5).all()
    assert (rows["gradient_difference"] < 1e-4).all()


def test_the_page_shows_every_row_and_target(measurements: Path) -> None:
    page = measurements.with_suffix(".md").read_text(encoding="utf-8")
    losses = pd.read_csv(measurements / "losses.csv")
    for row in losses[losses["implementation"] != "dhel-kcl"].itertuples():
        shown = f"{row.ratio:.3g} ({row.ratio_low:.3g} to {row.ratio_high:.3g})" if row.status == "ok" else row.status
        assert any(f" {row.implementation} " in line and shown in line for line in page.splitlines())
    for target in ("NT-Xent", "DHEL", "KCL (gaussian)", "KCL (log)", "KCL (IMQ)"):
        assert f"{target} at M = {BATCH_SIZE}: at least" in page
    for column in ("time", "memory"):
        assert (measurements / f"losses_{column}.png").stat().st_size > 10_000


def test_a_ratio_is_taken_within_a_round() -> None:
    measure = importlib.import_module("measure")
    milliseconds = pd.DataFrame({"ours": [1.0, 10.0, 2.0], "peer": [3.0, 20.0, None]})
    table = measure.summary(milliseconds, "ours")
    assert table.loc["peer", ["rounds", "milliseconds", "ratio"]].tolist() == [2, 11.5, 2.5]
    assert table.loc["peer", ["ratio_low", "ratio_high"]].tolist() == [2.25, 2.75]
    assert (table.loc["ours", ["ratio", "ratio_low", "ratio_high"]] == 1).all()


def test_rounds_repeat_each_call_beside_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the calls move: the slow one leaves after `least` rounds, the fast ones go on."""
    measure = importlib.import_module("measure")
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds

    calls = {"ours": lambda: takes(0.125), "slow": lambda: takes(4.0)}
    table = measure.rounds(calls, "ours", measure.Effort(least=2, most=50, seconds=1.0), seed=0)
    assert table["ours"].tolist() == [125.0] * 8
    assert table["slow"].dropna().tolist() == [4000.0] * 2
    assert measure.rounds(calls, "ours", measure.Effort(least=2, most=3, seconds=1.0), seed=0)["ours"].count() == 3


def test_peak_memory_is_that_of_the_call() -> None:
    measure = importlib.import_module("measure")
    peak, status = measure.attempt(peak_of_zeros, 2**24)
    assert status == "ok"
    assert peak == pytest.approx(64, abs=4)


def test_a_call_beyond_the_memory_limit_is_reported() -> None:
    measure = importlib.import_module("measure")
    assert measure.attempt(peak_of_zeros, 2**34) == (None, f"needs more than {measure.MEMORY_LIMIT_GIB} GiB")


def test_a_failure_is_reported_with_its_reason() -> None:
    measure = importlib.import_module("measure")
    assert measure.attempt(torch.linalg.inv, torch.zeros(2, 2))[1].startswith("failed: linalg.inv")


def test_an_unknown_loss_is_refused_with_the_choices(tmp_path: Path) -> None:
    outcome = run("python", str(BENCHMARKS / "losses.py"), "--loss", "dehl", cwd=tmp_path)
    assert outcome.returncode == 2
    assert "dehl" in outcome.stderr
    assert "kcl_gaussian" in outcome.stderr


def test_a_page_without_measurements_names_the_command(tmp_path: Path) -> None:
    outcome = run("python", str(BENCHMARKS / "report.py"), str(tmp_path), cwd=tmp_path)
    assert outcome.returncode == 2
    assert "make benchmark" in outcome.stderr


def test_targets_are_judged_by_the_best_peer_that_ran() -> None:
    report = importlib.import_module("report")
    rows = [
        *itertools.product(["ntxent"], [256, 8192], [("dhel-kcl", "ok", 1.0), ("plain autograd", "ok", 2.6)]),
        ("ntxent", 8192, ("torch.compile", "ok", 1.5)),
        ("ntxent", 8192, ("lightly", "ok", 2.4)),
        ("ntxent", 8192, ("pytorch-metric-learning", "needs more than 12 GiB", None)),
    ]
    losses = pd.DataFrame(
        [(loss, size, *rest) for loss, size, rest in rows],
        columns=["loss", "batch_size", "implementation", "status", "ratio"],
    ).assign(memory_mib=150.0)
    metrics = pd.DataFrame(
        [
            ("wasserstein_uniformity", 10_000, "dhel-kcl", 999.0, 1.0, 199.0),
            ("effective_rank", 10_000, "dhel-kcl", 1.0, 1.0, 1.0),
            ("effective_rank", 10_000, "NumPy SVD, float64", 1.0, 0.99, 1.0),
        ],
        columns=["metric", "samples", "implementation", "milliseconds", "ratio", "memory_mib"],
    )
    verdicts = [(aim.measured, aim.met) for aim in report.targets(losses, metrics)]
    assert verdicts == [
        ("2.4 (lightly), 2.6 (plain autograd)", False),
        ("at most 150 MiB (NT-Xent)", False),
        ("plain autograd takes at least 2.6 times as long (NT-Xent)", True),
        ("1 s, 199 MiB", True),
        ("NumPy SVD, float64 takes 0.99 times as long", False),
    ]


def peak_of_zeros(count: int) -> float:
    """Peak of filling `count` float32 values, in a process of its own."""
    measure = importlib.import_module("measure")
    return float(measure.peak_mib(lambda: torch.ones(count)))


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick measurements of the loader and their page."""
    folder = tmp_path_factory.mktemp("loading") / "measured"
    for script, options in (("loading.py", ["--quick", "--output", str(folder)]), ("loading_report.py", [str(folder)])):
        outcome = run("python", str(BENCHMARKS / script), *options, cwd=folder.parent)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return folder


def test_loaders_are_measured_on_the_same_images(loading: Path) -> None:
    rows = pd.read_csv(loading / "loading.csv")
    assert rows["implementation"].tolist() == ["dhel-kcl", "same kernels, not deterministic", "torchvision"]
    assert (rows[["pairs_per_second", "first_batch_seconds", "memory_mib"]] > 0).all().all()
    assert rows.loc[0, ["ratio", "ratio_low", "ratio_high"]].tolist() == [1, 1, 1]
    expected = rows.loc[0, "pairs_per_second"] / rows["pairs_per_second"]
    assert rows["ratio"].to_list() == pytest.approx(expected.to_list(), rel=1e-4)
    page = loading.with_name("measured_loading.md").read_text(encoding="utf-8")
    assert f"| {rows.loc[2, 'pairs_per_second']:,.0f} " in page
    assert (loading / "loading.png").stat().st_size > 10_000


def test_targets_of_the_loader_are_judged_by_its_rows() -> None:
    report = importlib.import_module("loading_report")
    rows = [
        (32, 2, "dhel-kcl", 1.0, 0.5),
        (32, 2, "same kernels, not deterministic", 0.5, 0.1),
        (32, 2, "torchvision", 20.5, 9.0),
        (32, 2, "lightly", 14.9, 9.0),
        (32, 4, "dhel-kcl", 1.0, 2.5),
        (32, 4, "torchvision", 1.0, 9.0),
        (224, 2, "torchvision", 3.1, 9.0),
    ]
    columns = ["image_size", "workers", "implementation", "ratio", "first_batch_seconds"]
    verdicts = [(aim.measured, aim.met) for aim in report.targets(pd.DataFrame(rows, columns=columns))]
    assert verdicts == [
        ("20.5", True),
        ("14.9", False),
        ("3.1", True),
        ("2 times as fast", False),
        ("2.5 s at most", False),
    ]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick measurement of a training step and its page."""
    folder = tmp_path_factory.mktemp("training") / "measured"
    outcome = run("python", str(BENCHMARKS / "training.py"), "--quick", "--output", str(folder), cwd=folder.parent)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return folder


def test_both_training_loops_are_measured_on_the_same_images(training: Path) -> None:
    rows = pd.read_csv(training / "training.csv")
    assert rows["implementation"].tolist() == ["dhel-kcl", "plain PyTorch loop"]
    assert (rows["images_per_second"] > 0).all()
    assert rows["waiting_for_data"].between(0, 1).all()
    assert rows["ratio"].to_list() == pytest.approx(
        (rows.loc[0, "images_per_second"] / rows["images_per_second"]).to_list(), rel=1e-4
    )
    assert f"| {rows.loc[1, 'images_per_second']:,.1f} " in training.with_name("measured_training.md").read_text(
        encoding="utf-8"
    )


def test_targets_of_training_are_judged_by_its_rows() -> None:
    module = importlib.import_module("training")
    rows = [
        (0.25, "dhel-kcl", 1.0, 0.01),
        (0.25, "plain PyTorch loop", 1.3, 0.3),
        (1.0, "dhel-kcl", 1.0, 0.03),
        (1.0, "plain PyTorch loop", 1.2, 0.3),
    ]
    table = pd.DataFrame(rows, columns=["width", "implementation", "ratio", "waiting_for_data"])
    verdicts = [(aim.measured, aim.met) for aim in module.targets(table)]
    assert verdicts == [("1.3", True), ("1.2", False), ("3% at most", False)]


def test_a_machine_s_throughput_is_what_plan_reads_and_other_devices_stay_in_the_table(tmp_path: Path) -> None:
    table, tiny = tmp_path / "speeds.csv", str(REPOSITORY / "tests" / "tiny.yaml")
    known = pd.read_csv(MEASURED)
    known.to_csv(table, index=False)
    options = ["--device", "cpu", "--batch-size", "64", "--seconds", "0.1", "--output", str(table)]
    outcome = run("python", str(BENCHMARKS / "throughput.py"), tiny, *options, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    measured = load_measured(table)
    assert set(known["device"]) < set(measured["device"])
    (row,) = measured[~measured["device"].isin(known["device"])].itertuples()
    assert (row.backbone, row.width, row.image_size, row.batch_size) == ("resnet18", 0.0625, 8, 64)
    assert row.train_per_second > 0
    assert row.encode_per_second > 0
    planned = run("dhel-kcl", "plan", tiny, "--measured", str(table), "--device", row.device, cwd=tmp_path)
    assert "not measured" not in planned.stdout, planned.stdout + planned.stderr
