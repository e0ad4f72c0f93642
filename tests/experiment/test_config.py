"""What a configuration may say, and what it stands for."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import REPOSITORY, TINY

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import AugmentationConfig, ComputeConfig, DatasetConfig, built_in_augmentations
from dhel_kcl.experiment.grid import ExperimentConfig, load_combined, load_config, parse_config, write_resolved_config

CONFIGS = sorted((REPOSITORY / "config").glob("*.yaml"))


@pytest.fixture
def values() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(TINY.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    write_resolved_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_the_paper_grid_is_four_data_sets_by_three_batch_sizes_by_every_hyperparameter_by_five_seeds() -> None:
    config = load_config(REPOSITORY / "config" / "config.yaml")
    assert [dataset.name for dataset in config.datasets] == ["cifar10", "cifar100", "stl10", "imagenet100"]
    assert config.batch_sizes == [32, 128, 512]
    assert {dataset.epochs for dataset in config.datasets} == {200}
    settings = 7 * 5 + 1  # five strengths of each loss, and the public default of DHEL
    assert len(config.runs) == 4 * 3 * settings * 5 == 2160
    public_defaults = "cifar10-kcl_gaussian-t2-gamma16-bs128-seed0"
    assert config.run(public_defaults).loss == {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0}


def test_the_configured_losses_can_be_built() -> None:
    from dhel_kcl.losses import build_loss

    for path in CONFIGS:
        for run in load_config(path).runs.values():
            build_loss(run.loss)


def test_a_run_uses_the_learning_rate_written_for_its_batch_size() -> None:
    config = load_config(REPOSITORY / "config" / "config.yaml")
    assert config.run("cifar10-dhel-temperature0.3-bs32-seed0").learning_rate == 0.125
    assert config.run("imagenet100-dhel-temperature0.3-bs512-seed2").learning_rate == 2.8


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("sedes", [0], "sedes: unknown key"),
        ("losses.0.name", "simclr", "losses.0"),
        ("losses.0.gamma", [1.0], "gamma: unknown key"),
        ("losses.0.temperature", [-0.1], "greater than 0"),
        ("losses.0.temperature", [float("nan")], "finite number"),
        ("losses.0.temperature", [], "at least 1 item"),
        ("losses.0.temperature", [0.3, 0.3], "losses: repeated"),
        ("losses.1.kernel", "laplace", "losses.1"),
        ("batch_sizes", [1], "greater than or equal to 2"),
        ("batch_sizes", [128, 128], "batch_sizes: repeated values 128"),
        ("datasets.0.augmentation", "simclr", "augmentation: unknown; there are simclr_cifar,"),
        ("datasets.0.probe.augmentation", "shift", "datasets.0.probe.augmentation: unknown; there are"),
        ("datasets.0.probe", None, "datasets.digits.probe: missing, and evaluation.augmented_images needs it"),
        ("datasets.0.probe.augmentation", {"shift": 8}, "probe.augmentation: shift must be below image_size"),
        ("datasets.0.protocol", "simclr", "protocol: unknown 'simclr'; there are simclr_cifar, simclr_imagenet100"),
        ("compute.checkpoint_every_epochs", 1, "checkpoint_every_epochs: unknown key"),
        ("compute.precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("datasets.0.optimizer.learning_rate", {128: 0.1}, "no value for batch sizes [256]"),
        ("datasets.0.data", {"kind": "digits", "train_images": 100}, "256 is larger than the 100 training images"),
        ("datasets.0.data", {"kind": "imagefolder"}, "root: kind imagefolder needs the folder"),
        ("datasets.0.data", {"kind": "mnist"}, "datasets.0.data.kind"),
        ("datasets.0.name", "../up", "should match pattern"),
        ("theory.temprature", 0.5, "theory.temprature: unknown key"),
        ("study", {"claim": {}}, "study.claim: unknown key"),
        ("study", {"claims": {"accuracies": None}}, "study.claims.accuracies: unknown key"),
        ("study", {"claims": {"accuracy": {"smallest_effect": 0}}}, "greater than 0"),
        ("study", {"claims": {"accuracy": {"smallest_effect": 1, "role": "main"}}}, "'confirmatory' or 'exploratory'"),
        ("study", {"axis": "epochs"}, "study.axis: Input should be 'batch_size'"),
        ("study", {"baselines": ["simclr"]}, "study: baselines: no loss simclr; there are "),
        ("study", {"proposals": ["dhel", "dcl"]}, "study: baselines: dcl is also one of proposals"),
        ("study", {"datasets": ["cifar10"]}, "study.datasets: cifar10 is not in the experiment; it has digits"),
        ("study", {"chance": {"cifar10": 0.1}}, "study.chance: cifar10 is not in the experiment; it has digits"),
        ("study", {"datasets": ["digits", "digits"]}, "study.datasets: repeated values digits"),
        ("study", {"centres": {"dhel": 0.5}}, "study.centres.dhel: 0.5 is no temperature or gamma of its grid"),
        ("theory.mini_batches.population", 30, "less than or equal to 14"),
        ("theory.uniform.batch_sizes", [2, 8, 8], "theory.uniform.batch_sizes: repeated values 8"),
        ("theory.population", {"sizes": [{"pairs": 15, "embedding_dim": 3}]}, "less than or equal to 14"),
        ("theory.population", {"sizes": [{"pairs": 4, "embedding_dim": 3}] * 2}, "repeated values (4, 3)"),
        ("theory.limit_functional", {"concentrations": [33]}, "less than or equal to 32"),
        ("datasets.0.augmentation.crop.scale", [0.9, 0.1], "low <= high"),
        ("datasets.0.encoder.embedding_dim", 1, "greater than or equal to 2"),
        ("datasets.0.encoder.width", 0.005, "leaves no channel"),
        ("datasets.0.augmentation.blur", {"sigma": [2.0, 0.1]}, "low <= high"),
        ("augmentations", {"mine": {"shift": 1}}, "augmentations: unknown key; write the mapping in place of its name"),
        ("augmentations", {"none": {"flip_probability": 0.5}}, "augmentations: unknown key"),
        ("augmentations", None, "augmentations: unknown key"),
        ("datasets.0.augmentation.solarisation", {"threshold": 300}, "less than or equal to 255"),
        ("seeds", [-1], "greater than or equal to 0"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(
    values: dict[str, Any], path: str, value: Any, said: str
) -> None:
    _set(values, path, value)
    with pytest.raises(InputError) as refused:
        parse_config(values, "bad.yaml")
    lines = str(refused.value).splitlines()
    assert all(line.startswith("bad.yaml: ") for line in lines)
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seeds", [2**53]),
        ("seeds", [True]),
        ("seeds", ["1"]),
        ("seeds", [1.0]),
        ("batch_sizes", [2**21]),
        ("losses.0.temperature", [1e12]),
        ("losses.0.temperature", [True]),
        ("losses.0.temperature", ["0.3"]),
        ("datasets.0.image_size", 10**5),
        ("datasets.0.epochs", 10**7),
        ("datasets.0.encoder.width", 1000),
        ("datasets.0.encoder.embedding_dim", 10**6),
        ("datasets.0.optimizer.learning_rate", {True: 0.1, 128: 0.1, 256: 0.1}),
        ("datasets.0.optimizer.warmup_fraction", 1),
        ("datasets.0.data.max_resolution", 2**16),
        ("datasets.0.data.root", "a\0b"),
        ("datasets.0.data.root", "~nobody_of_this_name/images"),
        ("datasets.0.name", "a" * 65),
        ("evaluation.neighbours", 10**9),
        ("evaluation.corruptions", "yes"),
        ("evaluation.corruptions", 1),
        ("analysis.similarity_bins", 10**6),
        ("monitor.images", 10**9),
        ("compute.threads", 10**5),
        ("compute.threads", True),
        ("compute.loader_workers", 10**5),
        ("compute.gpus_per_run", 10**3),
        ("compute.checkpoint_every_steps", 10**10),
        ("compute.log_every_steps", 10**9),
        ("compute.runtime_minutes", 10**9),
        ("theory.seed", 2**53),
        ("theory.minimise.embedding_dim", 10**5),
        ("theory.uniform.embeddings", 10**9),
    ],
)
def test_a_number_beyond_what_its_users_can_work_with_or_that_is_none_is_refused(
    values: dict[str, Any], path: str, value: Any
) -> None:
    for section in path.split(".")[:-1][:1]:
        values.setdefault(section, {})
    if path.startswith("theory."):
        values["theory"] = {"minimise": {}, "uniform": {}}
    _set(values, path, value)
    with pytest.raises(InputError) as refused:
        parse_config(values, "bad.yaml")
    (line,) = str(refused.value).splitlines()
    assert line.startswith("bad.yaml: ")
    assert path.split(".")[-1] in line


def test_every_number_of_a_configuration_has_an_upper_bound() -> None:
    unbounded: list[str] = []

    def look(schema: Any, place: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") in ("integer", "number") and not schema.keys() & {"maximum", "exclusiveMaximum"}:
                unbounded.append(place)
            for key, part in schema.items():
                look(part, f"{place}.{key}")
        elif isinstance(schema, list):
            for part in schema:
                look(part, place)

    look(ExperimentConfig.model_json_schema(), "")
    assert unbounded == []


def test_a_home_folder_is_written_out_in_every_path(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    values["datasets"][0]["data"] = {"kind": "imagenet100", "root": "~/images", "class_list": "~/classes.txt"}
    data = parse_config(values, "home.yaml").datasets[0].data
    assert (data.root, data.class_list) == (Path("/home/someone/images"), Path("/home/someone/classes.txt"))


class TestSeveralSources:
    """Files and `--config` make up one configuration; each later one replaces whole top-level keys."""

    def combined(self, tmp_path: Path, *texts: str) -> ExperimentConfig:
        paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        return load_combined([TINY, *paths])

    def test_a_later_file_replaces_a_key_as_a_whole(self, tmp_path: Path) -> None:
        config = self.combined(tmp_path, "compute: {threads: 2, tensorboard: false}\nname: a", "compute: {threads: 3}")
        assert (config.compute, config.name) == (ComputeConfig(threads=3), "a")

    def test_config_replaces_a_key_as_a_whole(self) -> None:
        assert load_combined([TINY], ["compute={threads: 3}"]).compute == ComputeConfig(threads=3)

    def test_values_of_config_are_read_like_those_of_a_file(self) -> None:
        config = load_combined([TINY], ["seeds=[1, 2]", "evaluation={corruptions: true, validation_fraction: 2e-1}"])
        assert (config.seeds, config.evaluation.corruptions, config.evaluation.validation_fraction) == (
            [1, 2],
            True,
            0.2,
        )

    @pytest.mark.parametrize(
        ("assignments", "said"),
        [
            (["seeds=[0]", "seeds=[1]"], "--config seeds: given twice"),
            (["compute={threads: 1, threads: 2}"], "key 'threads' is given twice"),
            (["seeds=[010]"], "seeds.0: Input should be a valid integer"),
            (["seeds=[yes]"], "seeds.0: Input should be a valid integer"),
            (["seeds="], "--config seeds: empty"),
        ],
    )
    def test_a_mistake_in_config_is_named(self, assignments: list[str], said: str) -> None:
        with pytest.raises(InputError, match=re.escape(said)):
            load_combined([TINY], assignments)

    def test_a_file_of_another_form_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"0\.yaml: Input should be a valid dictionary"):
            self.combined(tmp_path, "[1, 2]")


def test_every_mistake_is_reported_at_once(values: dict[str, Any]) -> None:
    values["sedes"] = 1
    values["batch_sizes"] = [0]
    with pytest.raises(InputError) as refused:
        parse_config(values, "bad.yaml")
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a: [", ": line 1, column 5: not valid YAML"),
        ("7", "dictionary"),
        ("", "empty; see config/README.md"),
        ("# only a comment", "empty; see config/README.md"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml") as refused:
        load_config(path)
    assert said in str(refused.value)


def test_an_unknown_run_is_refused_with_an_example(tiny_config: ExperimentConfig) -> None:
    with pytest.raises(InputError, match=r"one of its runs is digits-dhel-temperature0\.3-bs128-seed0"):
        tiny_config.run("digits-dhel")


def test_a_protocol_is_spelt_out_and_gives_way_to_what_the_data_set_says(tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    data = {"kind": "cifar10", "root": "data"}
    values["batch_sizes"] = [256]
    values["datasets"] = [
        {"name": "plain", "data": data, "protocol": "simclr_cifar"},
        {"name": "short", "data": data, "protocol": "simclr_cifar", "epochs": 3},
    ]
    config = parse_config(values, "protocol.yaml")
    plain, short = config.datasets
    assert (plain.epochs, short.epochs) == (200, 3)
    assert plain.optimizer == short.optimizer
    assert plain.augmentation == built_in_augmentations()["simclr_cifar"]
    assert plain.probe is not None
    assert plain.probe.augmentation == built_in_augmentations()["shift_flip"]
    write_resolved_config(config, tmp_path / "resolved.yaml")
    resolved = yaml.safe_load((tmp_path / "resolved.yaml").read_text(encoding="utf-8"))
    assert resolved["datasets"][0]["optimizer"]["learning_rate"]["256"] == 1.0
    assert resolved["datasets"][0]["probe"]["augmentation"]["shift"] == 4
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("name", "size", "backbone", "rate", "warmup", "probe_rate", "probe_batch"),
    [
        ("simclr_cifar", 32, "resnet18", 1.0, 0.01, 0.1, 1024),
        ("simclr_imagenet100", 224, "resnet50", 1.4, 0.1, 0.5, 512),
    ],
)
def test_the_protocols_are_those_of_the_public_code(
    name: str, size: int, backbone: str, rate: float, warmup: float, probe_rate: float, probe_batch: int
) -> None:
    data = {"kind": "cifar10", "root": "data"}
    dataset = DatasetConfig.model_validate({"name": "any", "data": data, "protocol": name})
    assert (dataset.image_size, dataset.epochs, dataset.encoder.backbone) == (size, 200, backbone)
    assert dataset.encoder.embedding_dim == 128
    optimizer, probe = dataset.optimizer, dataset.probe
    assert isinstance(optimizer.learning_rate, dict)
    assert (optimizer.name, optimizer.learning_rate[256], optimizer.momentum) == ("sgd", rate, 0.9)
    assert (optimizer.weight_decay, optimizer.warmup_fraction) == (1e-6, warmup)
    assert probe is not None
    assert (probe.learning_rate, probe.batch_size, probe.epochs) == (probe_rate, probe_batch, 200)
    assert (probe.weight_decay, probe.momentum) == (1e-4, 0.9)


def test_every_value_of_a_protocol_names_its_source() -> None:
    """A comment on the line, or on the line above it, says where the value comes from."""
    lines = (REPOSITORY / "src" / "dhel_kcl" / "experiment" / "protocols.yaml").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("simclr_cifar:"))
    for number, line in enumerate(lines[start:], start):
        key, _, value = line.partition("#")[0].strip().partition(":")
        if key and (value.strip() or "{" in key):
            near = lines[number - 1] + line
            assert re.search(r"#.*(\[[AMP]\]|the data set's own|chosen here)", near), line


def test_a_named_augmentation_stands_for_its_values(values: dict[str, Any]) -> None:
    values["datasets"][0]["augmentation"] = "simclr_cifar"
    named = parse_config(values, "named.yaml")
    values["datasets"][0]["augmentation"] = built_in_augmentations()["simclr_cifar"].model_dump(mode="json")
    assert parse_config(values, "spelt_out.yaml") == named


def test_a_configuration_of_before_that_lists_the_built_in_augmentations_is_read(values: dict[str, Any]) -> None:
    values["datasets"][0]["augmentation"] = "simclr_cifar"
    expected = parse_config(values, "now.yaml")
    values["augmentations"] = {name: each.model_dump(mode="json") for name, each in built_in_augmentations().items()}
    assert parse_config(values, "before.yaml") == expected


def test_the_digest_of_a_study_changes_with_what_is_judged_and_with_nothing_else(values: dict[str, Any]) -> None:
    plain = parse_config(values, "test").study.sha256
    values["seeds"] = [5]
    assert parse_config(values, "test").study.sha256 == plain
    values["study"] = {"claims": {"accuracy": {"smallest_effect": 0.02}}}
    changed = parse_config(values, "test").study
    assert changed.sha256 != plain
    assert changed.claims.batch_size is not None, "the other claims keep their defaults"


def test_a_part_of_a_grid_is_judged_on_its_own_data_sets(values: dict[str, Any]) -> None:
    values["datasets"].append({**values["datasets"][0], "name": "more"})
    values["study"] = {"datasets": ["digits", "more"], "chance": {"more": 0.1}}
    part = parse_config({**values, "only": {"dataset": "digits"}}, "test")
    assert (part.study.datasets, part.study.chance) == (["digits"], {})


def test_the_built_in_augmentations() -> None:
    built_in = built_in_augmentations()
    assert set(built_in) == {"simclr_cifar", "simclr_imagenet", "crop_flip", "shift_flip", "none"}
    assert built_in["none"] == AugmentationConfig()
    # Colour strength 0.5 and 1.0 of (0.8, 0.8, 0.8, 0.2), as the public training code states it.
    for name, strength in (("simclr_cifar", 0.5), ("simclr_imagenet", 1.0)):
        jitter = built_in[name].jitter
        assert jitter is not None
        assert [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue] == pytest.approx(
            [0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength]
        )


def test_a_loss_can_be_kept_to_some_of_the_batch_sizes(values: dict[str, Any]) -> None:
    values["losses"][0]["batch_sizes"] = [256]
    assert [run.split("-")[1:4:2] for run in parse_config(values, "test").runs] == [
        ["dhel", "bs256"],
        ["kcl_gaussian", "gamma16"],
        ["kcl_gaussian", "gamma16"],
    ]
    values["losses"][0]["batch_sizes"] = [64]
    with pytest.raises(InputError, match=r"losses\.0\.batch_sizes: \[64\] not in the experiment's batch_sizes"):
        parse_config(values, "test")


def test_a_configuration_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match=r"a\.yaml: not text in UTF-8 \(invalid start byte at byte 6\)"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["a{b}.txt", "lists}/classes.txt"])
def test_a_class_list_that_snakemake_would_take_for_a_pattern_is_refused(name: str) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["datasets"][0]["data"] = {"kind": "imagenet100", "root": "images", "class_list": name}
    with pytest.raises(InputError, match=r"class_list: has { or }, which Snakemake takes for wildcards; rename"):
        parse_config(values, "test")
