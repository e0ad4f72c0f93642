"""The environment in its five forms: one lock, one list of system packages, and what is made of them."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rattler import MatchSpec
from workspace import REPOSITORY, run, snakemake

ENVS = REPOSITORY / "envs"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETUP = (ENVS / "setup.sh").read_text(encoding="utf-8")
INSTALL_THE_LOCK = "pip install [^\n]*--no-deps --require-hashes -r envs/lock.txt"


def locked(text: str) -> dict[str, list[str]]:
    """The lines of a lock without their hashes and comments: versions and markers by package."""
    lines = [line.removesuffix(" \\") for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    return {name: list(group) for name, group in itertools.groupby(lines, lambda line: line.split("==")[0])}


LOCK = locked((ENVS / "lock.txt").read_text(encoding="utf-8"))


class TestLock:
    def test_has_every_package_that_is_declared_at_a_version_that_is_allowed(self) -> None:
        extras = (PROJECT["optional-dependencies"][extra] for extra in ("workflow", "dev", "docs"))
        for text in itertools.chain(PROJECT["dependencies"], *extras):
            requirement = Requirement(text)
            assert requirement.name in LOCK, f"{requirement.name} is not locked; run make lock"
            for line in LOCK[requirement.name]:
                assert requirement.specifier.contains(line.split("==")[1].split()[0]), line

    def test_every_line_has_a_hash(self) -> None:
        for name in ("lock.txt", "benchmark-lock.txt"):
            entries = re.split(r"\n(?=\w)", (ENVS / name).read_text(encoding="utf-8"))[1:]
            assert len(entries) > 10
            assert [entry for entry in entries if "--hash=sha256:" not in entry] == []

    def test_is_what_the_declarations_resolve_to(self, tmp_path: Path) -> None:
        """`make lock` keeps the versions in the lock, so a new release elsewhere does not fail this."""
        shutil.copytree(ENVS, tmp_path / "envs")
        for name in ("pyproject.toml", "Makefile"):
            shutil.copy(REPOSITORY / name, tmp_path / name)
        outcome = make("lock", folder=tmp_path)
        if re.search("Failed to fetch|error sending request|Network is unreachable|dns error", outcome.stderr):
            pytest.skip("no package registry can be reached")
        assert outcome.returncode == 0, outcome.stderr
        for name in ("lock.txt", "benchmark-lock.txt"):
            assert locked((tmp_path / "envs" / name).read_text(encoding="utf-8")) == locked(
                (ENVS / name).read_text(encoding="utf-8")
            ), "run make lock"

    def test_make_lock_keeps_versions_unless_an_upgrade_is_asked_for(self) -> None:
        assert "--upgrade" not in make("--dry-run", "lock", folder=REPOSITORY).stdout
        assert make("--dry-run", "lock", "UPGRADE=1", folder=REPOSITORY).stdout.count("--upgrade") == 2

    def test_every_runtime_dependency_has_a_lower_bound(self) -> None:
        for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["workflow"]):
            assert any(s.operator in (">=", "==") for s in Requirement(text).specifier), f"{text}: see envs/bounds.sh"


def make(*arguments: str, folder: Path) -> Any:
    # `run` takes programs from the environment; `env` finds make on the PATH.
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return run("/usr/bin/env", f"PATH={programs}", "make", *arguments, cwd=folder)


class TestConda:
    DEPENDENCIES: tuple[str, ...] = tuple(
        yaml.safe_load((ENVS / "environment.yaml").read_text(encoding="utf-8"))["dependencies"]
    )

    @pytest.mark.parametrize("text", DEPENDENCIES)
    def test_every_dependency_is_a_valid_specification(self, text: str) -> None:
        assert str(MatchSpec(text, strict=True)).split()[0] == text.split()[0]

    @pytest.mark.parametrize("text", ["libopencv >>4", "python ==3.11=", "libopencv 4 4 4"])
    def test_an_invalid_one_would_be_noticed(self, text: str) -> None:
        with pytest.raises(Exception, match=r"invalid|not valid|unable to parse"):
            MatchSpec(text, strict=True)

    def test_its_python_is_one_that_the_package_and_the_lock_are_for(self) -> None:
        python = next(MatchSpec(text) for text in self.DEPENDENCIES if text.startswith("python "))
        release = str(python.version).removesuffix(".*")
        assert SpecifierSet(PROJECT["requires-python"]).contains(release)
        for lines in LOCK.values():
            markers = [Requirement(line).marker for line in lines]
            valid = [m is None or m.evaluate({"python_version": release}) for m in markers]
            assert sum(valid) <= 1, lines

    def test_has_what_ffcv_is_built_with_as_the_debian_packages(self) -> None:
        packages = re.search(r'^ *packages="([^"$]+)"', SETUP, re.MULTILINE)
        assert packages is not None
        conda_name = {
            "g++": "cxx-compiler",
            "pkg-config": "pkg-config",
            "libopencv-dev": "libopencv =4",
            "libturbojpeg0-dev": "libjpeg-turbo",
        }
        from_debian = {conda_name[package] for package in packages[1].split()}
        assert from_debian == {text for text in self.DEPENDENCIES if text.split()[0] not in ("python", "pip", "make")}
        assert "pkg-config --exists opencv4 libturbojpeg" in SETUP

    def test_installs_the_lock_and_the_package_after_it(self) -> None:
        script = (ENVS / "environment.post-deploy.sh").read_text(encoding="utf-8")
        assert re.search(INSTALL_THE_LOCK, script)
        assert re.search(INSTALL_THE_LOCK, SETUP), "make setup does so in the active environment"


@pytest.mark.parametrize(
    ("command", "said"), [("true", r"working \.\.\. \d+ s\n"), ("false", r"working \.\.\. failed\n")]
)
def test_a_step_of_the_setup_is_one_line_and_what_it_printed_is_shown_if_it_fails(command: str, said: str) -> None:
    function = re.search(r"^log=.*?^}$", SETUP, re.MULTILINE | re.DOTALL)
    assert function
    program = f"set -euo pipefail; {function[0]}\nstep working bash -c 'echo printed; {command}'"
    outcome = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert re.fullmatch(said, outcome.stdout)
    assert (outcome.returncode, outcome.stderr) == ((0, "") if command == "true" else (1, "printed\n"))


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with the rest of its line."""
    lines = [line for line in dockerfile.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


def sections(definition: str) -> dict[str, str]:
    """Header and sections of an Apptainer definition file."""
    header, *rest = re.split(r"^%(\w+)\n", definition, flags=re.MULTILINE)
    return {"header": header, **dict(zip(rest[::2], rest[1::2], strict=True))}


class TestContainers:
    """Neither Docker nor Apptainer is needed: the files are read."""

    DOCKER = instructions((ENVS / "Dockerfile").read_text(encoding="utf-8"))
    APPTAINER = sections((ENVS / "dhel-kcl.def").read_text(encoding="utf-8"))

    def docker_copies(self) -> list[str]:
        return [source for word, rest in self.DOCKER if word == "COPY" for source in rest.split()[:-1]]

    def apptainer_copies(self) -> list[tuple[str, str]]:
        return [tuple(line.split()) for line in self.APPTAINER["files"].splitlines() if line]

    def test_they_copy_the_same_files_which_exist_and_are_all_that_setup_and_the_build_read(self) -> None:
        copied = self.docker_copies()
        assert sorted(copied) == sorted(source for source, _ in self.apptainer_copies())
        assert all((REPOSITORY / source).exists() for source in copied)
        read = {PROJECT["readme"], "LICENSE", "pyproject.toml", *re.findall(r"envs/[\w.-]+", SETUP), "src/dhel_kcl"}
        for file in read:
            assert file.split("/")[0] in copied, file

    def test_dockers_context_has_what_is_copied_and_nothing_else(self) -> None:
        lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
        assert lines[1] == "*"
        assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(self.docker_copies())

    def test_each_file_comes_to_the_folder_in_which_setup_runs(self) -> None:
        folders = [rest for word, rest in self.DOCKER if word == "WORKDIR"]
        assert folders == ["/opt/dhel-kcl", "/work"]
        assert all(target == f"/opt/dhel-kcl/{source}" for source, target in self.apptainer_copies())
        assert "cd /opt/dhel-kcl\n" in self.APPTAINER["post"]

    def test_they_start_from_the_same_image_with_a_python_that_the_package_allows(self) -> None:
        (base,) = [rest for word, rest in self.DOCKER if word == "FROM"]
        assert f"From: {base}\n" in self.APPTAINER["header"]
        version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", base)
        assert version is not None
        assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])

    def test_they_name_no_package_that_setup_or_the_lock_names(self) -> None:
        (docker,) = [rest for word, rest in self.DOCKER if word == "RUN"]
        for body in (docker, self.APPTAINER["post"]):
            assert re.findall(r"envs/\S+", body) == ["envs/setup.sh"]
            assert re.findall(r"apt-get install -y --no-install-recommends (.*?) *(?:&&|\n)", body) == ["git"]
            assert "pip install" not in body
        assert os.access(ENVS / "setup.sh", os.X_OK)

    def test_both_find_the_environments_programs_and_prefer_the_clone_in_the_working_folder(self) -> None:
        (docker,) = [rest for word, rest in self.DOCKER if word == "ENV"]
        for settings in (docker, self.APPTAINER["environment"]):
            assert "PATH=/opt/dhel-kcl/.venv/bin:$PATH" in settings
            assert re.search(r"PYTHONPATH=src\b", settings)

    def test_a_relative_pythonpath_lets_the_clone_win(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "src")
        (tmp_path / "src" / "dhel_kcl").mkdir(parents=True)
        (tmp_path / "src" / "dhel_kcl" / "__init__.py").write_text("print(__file__)", encoding="utf-8")
        assert run("python", "-c", "import dhel_kcl", cwd=tmp_path).stdout.strip() == str(
            tmp_path / "src" / "dhel_kcl" / "__init__.py"
        )

    @pytest.fixture
    def apptainer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A program that notes how it is called and runs the job outside; the file of its notes."""
        (tmp_path / "bin").mkdir()
        notes = tmp_path / "calls"
        program = tmp_path / "bin" / "apptainer"
        program.write_text(
            f"""#!/bin/bash
if [[ $1 == --version ]]; then echo apptainer version 1.3.0; exit; fi
echo "$@" >>{notes}
exec bash -c "${{@: -1}}"
""",
            encoding="utf-8",
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        return notes

    def test_snakemake_runs_jobs_in_the_image_that_was_built_here(self, workspace: Path, apptainer: Path) -> None:
        (workspace / "dhel-kcl.sif").touch()
        arguments = ("theory", "--sdm", "apptainer", "--apptainer-args=--nv")
        outcome = snakemake(*arguments, cwd=workspace)
        assert outcome.returncode == 0, outcome.stderr
        (call,) = apptainer.read_text(encoding="utf-8").split("\n", 1)[:1]
        assert re.search(r"exec --home \S+ +--nv.* \S*dhel-kcl\.sif bash -c", call), call
        assert (workspace / "results" / "tiny" / "theory.parquet").exists()

    def test_without_an_image_none_is_asked_for(self, workspace: Path, apptainer: Path) -> None:
        (apptainer.parent / "bin" / "apptainer").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        asked = ("theory", "--dry-run", "--sdm", "apptainer")
        assert snakemake(*asked, cwd=workspace).returncode == 0
        (workspace / "dhel-kcl.sif").touch()
        outcome = snakemake(*asked, cwd=workspace)
        assert "Failed to get singularity version" in outcome.stdout + outcome.stderr


VULNERABLE = {"name": "numpy", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SOUND = {"name": "scipy", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


class TestAuditOfPackages:
    def outcome(self, folder: Path, *packages: dict[str, Any], error: str = "", accepted: str = "") -> Any:
        """Run the script with a pip-audit that reports some packages, or fails."""
        shutil.copy(ENVS / "audit_packages.py", folder)
        (folder / "lock.txt").touch()
        (folder / "accepted_vulnerabilities.txt").write_text(f"# ID, then why\n{accepted}\n", encoding="utf-8")
        program = folder / "pip-audit"
        said = "" if error else json.dumps({"dependencies": packages})
        program.write_text(f"#!/bin/sh\necho '{said}'\necho '{error}' >&2\nexit 1\n", encoding="utf-8")
        program.chmod(0o755)
        programs = f"PATH={folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return run("/usr/bin/env", programs, "python", "audit_packages.py", cwd=folder)

    def test_a_finding_fails_with_its_id_and_the_version_that_mends_it(self, tmp_path: Path) -> None:
        outcome = self.outcome(tmp_path, VULNERABLE, SOUND, UNKNOWN)
        assert outcome.returncode == 1
        assert "numpy 2.0: PYSEC-1, fixed in 2.1" in outcome.stdout
        assert "2 packages audited, 1 findings; not known there: ['torch']" in outcome.stdout

    def test_an_accepted_one_needs_a_reason(self, tmp_path: Path) -> None:
        assert self.outcome(tmp_path, VULNERABLE, accepted="PYSEC-1 only on Windows machines").returncode == 0
        assert self.outcome(tmp_path, VULNERABLE, accepted="PYSEC-2 only on Windows machines").returncode == 1
        assert "say why PYSEC-1" in self.outcome(tmp_path, VULNERABLE, accepted="PYSEC-1").stderr

    def test_when_nobody_can_be_asked_it_says_so(self, tmp_path: Path) -> None:
        for outcome in (
            self.outcome(tmp_path, error="requests.exceptions.ConnectionError: name resolution"),
            self.outcome(tmp_path, error="requests.exceptions.SSLError: certificate verify failed"),
            self.outcome(tmp_path, UNKNOWN),
        ):
            assert outcome.returncode == 0
            assert outcome.stdout.startswith("skipped: ")

    def test_another_failure_is_not_taken_for_that(self, tmp_path: Path) -> None:
        outcome = self.outcome(tmp_path, error="lock.txt: a line is malformed")
        assert outcome.returncode == 1
        assert "malformed" in outcome.stderr
