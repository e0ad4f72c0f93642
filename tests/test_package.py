"""The installed package: small, typed, documented."""

import inspect
import re
import zipfile
from importlib import import_module, metadata
from pathlib import Path

import pytest
from mkdocstrings import Inventory
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from workspace import REPOSITORY, run

PACKAGES = ("dhel_kcl.losses", "dhel_kcl.metrics", "dhel_kcl.theory")
PUBLIC = [f"{package}.{name}" for package in PACKAGES for name in import_module(package).__all__]
CORE = {"numpy", "scipy", "torch"}


def workflow_modules() -> list[str]:
    """What can be imported from the packages that only the workflow asks for."""
    requirements = [Requirement(text) for text in metadata.requires("dhel-kcl") or []]
    workflow = {
        canonicalize_name(r.name) for r in requirements if r.marker and r.marker.evaluate({"extra": "workflow"})
    }
    owners = metadata.packages_distributions().items()
    return [module for module, names in owners if workflow & set(map(canonicalize_name, names))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run("python", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder), cwd=REPOSITORY)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_with_its_marker_of_types_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"dhel_kcl/py.typed", "dhel_kcl/paper/report.html.j2", "dhel_kcl/losses/dhel.py"} <= set(names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"dhel_kcl"}


def test_the_wheel_asks_for_nothing_that_the_library_does_not_import(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        described = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    requirements = [Requirement(text) for text in re.findall(r"^Requires-Dist: (.+)$", described, re.MULTILINE)]
    assert {requirement.name for requirement in requirements if requirement.marker is None} == CORE


def test_no_file_changes_where_python_looks_for_modules() -> None:
    folders = ("src", "workflow", "paper_figures", "benchmarks", "docs")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    texts = [path for path in files if path.suffix in (".py", ".smk", ".j2", ".md")]
    assert len(texts) > 100
    assert not [path for path in texts if "sys.path" in path.read_text(encoding="utf-8")]


def test_the_library_works_without_the_workflows_packages(tmp_path: Path) -> None:
    missing = workflow_modules()
    assert {"ffcv", "cv2", "pandas", "sklearn", "typer", "yaml"} <= set(missing)
    probe = f"import sys; sys.modules.update(dict.fromkeys({missing})); import {', '.join(PACKAGES)}"
    outcome = run("python", "-c", probe, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr


def test_without_them_the_command_line_names_the_remedy(tmp_path: Path) -> None:
    probe = f"import sys; sys.modules.update(dict.fromkeys({workflow_modules()})); import dhel_kcl.cli"
    outcome = run("python", "-c", probe, cwd=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: ")
    assert "make setup" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_a_users_code_is_checked_against_the_packages_types(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        """\
import torch
from dhel_kcl.losses import DHEL, KCL, Gaussian
from dhel_kcl.metrics import effective_rank
energy = KCL(Gaussian(t=2.0), gamma=16.0).terms(*torch.randn(2, 256, 128)).energy
rank: float = effective_rank(torch.randn(256, 128))
loss = DHEL(temperature="hot")
""",
        encoding="utf-8",
    )
    # Reading PyTorch's own types would take half a minute.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-torch.*]\nfollow_imports = skip\n", encoding="utf-8"
    )
    outcome = run("mypy", script.name, cwd=tmp_path)
    errors = [line for line in outcome.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, outcome.stdout
    assert errors[0].startswith('train.py:6: error: Argument "temperature" to "DHEL" has incompatible type "str"')


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_described_with_each_of_its_parameters(name: str) -> None:
    package, _, attribute = name.rpartition(".")
    described = getattr(import_module(package), attribute)
    text = inspect.getdoc(described) or ""
    assert text.splitlines()[0].endswith((".", ":")), "a summary in one line"
    parameters = inspect.signature(described).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert [name for name in named if not re.search(rf"^ +{name}: \S", text, re.MULTILINE)] == []


def test_the_api_reference_is_built_without_a_warning_and_has_every_public_name(tmp_path: Path) -> None:
    site = tmp_path / "site"
    built = run("properdocs", "build", "--strict", "--site-dir", str(site), cwd=REPOSITORY)
    assert built.returncode == 0, built.stderr
    with (site / "objects.inv").open("rb") as file:
        inventory = Inventory.parse_sphinx(file)
    assert set(PUBLIC) <= set(inventory)
    for name in PUBLIC:
        page, _, anchor = inventory[name].uri.partition("#")
        assert f'id="{anchor}"' in (site / page).read_text(encoding="utf-8")
