"""What an experiment will cost, and a part of it."""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from workspace import REPOSITORY, TINY, run, snakemake

from dhel_kcl.data.sources import open_source
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import ExperimentConfig, load_config, parse_config
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.plan import (
    COLUMNS,
    MEASURED,
    Cost,
    choose_device,
    count_images,
    describe,
    device_name,
    estimate,
    load_measured,
    shape,
)

PAPER = REPOSITORY / "config" / "config.yaml"


def speeds(config: ExperimentConfig, **by_batch_size: float) -> pd.DataFrame:
    """A table in which each data set of a configuration trains `by_batch_size` images per second and encodes 1000."""
    rows = [
        ["X", "float32", *shape(dataset).values(), int(size.removeprefix("bs")), rate, 1000.0, math.nan]
        for dataset in config.datasets
        for size, rate in by_batch_size.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def restricted(**only: Any) -> ExperimentConfig:
    return parse_config({**yaml.safe_load(PAPER.read_text(encoding="utf-8")), "only": only}, "configuration")


def test_the_hours_are_images_times_epochs_over_the_measured_speed() -> None:
    config = restricted(dataset="cifar10", loss="dhel", batch_size=500 + 12, seed=[0, 2])
    (cost,) = estimate(config, speeds(config, bs512=1000.0), "X")
    assert cost.runs == 6 * 2
    images = 50_000 // 512 * 512
    assert cost.pretrain_hours == pytest.approx(12 * 200 * images / 1000 / 3600)
    assert cost.evaluation_hours == pytest.approx(12 * (50_000 + 3 * 10_000) / 1000 / 3600)


def test_a_batch_size_between_two_measured_ones_has_a_speed_between_theirs() -> None:
    config = restricted(dataset="cifar10", loss="dhel", batch_size=128)
    (cost,) = estimate(config, speeds(config, bs32=1000.0, bs512=3000.0), "X")
    assert cost.pretrain_hours == pytest.approx(30 * 200 * (50_000 // 128 * 128) / 2000 / 3600)


def test_what_was_not_measured_is_said_to_be_unknown_and_never_guessed() -> None:
    config = restricted(dataset=["cifar10", "stl10"], loss="dhel", batch_size=128)
    measured = speeds(config, bs128=1000.0)
    costs = estimate(config, measured[measured["image_size"] == 32], "X")
    assert not math.isnan(costs[0].hours)
    assert math.isnan(costs[1].hours)
    assert costs[1].disk_gib > 0
    assert "stl10: not measured on X" in str(describe(costs, "X", 1)[1])


def test_the_disk_is_that_of_a_finished_experiment(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    config, layout = load_config(TINY), Layout(Path("results/tiny"))
    (cost,) = estimate(config, speeds(config, bs128=1000.0), "X")
    kept = [*layout.root.glob("data/**/*.beton"), *layout.root.glob("runs/**/*")]
    size = sum(path.stat().st_size for path in kept if path.is_file())
    # Of so small runs the manifests and the like, for which there is a flat sum, are the most.
    assert cost.disk_gib * 2**30 == pytest.approx(size, abs=100_000 * len(config.runs))
    assert cost.disk_gib * 2**30 > size / 2


@pytest.mark.parametrize("name", ["digits"])
def test_declared_numbers_of_images_are_those_that_are_opened(name: str) -> None:
    data = load_config(TINY).dataset(name).data
    assert count_images(data) == {split: len(open_source(data, split)) for split in data.splits}


def test_a_subset_counts_as_many_images_as_it_has() -> None:
    data = restricted(dataset="stl10").dataset("stl10").data.model_copy(update={"train_images": 1000})
    assert count_images(data) == {"pretrain": 1000, "train": 5000, "test": 8000}


def test_a_folder_of_images_is_counted_or_named_as_missing(tmp_path: Path) -> None:
    data = load_config(REPOSITORY / "config" / "cifar10_gpu.yaml").dataset("cifar10").data
    with pytest.raises(InputError, match="no such folder"):
        count_images(data.model_copy(update={"root": tmp_path / "absent"}))
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split / "a").mkdir(parents=True)
        for number in range(count):
            (tmp_path / split / "a" / f"{number}.png").touch()
    assert count_images(data.model_copy(update={"root": tmp_path})) == {"train": 3, "test": 2}


def test_the_shipped_speeds_cover_the_papers_grid() -> None:
    measured = load_measured(MEASURED)
    costs = estimate(load_config(PAPER), measured, choose_device(measured, None))
    assert sum(cost.runs for cost in costs) == 2160
    assert all(0 < cost.pretrain_hours < 10_000 for cost in costs)


def test_a_device_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(InputError, match=r"device 'abacus' was not measured; choose one of NVIDIA H200"):
        choose_device(load_measured(MEASURED), "abacus")


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", ",".join(COLUMNS) + "\n"])
def test_a_table_that_is_none_is_refused_by_name(content: str | None, tmp_path: Path) -> None:
    table = tmp_path / "speeds.csv"
    if content is not None:
        table.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(table))):
        load_measured(table)


def test_more_devices_take_less_time() -> None:
    costs = [Cost("a", 1, 90.0, 6.0, 1.0)]
    assert str(describe(costs, "X", 1)[1]).startswith("4 days on 1 of them")
    assert str(describe(costs, "X", 4)[1]).startswith("24 hours on 4 of them")


def test_speeds_of_another_precision_do_not_count() -> None:
    config = restricted(dataset="cifar10", loss="dhel", batch_size=128)
    measured = speeds(config, bs128=1000.0)
    for precision, known in (("auto", True), ("float32", True), ("bfloat16", False)):
        compute = config.compute.model_copy(update={"precision": precision})
        (cost,) = estimate(config.model_copy(update={"compute": compute}), measured, "X")
        assert math.isnan(cost.hours) != known


def test_a_measured_machine_is_meant_where_it_is_this_one() -> None:
    shipped = load_measured(MEASURED)
    here = shipped.assign(device=device_name(torch.device("cpu")))
    if not torch.cuda.is_available():
        assert choose_device(pd.concat([shipped, here]), None) == device_name(torch.device("cpu"))


def test_only_keeps_the_runs_that_it_names_and_their_names() -> None:
    whole, part = load_config(PAPER), restricted(dataset="cifar10", loss=["dhel", "kcl_log"], batch_size=512)
    kept = [
        name
        for name, run in whole.runs.items()
        if run.dataset.name == "cifar10" and run.loss_label in ("dhel", "kcl_log") and run.batch_size == 512
    ]
    assert list(part.runs) == kept
    assert part.name == whole.name, "the runs are part of the same experiment, which can be completed later"
    assert all(part.run(name) == whole.run(name) for name in kept)
    assert {run.loss_label for run in restricted(loss="kcl").runs.values()} == {"kcl_gaussian", "kcl_log", "kcl_imq"}


def test_only_leaves_out_losses_that_have_none_of_its_batch_sizes() -> None:
    values = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    values["losses"] = [
        {"name": "dhel", "temperature": [0.3], "batch_sizes": [32]},
        {"name": "dcl", "temperature": [0.3], "batch_sizes": [32, 128]},
    ]
    part = parse_config({**values, "only": {"batch_size": 128}}, "configuration")
    assert {run.loss_label for run in part.runs.values()} == {"dcl"}
    with pytest.raises(InputError, match="configuration: only: leaves no run"):
        parse_config({**values, "only": {"batch_size": 128, "loss": "dhel"}}, "configuration")


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"dataset": "cifar"}, r"only: dataset: \['cifar'\] not in the experiment; it has cifar10, cifar100, stl10"),
        ({"loss": ["kcl_riesz"]}, r"only: loss: \['kcl_riesz'\] not in the experiment; it has dcl, dhel"),
        ({"batch_size": [1]}, r"only: batch_size: \[1\] not in the experiment; it has 32, 128"),
        ({"seeds": 0}, r"only: seeds: unknown key"),
        ({"dataset": []}, r"only: dataset: List should have at least 1 item"),
        ({"seed": []}, r"only: seed: List should have at least 1 item"),
        ("cifar10", "only: Input should be a valid dictionary"),
    ],
)
def test_only_refuses_what_is_not_in_the_grid(only: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"configuration: {message}"):
        parse_config({**yaml.safe_load(PAPER.read_text(encoding="utf-8")), "only": only}, "configuration")


def test_the_printed_command_runs_what_was_planned(workspace: Path) -> None:
    only = ("--only", "loss=dhel,kcl", "--only", "batch_size=256")
    outcome = run("dhel-kcl", "plan", str(TINY), *only, "--gpus", "2", cwd=workspace)
    assert outcome.returncode == 0, outcome.stderr
    assert re.search(r"digits +2 ", outcome.stdout), outcome.stdout
    command = outcome.stdout.splitlines()[-1]
    assert command.startswith("snakemake --cores all --configfile"), "no GPU, as the experiment needs none"
    options = re.search(r"--config '(only=.*)'$", command)
    assert options
    planned = snakemake("--dry-run", "--config", options[1], cwd=workspace)
    assert re.search(r"^pretrain +2$", planned.stdout, re.MULTILINE), planned.stdout + planned.stderr


def test_a_part_of_an_experiment_that_exists_gets_a_name_of_its_own(workspace: Path) -> None:
    (workspace / "results" / "tiny").mkdir(parents=True)
    (workspace / "results" / "tiny" / "config.yaml").write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    whole, part = (run("dhel-kcl", "plan", str(TINY), *only, cwd=workspace) for only in ([], ["--only", "loss=dhel"]))
    assert "name=" not in whole.stdout
    assert part.stdout.rstrip().endswith("name=tiny_part"), part.stdout + part.stderr


def test_a_filter_that_is_none_is_refused(workspace: Path) -> None:
    outcome = run("dhel-kcl", "plan", str(TINY), "--only", "dhel", cwd=workspace)
    assert outcome.returncode == 1
    assert "only: dhel: unknown key" in outcome.stderr
