"""Files from elsewhere run no code, and names from elsewhere stay names."""

import hashlib
import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from workspace import REPOSITORY, TINY, run, snakemake

from dhel_kcl.errors import InputError
from dhel_kcl.evaluation.classifier import load_classifier
from dhel_kcl.evaluation.feature_cache import load_features
from dhel_kcl.experiment.config import EncoderConfig
from dhel_kcl.experiment.grid import ExperimentConfig, load_config, parse_config
from dhel_kcl.files import sha256_json
from dhel_kcl.training.checkpoints import Checkpoints
from dhel_kcl.training.encoder import load_encoder

CODE = ("src", "paper_figures", "benchmarks", "envs", "docs")
KEY = sha256_json("settings")


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What a payload would make."""
    return tmp_path / "payload-ran"


def one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> bool:
    return str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def torch_file(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def pickle_file(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)  # the one that torch.load reads


WRITERS: list[Callable[[Any], bytes]] = [torch_file, pickle_file]


class TestPayloads:
    @pytest.mark.parametrize("written_by", WRITERS)
    def test_the_payload_works_where_a_loader_is_unsafe(
        self, written_by: Callable[[Any], bytes], proof: Path, tmp_path: Path
    ) -> None:
        if written_by is torch_file:
            (tmp_path / "file.pt").write_bytes(written_by(Payload(proof)))
            torch.load(tmp_path / "file.pt", weights_only=False)
        else:
            pickle.loads(written_by(Payload(proof)))
        assert proof.exists()

    @pytest.mark.parametrize("written_by", WRITERS)
    def test_a_checkpoint_that_holds_code_is_refused_though_its_name_fits(
        self, written_by: Callable[[Any], bytes], proof: Path, tmp_path: Path
    ) -> None:
        checkpoints = Checkpoints(tmp_path / "checkpoints", KEY, kept=2)
        content = written_by({"step": 5, "weights": Payload(proof)})
        path = checkpoints.own / f"step-00000005-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a checkpoint of this program") as caught:
            checkpoints.newest()
        assert one_line(caught, path)
        assert not proof.exists()

    @pytest.mark.parametrize("written_by", WRITERS)
    @pytest.mark.parametrize(
        "load", [load_features, load_classifier, lambda path: load_encoder(EncoderConfig(width=0.0625), path)]
    )
    def test_tensors_that_were_replaced_by_code_are_refused(
        self, load: Callable[[Path], Any], written_by: Callable[[Any], bytes], proof: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "tensors.safetensors"
        path.write_bytes(written_by(Payload(proof)))
        with pytest.raises(InputError, match="damaged") as caught:
            load(path)
        assert one_line(caught, path)
        assert not proof.exists()

    def test_a_configuration_that_holds_code_is_refused(self, proof: Path, workspace: Path) -> None:
        config = workspace / "config.yaml"
        config.write_text(
            f"{TINY.read_text(encoding='utf-8')}\nnote: !!python/object/apply:os.mkdir ['{proof}']\n", encoding="utf-8"
        )
        with pytest.raises(InputError, match="not valid YAML") as caught:
            load_config(config)
        assert one_line(caught, config)
        outcome = snakemake("--dry-run", cwd=workspace, config=config)
        assert outcome.returncode != 0
        assert not proof.exists()
        yaml.unsafe_load(config.read_text(encoding="utf-8"))
        assert proof.exists(), "it is the loader that refuses, not the payload that is broken"


class TestLinter:
    def test_finds_no_unsafe_loader_nor_any_other_fault_in_the_code(self) -> None:
        outcome = run("bandit", "-q", "-r", *CODE, "-c", "pyproject.toml", cwd=REPOSITORY)
        assert outcome.returncode == 0, outcome.stdout

    @pytest.mark.parametrize(
        "line",
        [
            "import torch; torch.load('a')",
            "import torch; torch.load('a', weights_only=False)",
            "import pickle; pickle.load(open('a', 'rb'))",
            "import pandas; pandas.read_pickle('a')",
            "import yaml; yaml.load('a', Loader=yaml.UnsafeLoader)",
            "eval(input())",
            "exec(input())",
            "import tarfile; tarfile.open('a').extractall('b')",
            "import subprocess; subprocess.run(input(), shell=True)",
        ],
    )
    def test_would_find_one(self, line: str, tmp_path: Path) -> None:
        (tmp_path / "code.py").write_text(f"{line}\n", encoding="utf-8")
        config = str(REPOSITORY / "pyproject.toml")
        outcome = run("bandit", "-q", "code.py", "-c", config, "--severity-level", "low", cwd=tmp_path)
        assert outcome.returncode == 1, outcome.stdout + outcome.stderr

    def test_every_exception_is_for_one_test_says_why_and_is_for_no_loader(self) -> None:
        files = [file for folder in CODE for file in (REPOSITORY / folder).rglob("*.py")]
        marks = [
            line.partition("# nosec")[2] for file in files for line in file.read_text(encoding="utf-8").splitlines()
        ]
        marks = [mark for mark in marks if mark]
        assert len(marks) >= 5
        for mark in marks:
            assert re.fullmatch(r" (B311|B404|B506|B603|B606|B704) # \w.{4,}", mark), mark

    def test_no_file_asks_numpy_for_pickles(self) -> None:
        files = [file for folder in (*CODE, "workflow") for file in (REPOSITORY / folder).rglob("*")]
        code = [file for file in files if file.suffix in {".py", ".smk"}]
        assert len(code) > 80
        assert [file for file in code if "allow_pickle" in file.read_text(encoding="utf-8")] == []


HOSTILE_NAMES = ["..", "../../etc", "/etc", "a/b", "a\\b", "a\0b", "a\nb", "a\n", " ", "-rf", "~", "$(id)", "a;id"]


class TestNames:
    @pytest.mark.parametrize("name", [*HOSTILE_NAMES, ""])
    @pytest.mark.parametrize("place", ["experiment", "data set"])
    def test_a_name_that_becomes_a_path_is_one_plain_word(self, name: str, place: str) -> None:
        values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
        parse_config(values, "config")
        if place == "experiment":
            values["name"] = name
        else:
            values["datasets"][0]["name"] = name
        with pytest.raises(InputError, match="should match pattern"):
            parse_config(values, "config")

    def test_the_name_of_a_run_stays_in_its_folder(self, tiny_config: ExperimentConfig) -> None:
        paper = load_config(REPOSITORY / "config" / "config.yaml")
        for run_id in [*tiny_config.runs, *paper.runs]:
            assert re.fullmatch(r"[a-z][a-z0-9_.-]*", run_id), run_id

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_a_run_that_the_grid_does_not_have_is_refused_whatever_its_name(
        self, name: str, tiny_config: ExperimentConfig
    ) -> None:
        with pytest.raises(InputError, match="is not in experiment") as caught:
            tiny_config.run(name)
        assert str(caught.value).isprintable()
