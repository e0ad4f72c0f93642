"""Each file of measurements is read as what it is, or refused in one line that names it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import make_features, write_outcome

from dhel_kcl.data.beton import sidecar_path
from dhel_kcl.data.corrupt import SEVERITIES
from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.analyse import analyse
from dhel_kcl.evaluation.evaluate import evaluate
from dhel_kcl.evaluation.feature_cache import save_features
from dhel_kcl.evaluation.hits import pack_hits
from dhel_kcl.experiment.config import AnalysisConfig, EvaluationConfig
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.results.collect import collect, read_measurements
from dhel_kcl.training.outcome import read_outcome

LOG = """epoch,step,loss,alignment,energy,gradient_norm,learning_rate,knn_top1,effective_rank_h,effective_rank_z
1,11,-0.5,-1.0,0.5,0.1,0.2,,,
2,22,-0.6,-1.1,0.5,0.1,0.1,0.9,3.5,2.5
"""
THROUGHPUT = """epoch,seconds,images_per_second,waiting_for_data
1,2.5,512.0,0.25
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each file, by its name."""
    folder = tmp_path_factory.mktemp("sound")
    features = folder / "features.safetensors"
    save_features(make_features(), features)
    config = EvaluationConfig(regularisation_c=[1.0])
    evaluate(features, config, 0, 1, folder / "evaluation.json", folder / "classifier.safetensors")
    analyse(features, AnalysisConfig(), {"name": "dhel", "temperature": 0.5}, 1, folder / "representation.json")
    write_outcome(folder / "outcome.json", "finished")
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    accuracies = {corruption: [0.5] * 6 for corruption in SEVERITIES}
    return {
        **texts,
        "augmented_probe.json": json.dumps({"augmented_top1": 0.5, "augmented_top5": 1.0}),
        "corruptions.json": json.dumps(accuracies),
        "training_log.csv": LOG,
        "throughput.csv": THROUGHPUT,
    }


FILES = (
    *("outcome.json", "evaluation.json", "augmented_probe.json", "corruptions.json", "representation.json"),
    *("training_log.csv", "throughput.csv"),
)


@pytest.mark.parametrize("name", FILES)
def test_what_the_stages_write_is_read(sound: dict[str, str], name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(sound[name], encoding="utf-8")
    rows = list(read_measurements(tmp_path / name))
    assert rows
    assert all(math.isfinite(row["value"]) for row in rows)
    assert "not_measured" not in {row["metric"] for row in rows}


Change = Callable[[Any], object]


def curve_of(content: Any) -> dict[str, Any]:
    curve: dict[str, Any] = content["z"]["mini_batch_loss"]
    assert curve["x"] == [16.0]
    return curve


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("outcome.json", lambda content: content.update(status="paused")),
        ("outcome.json", lambda content: content.pop("status")),
        ("outcome.json", lambda content: content.update(step="22")),
        ("outcome.json", lambda content: content.update(step=True)),
        ("evaluation.json", lambda content: content.update(linear_top1="0.9")),
        ("evaluation.json", lambda content: content.update(linear_top1=True)),
        ("evaluation.json", lambda content: content.update(linear_top1=math.nan)),
        ("evaluation.json", lambda content: content.update(linear_top1=1.5)),
        ("evaluation.json", lambda content: content.update(linear_top1=None)),
        ("evaluation.json", lambda content: content.pop("linear_top1")),
        ("evaluation.json", lambda content: content.update(best=0.9)),
        ("evaluation.json", lambda content: content.update(not_measured="everything is here")),
        ("evaluation.json", lambda content: content.update(test_images=0)),
        ("evaluation.json", lambda content: content.update(test_images=10)),
        ("evaluation.json", lambda content: content.pop("test_hits")),
        ("evaluation.json", lambda content: content.update(test_hits=None)),
        ("evaluation.json", lambda content: content.update(test_hits="")),
        ("evaluation.json", lambda content: content.update(test_hits=pack_hits(np.arange(20) > 7))),
        ("evaluation.json", lambda content: content.update(test_hits=pack_hits(np.arange(21) > 0))),
        ("evaluation.json", lambda content: content.update(linear_top1=content["linear_top1"] - 0.05)),
        ("evaluation.json", lambda content: [content.pop(key) for key in list(content) if key != "test_images"]),
        ("evaluation.json", lambda content: content.update(knn_top1=0.9)),
        ("evaluation.json", lambda content: content.update(knn_top1={})),
        ("evaluation.json", lambda content: content.update(knn_top1={"0": 0.9})),
        ("evaluation.json", lambda content: content.update(knn_top1={"few": 0.9})),
        ("evaluation.json", lambda content: content.update(knn_top1={"20": 1.1})),
        ("augmented_probe.json", lambda content: content.pop("augmented_top5")),
        ("augmented_probe.json", lambda content: content.update(augmented_top1=-0.1)),
        ("corruptions.json", lambda content: content.pop("jpeg")),
        ("corruptions.json", lambda content: content["jpeg"].pop()),
        ("corruptions.json", lambda content: content["jpeg"].append(0.5)),
        ("corruptions.json", lambda content: content.update(jpeg="123456")),
        ("corruptions.json", lambda content: content.update(snow=[0.5] * 6)),
        ("representation.json", lambda content: content.pop("z")),
        ("representation.json", lambda content: content.update(z={})),
        ("representation.json", lambda content: content["h"].pop("scalars")),
        ("representation.json", lambda content: content["h"]["scalars"].pop("rank")),
        ("representation.json", lambda content: content["h"]["scalars"].update(alignment="0.1")),
        ("representation.json", lambda content: content["h"]["scalars"].update(alignment=5.0)),
        ("representation.json", lambda content: content["h"]["scalars"].update(effective_rank=5.0)),
        ("representation.json", lambda content: content["h"]["scalars"].update(participation_ratio=5.0)),
        ("representation.json", lambda content: content["h"]["scalars"].update(rankme=2.0)),
        ("representation.json", lambda content: content["h"].update(similarity_density=content["z"])),
        ("representation.json", lambda content: content["z"]["scalars"].pop("rankme")),
        ("representation.json", lambda content: content["z"]["scalars"].update(rankme=5.0)),
        ("representation.json", lambda content: content["z"]["scalars"].update(rankme_images=0)),
        ("representation.json", lambda content: content["z"].pop("similarity_density")),
        ("representation.json", lambda content: content["h"]["singular_value"].pop()),
        ("representation.json", lambda content: content["h"]["singular_value"].reverse()),
        ("representation.json", lambda content: content["z"]["similarity_density"]["x"].pop()),
        (
            "representation.json",
            lambda content: [content["z"]["similarity_density"][axis].pop() for axis in ("x", "value")],
        ),
        ("representation.json", lambda content: content["z"]["similarity_density"]["value"].__setitem__(0, 99.0)),
        ("representation.json", lambda content: content["z"].pop("mini_batch_loss")),
        ("representation.json", lambda content: content["h"].update(mini_batch_loss=content["z"]["mini_batch_loss"])),
        ("representation.json", lambda content: content["z"]["mini_batch_loss"].pop("standard_error")),
        ("representation.json", lambda content: content["z"]["mini_batch_loss"]["value"].pop()),
        ("representation.json", lambda content: content["z"]["mini_batch_loss"]["growth"].append(0.0)),
        ("representation.json", lambda content: content["z"]["mini_batch_loss"].update(value=[math.nan])),
        ("representation.json", lambda content: content["z"]["mini_batch_loss"].update(standard_error=[-0.1])),
        ("representation.json", lambda content: content["z"]["mini_batch_loss"].update(x=[16.5])),
        ("representation.json", lambda content: [column.append(16.0) for column in curve_of(content).values()]),
    ],
)
def test_other_content_is_refused_in_one_line(sound: dict[str, str], tmp_path: Path, name: str, change: Change) -> None:
    content = json.loads(sound[name])
    change(content)
    refused(tmp_path / name, json.dumps(content))


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_another_kind_of_json_is_refused_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    refused(tmp_path / name, text)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("training_log.csv", "-0.5", "small"),
        ("training_log.csv", "-0.5", "nan"),
        ("training_log.csv", "-0.5", "inf"),
        ("training_log.csv", "-0.5", "True"),
        ("training_log.csv", "0.9", "1.9"),
        ("training_log.csv", "3.5", "0.5"),
        ("training_log.csv", "2,22", "3,22"),
        ("training_log.csv", ",learning_rate", ""),
        ("training_log.csv", "loss", "cost"),
        ("throughput.csv", "0.25", "1.25"),
        ("throughput.csv", "512.0", ""),
        ("throughput.csv", "512.0", "-512.0"),
        ("throughput.csv", THROUGHPUT, ""),
    ],
)
def test_another_table_is_refused_in_one_line(
    sound: dict[str, str], tmp_path: Path, name: str, old: str, new: str
) -> None:
    assert old in sound[name]
    refused(tmp_path / name, sound[name].replace(old, new))


def refused(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="; delete it and ") as caught:
        list(read_measurements(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_reason_is_a_row_beside_what_could_be_measured(sound: dict[str, str], tmp_path: Path) -> None:
    content = json.loads(sound["evaluation.json"])
    del content["knn_top1"]
    content["not_measured"] = "knn_top1: row 3 of the embeddings is zero"
    (tmp_path / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    rows = {row["metric"]: row for row in read_measurements(tmp_path / "evaluation.json")}
    assert rows.keys() == content.keys() - {"test_hits"}
    assert [metric for metric, row in rows.items() if row["test_hits"]] == ["linear_top1"]
    assert (rows["not_measured"]["representation"], rows["not_measured"]["value"]) == ("h", 1.0)
    content = json.loads(sound["representation.json"])
    content["z"] = {"not_measured": "row 3 of the embeddings is zero"}
    (tmp_path / "representation.json").write_text(json.dumps(content), encoding="utf-8")
    of_z = [row for row in read_measurements(tmp_path / "representation.json") if row["representation"] == "z"]
    assert [(row["metric"], row["value"]) for row in of_z] == [("not_measured", 1.0)]
    (tmp_path / "corruptions.json").write_text('{"not_measured": "no test image has a label"}', encoding="utf-8")
    assert [row["metric"] for row in read_measurements(tmp_path / "corruptions.json")] == ["not_measured"]


@pytest.mark.parametrize("name", ["evaluation.json", "augmented_probe.json", "corruptions.json", "representation.json"])
def test_of_a_diverged_run_there_is_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert list(read_measurements(tmp_path / name)) == []


def test_an_outcome_says_whether_the_run_diverged(tmp_path: Path) -> None:
    for status in ("finished", "diverged"):
        assert read_outcome(write_outcome(tmp_path / "outcome.json", status)).diverged == (status == "diverged")


@pytest.fixture
def collected(
    sound: dict[str, str], tiny_config: ExperimentConfig, digits_betons: dict[str, Path], tmp_path: Path
) -> tuple[ExperimentConfig, Layout, str]:
    """An experiment of one run, whose files are there."""
    config, layout = tiny_config.model_copy(deep=True), Layout(tmp_path / "results")
    run = next(iter(config.runs))
    config.__dict__["runs"] = {run: config.runs[run]}
    for split, beton in digits_betons.items():
        layout.beton("digits", split).parent.mkdir(parents=True, exist_ok=True)
        for path in (beton, sidecar_path(beton)):
            shutil.copy(path, layout.beton("digits", split).parent)
    layout.run(run).mkdir(parents=True)
    for name in FILES:
        (layout.run(run) / name).write_text(sound[name], encoding="utf-8")
    return config, layout, run


def test_collecting_gathers_reasons_too(collected: tuple[ExperimentConfig, Layout, str]) -> None:
    config, layout, run = collected
    layout.evaluation(run).write_text('{"not_measured": "h: no test image has a label"}', encoding="utf-8")
    table = collect(Experiment(config, layout))
    (row,) = table[table["metric"] == "not_measured"].to_dict("records")
    assert (row["run"], row["representation"], row["value"]) == (run, "h", 1.0)
    assert row["source"] == f"runs/{run}/evaluation.json"
    assert {"effective_rank", "corrupted_top1"} <= {*table["metric"]}


def test_a_file_that_holds_nothing_is_refused_unless_the_run_diverged(
    collected: tuple[ExperimentConfig, Layout, str],
) -> None:
    config, layout, run = collected
    layout.evaluation(run).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"evaluation\.json: holds nothing, but the run finished; delete it"):
        collect(Experiment(config, layout))
    write_outcome(layout.outcome(run), "diverged")
    with pytest.raises(InputError, match="holds measurements, but the run diverged"):
        collect(Experiment(config, layout))
    for file in (layout.augmented_probe(run), layout.corruptions(run), layout.representation(run)):
        file.write_text("{}", encoding="utf-8")
    assert "linear_top1" not in {*collect(Experiment(config, layout))["metric"]}
