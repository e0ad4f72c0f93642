"""The crate is a valid Provenance Run Crate that says what the manifests say; its bill of materials is CycloneDX."""

import io
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name
from requests.adapters import HTTPAdapter
from requests_cache import NEVER_EXPIRE, CachedSession
from rocrate_validator.models import Severity, ValidationSettings
from rocrate_validator.services import validate
from urllib3 import HTTPResponse
from workspace import FINISHED, REPOSITORY, TINY
from workspace import run as run_program

from dhel_kcl.declarations import scripts
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.files import read_json, sha256_file, write_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import jobs as jobs_of
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import Artifact, Manifest, load_manifest, locate
from dhel_kcl.provenance import crate, sbom
from dhel_kcl.provenance.crate import workflow_files, write_crate
from dhel_kcl.provenance.sbom import write_sbom

SCRIPTS = {name: script for name, script in scripts(REPOSITORY / "paper_figures").items() if name in FINISHED}
# The context is the one that the package rocrate 0.11.0 carries; its licence is CC0 1.0.
CONTEXTS = {"https://w3id.org/ro/crate/1.1/context": Path(__file__).parent / "contexts" / "ro-crate-1.1.jsonld"}
RUN = "digits-dhel-temperature0.3-bs128-seed0"
Entities = dict[str, dict[str, Any]]


class _StoredContexts(HTTPAdapter):
    """Answers a request for a JSON-LD context with the copy that the tests have."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        body = io.BytesIO(CONTEXTS[str(request.url)].read_bytes())
        headers = {"Content-Type": "application/ld+json"}
        return self.build_response(request, HTTPResponse(body, headers, status=200, preload_content=False))


@pytest.fixture(scope="session")
def context_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validator's cache of web pages, holding the contexts, so that it needs no network."""
    path = tmp_path_factory.mktemp("cache") / "contexts"
    with CachedSession(str(path), backend="sqlite", expire_after=NEVER_EXPIRE) as session:
        session.mount("https://", _StoredContexts())
        for url in CONTEXTS:
            session.get(url)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("a test must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match="must not use the network"):
        socket.create_connection(("localhost", 9))


@pytest.fixture
def failures(context_cache: Path, no_network: None) -> Callable[..., set[str]]:
    """Messages of the checks that a crate fails, of Provenance Run Crate and the profiles that it extends."""

    def failed(folder: Path, severity: Severity = Severity.REQUIRED) -> set[str]:
        settings = ValidationSettings(
            rocrate_uri=str(folder),
            profile_identifier="provenance-run-crate-0.5",
            requirement_severity=severity,
            offline=True,
            cache_path=context_cache,
        )
        return {str(issue.message) for issue in validate(settings).get_issues()}

    return failed


@pytest.fixture(scope="module")
def crated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished workspace, of whose experiment a crate was made."""
    folder = tmp_path_factory.mktemp("crated") / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    outcome = run_program("dhel-kcl", "crate", "results/tiny", cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    return folder


@pytest.fixture
def layout(crated: Path) -> Layout:
    return Layout(crated / "results" / "tiny")


@pytest.fixture
def copied(crated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A copy of the crate, in the folder that holds its repository; its software is not listed again."""
    shutil.copytree(crated, tmp_path / "copied", symlinks=True)
    monkeypatch.chdir(tmp_path / "copied")
    monkeypatch.setattr(crate, "write_sbom", lambda path: None)
    return Layout(Path("results/tiny"))


@pytest.fixture
def entities(layout: Layout) -> Entities:
    return read_entities(layout)


@pytest.fixture
def jobs(layout: Layout) -> dict[Path, Manifest]:
    return History(jobs_of(Experiment.open(layout.root, layout.root.parents[1] / "paper_figures"))).manifests


def read_entities(layout: Layout) -> Entities:
    return {entity["@id"]: entity for entity in read_json(layout.crate)["@graph"]}


def referred(entity: dict[str, Any], key: str) -> list[str]:
    """The ids that a property of an entity refers to."""
    value = entity.get(key, [])
    return [each["@id"] for each in (value if isinstance(value, list) else [value])]


def of_type(entities: Entities, kind: str) -> Entities:
    return {name: entity for name, entity in entities.items() if kind in entity["@type"]}


def id_of(file: Path, layout: Layout) -> str:
    if file.is_relative_to(layout.root):
        return file.relative_to(layout.root).as_posix()
    return f"source/{file.relative_to(layout.root.parents[1]).as_posix()}"


NOT_FOLLOWED = {
    "The Action SHOULD have an agent that is a Person or Organization",  # manifests do not say who ran a job
    "The Root Data Entity SHOULD have a link to a Contextual Entity representing the `author` of the RO-Crate",
    "The `publisher` property of a `Root Data Entity` SHOULD be an `Organization`",
    "The Application SHOULD have a url",  # nor where a package came from
    "The SoftwareApplication id SHOULD be an absolute URI",  # a package URL is one; the check wants http
    "The README.md SHOULD be about the crate",  # there is none
    "The README.md SHOULD have text/markdown as its encodingFormat",
}
"""The recommendations that the crate does not follow, and why."""


def test_the_crate_passes_every_required_check_and_all_but_a_few_recommended_ones_without_a_network(
    layout: Layout, failures: Callable[..., set[str]]
) -> None:
    assert failures(layout.root, Severity.RECOMMENDED) == NOT_FOLLOWED


def test_a_crate_that_lacks_what_its_profile_and_those_it_extends_require_fails(
    layout: Layout, tmp_path: Path, failures: Callable[..., set[str]]
) -> None:
    shutil.copytree(layout.root, tmp_path / "crate", symlinks=True)
    damaged = Layout(tmp_path / "crate")
    content = read_json(damaged.crate)
    entities = {entity["@id"]: entity for entity in content["@graph"]}
    required = {
        ("./", "datePublished"): "RO-Crate",
        ("./", "license"): "The Crate (Root Data Entity) must specify a license",
        (f"#pretrain/{RUN}", "instrument"): "The Action MUST have an instrument property",
        ("#parameter/pretrain/loss.name", "additionalType"): "FormalParameter MUST have an additionalType",
        ("source/Snakefile#features", "workExample"): "A HowToStep must refer to its corresponding tool",
        ("#engine", "object"): "An OrganizeAction must reference the ControlAction instances",
    }
    for name, key in required:
        del entities[name][key]
    write_json(damaged.crate, content)
    said = failures(damaged.root)
    assert [each for each in required.values() if not any(each in message for message in said)] == [], said


def test_each_job_is_one_action_with_its_code_files_and_times(
    layout: Layout, entities: Entities, jobs: dict[Path, Manifest]
) -> None:
    actions = of_type(entities, "CreateAction")
    assert set(actions) == {"#run"} | {f"#{job.stage}/{job.subject}" for job in jobs.values()}
    for path, job in jobs.items():
        action = actions[f"#{job.stage}/{job.subject}"]
        used = {name for name in referred(action, "object") if entities[name]["@type"] == "File"}
        assert used == {id_of(locate(path, artifact), layout) for artifact in job.inputs.values()}
        made = {id_of(locate(path, artifact), layout) for artifact in job.outputs.values()}
        assert set(referred(action, "result")) == made | {id_of(path, layout)}
        assert action["startTime"] == job.started <= action["endTime"]
        (tool,) = referred(action, "instrument")
        assert entities[tool]["version"] == job.source_digest
        packages = {
            entities[name]["name"]: entities[name]["version"]
            for name in referred(entities[tool], "softwareRequirements")
        }
        assert packages == job.packages


def test_each_job_belongs_to_one_step_which_names_the_code_that_the_job_ran(entities: Entities) -> None:
    actions = set(of_type(entities, "CreateAction")) - {"#run"}
    controls = of_type(entities, "ControlAction")
    assert sorted(name for control in controls.values() for name in referred(control, "object")) == sorted(actions)
    for control in controls.values():
        (step,) = referred(control, "instrument")
        ran = {tool for name in referred(control, "object") for tool in referred(entities[name], "instrument")}
        assert set(referred(entities[step], "workExample")) == ran
    assert referred(entities["#engine"], "result") == ["#run"]
    assert referred(entities["#engine"], "object") == list(controls)


def test_settings_and_seeds_of_a_job_are_values_of_its_codes_parameters(entities: Entities) -> None:
    action = entities[f"#pretrain/{RUN}"]
    values = [entities[name] for name in referred(action, "object") if entities[name]["@type"] == "PropertyValue"]
    found = {value["name"]: value["value"] for value in values}
    assert (found["loss.name"], found["loss.temperature"], found["batch_size"], found["seeds.run"]) == (
        "dhel",
        0.3,
        128,
        0,
    )
    (tool,) = referred(action, "instrument")
    assert {name for value in values for name in referred(value, "exampleOfWork")} <= set(
        referred(entities[tool], "input")
    )


def test_a_figure_leads_back_to_the_beton_by_the_same_files_as_in_the_manifests(
    layout: Layout, entities: Entities, jobs: dict[Path, Manifest]
) -> None:
    actions = [entity for name, entity in of_type(entities, "CreateAction").items() if name != "#run"]
    in_crate = {
        made: {name for name in referred(action, "object") if entities[name]["@type"] == "File"}
        for action in actions
        for made in referred(action, "result")
    }
    in_manifests = {
        id_of(locate(path, made), layout): {id_of(locate(path, used), layout) for used in job.inputs.values()}
        for path, job in jobs.items()
        for made in job.outputs.values()
    }

    def origins(file: str, used: dict[str, set[str]]) -> set[str]:
        return {file}.union(*(origins(each, used) for each in used.get(file, ())))

    origin = origins("figures/fig_batch_size.png", in_crate)
    assert origin == origins("figures/fig_batch_size.png", in_manifests)
    assert {"data/digits/train.beton", f"runs/{RUN}/encoder.safetensors", "results.parquet"} <= origin


def test_every_file_of_the_crate_is_there_with_its_size_and_hash(layout: Layout, entities: Entities) -> None:
    files = of_type(entities, "File")
    assert set(files) == set(referred(entities["./"], "hasPart"))
    assert {"config.yaml", "sbom.json", "source/Snakefile", "source/workflow/rules/paper.smk", "report.html"} <= set(
        files
    )
    for name, file in files.items():
        path = layout.root / name
        assert (file["sha256"], int(file["contentSize"])) == (sha256_file(path), path.stat().st_size), name


def test_the_crate_can_be_made_again_with_the_same_bytes(copied: Layout) -> None:
    before = copied.crate.read_bytes()
    copied.crate.unlink()
    shutil.rmtree(copied.source)
    write_crate(Experiment.open(copied.root))
    assert copied.crate.read_bytes() == before


def test_a_folder_that_is_a_link_belongs_to_the_crate_under_the_links_name(copied: Layout, tmp_path: Path) -> None:
    before = copied.crate.read_bytes()
    data = shutil.move(copied.root / "data", tmp_path / "elsewhere")
    (copied.root / "data").symlink_to(data)
    write_crate(Experiment.open(copied.root))
    assert copied.crate.read_bytes() == before


def test_a_new_crate_removes_its_old_copies_and_nothing_that_a_user_keeps_in_source(copied: Layout) -> None:
    old, mine, changed = (copied.source / name for name in ("workflow/old.smk", "notes.txt", "workflow/rules/own.smk"))
    for file in (old, mine, changed):
        file.write_text("text", encoding="utf-8")
    described = read_json(copied.crate)
    for file in (old, changed):
        name = file.relative_to(copied.root).as_posix()
        described["@graph"].append({"@id": name, "@type": "File", "sha256": sha256_file(file)})
    write_json(copied.crate, described)
    changed.write_text("mine now", encoding="utf-8")
    write_crate(Experiment.open(copied.root))
    assert not old.exists()
    assert mine.read_text(encoding="utf-8") == "text"
    assert changed.read_text(encoding="utf-8") == "mine now"


@pytest.mark.parametrize("link", ["source", "source/old", "source/old/file.txt"])
def test_an_old_copy_that_lies_behind_a_link_is_not_removed(link: str, tmp_path: Path) -> None:
    layout, mine = Layout(tmp_path), tmp_path / "mine" / "old" / "file.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    target = {"source": "mine", "source/old": "mine/old", "source/old/file.txt": "mine/old/file.txt"}[link]
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / target)
    old = {"@id": "source/old/file.txt", "@type": "File", "sha256": sha256_file(mine)}
    write_json(layout.crate, {"@graph": [old]})
    crate._remove_old_copies(layout, [])
    assert mine.read_text(encoding="utf-8") == "mine"
    assert (tmp_path / link).is_symlink()


@pytest.mark.parametrize("folder", ["source", "source/workflow"])
def test_the_crate_does_not_write_through_a_link(copied: Layout, folder: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "rules").mkdir(parents=True)
    for name in ("Snakefile", "rules/paper.smk"):
        (elsewhere / name).write_text("mine", encoding="utf-8")
    shutil.rmtree(copied.root / folder)
    (copied.root / folder).symlink_to(elsewhere)
    with pytest.raises(InputError, match=f"results/tiny/{folder}: a link, through which the crate would write"):
        write_crate(Experiment.open(copied.root))
    assert {path.name: path.read_text(encoding="utf-8") for path in elsewhere.rglob("*") if path.is_file()} == {
        "Snakefile": "mine",
        "paper.smk": "mine",
    }


def test_the_command_writes_the_crate_again_beside_what_a_user_keeps_in_source(copied: Layout) -> None:
    notes, gone = copied.source / "notes.txt", copied.source / "paper_figures" / "fig_spectrum.py"
    notes.write_text("mine", encoding="utf-8")
    copied.crate.unlink()
    gone.unlink()
    outcome = run_program("dhel-kcl", "crate", "results/tiny", cwd=Path())
    assert outcome.returncode == 0, outcome.stderr
    assert notes.read_text(encoding="utf-8") == "mine"
    assert gone.exists()


def test_two_files_from_elsewhere_with_one_name_are_two_entities(copied: Layout, tmp_path: Path) -> None:
    path = copied.manifest("report")
    manifest = load_manifest(path)
    for name in ("a", "b"):
        file = tmp_path / name / "classes.txt"
        file.parent.mkdir()
        file.write_text(name, encoding="utf-8")
        manifest.inputs[name] = Artifact(path=str(file), sha256=sha256_file(file), bytes=1)
    write_json(path, manifest.model_dump())
    write_crate(Experiment.open(copied.root))
    entities = read_entities(copied)
    used = [entities[name] for name in referred(entities["#report/tiny"], "object") if "classes.txt" in name]
    assert {entity["@type"] for entity in used} == {"CreativeWork"}
    assert {entity["sha256"] for entity in used} == {
        sha256_file(tmp_path / name / "classes.txt") for name in ("a", "b")
    }


def test_profiles_which_a_user_edits_are_in_the_crate_but_define_no_workflow(
    copied: Layout, entities: Entities
) -> None:
    profile = Path("workflow/profiles/slurm/config.yaml")
    Path("workflow/rules/.paper.smk.swp").touch()
    assert f"source/{profile}" in entities
    assert {path.name for path in workflow_files()}.isdisjoint({profile.name, ".paper.smk.swp"})
    assert {Path("workflow/rules/paper.smk"), Path("workflow/report/caption.rst")} <= set(workflow_files())


def test_the_crate_tells_of_discarded_features_without_having_them(
    copied: Layout, failures: Callable[..., set[str]]
) -> None:
    config = load_config(copied.config)
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"keep_features": False})})
    features = copied.features(RUN)
    recorded = load_manifest(copied.run_manifest("features", RUN)).outputs[features.name]
    features.unlink()
    write_crate(Experiment(config, copied))
    entities, name = read_entities(copied), f"#runs/{RUN}/features.safetensors"
    assert entities[name]["@type"] == "CreativeWork"
    assert entities[name]["sha256"] == recorded.sha256
    assert name in referred(entities[f"#features/{RUN}"], "result")
    assert name in referred(entities[f"#evaluate/{RUN}"], "object")
    assert name not in referred(entities["./"], "hasPart")
    assert failures(copied.root) == set()


def _use_another_version(layout: Layout) -> None:
    path = layout.run_manifest("evaluate", RUN)
    manifest = load_manifest(path)
    manifest.inputs["features.safetensors"].sha256 = "0" * 64
    write_json(path, manifest.model_dump())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda layout: layout.manifest("theory").unlink(), "theory.json: missing; run the rule that writes it"),
        (lambda layout: layout.report.unlink(), "report.html: missing or changed since"),
        (lambda layout: layout.encoder(RUN).write_bytes(b""), "encoder.safetensors: missing or changed since"),
        (
            lambda _: Path("config/published_results.csv").write_text("x", encoding="utf-8"),
            "published_results.csv: .*changed since",
        ),
        (_use_another_version, "features.safetensors: .*evaluate.* used a different version .*features.manifest"),
        (lambda _: Path("Snakefile").unlink(), "Snakefile: missing; run this in the root of the repository"),
    ],
    ids=["manifest", "report", "encoder", "read from outside", "stale", "workflow"],
)
def test_a_crate_that_would_not_be_true_is_refused(copied: Layout, damage: Callable[[Layout], None], said: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=said) as refused:
        write_crate(Experiment.open(copied.root))
    assert "\n" not in str(refused.value)


def test_the_command_names_what_it_wrote_and_what_is_missing(tmp_path: Path) -> None:
    workspace = tmp_path
    for name in ("Snakefile", "workflow", "config", "paper_figures", "envs"):
        (workspace / name).symlink_to(REPOSITORY / name)
    assert run_program("dhel-kcl", "configure", str(TINY), cwd=workspace).returncode == 0
    outcome = run_program("dhel-kcl", "crate", "results/tiny", cwd=workspace)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    assert "error: results/tiny/manifests/data-digits-train.json: missing; run the rule" in outcome.stderr


def test_the_bill_of_materials_is_valid_cyclonedx_and_lists_the_packages_of_the_manifests(
    layout: Layout, jobs: dict[Path, Manifest], no_network: None
) -> None:
    text, validator = layout.sbom.read_text(encoding="utf-8"), JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    bill = json.loads(text)
    assert validator.validate_str(json.dumps({**bill, "components": [{"type": "book", "name": "x"}]})) is not None
    listed = {canonicalize_name(component["name"]): component["version"] for component in bill["components"]}
    packages = {name: version for job in jobs.values() for name, version in job.packages.items() if name != "python"}
    assert {name: listed.get(canonicalize_name(name)) for name in packages} == packages
    assert '"file:' not in text, "a folder of this machine"


def test_the_bill_of_materials_of_one_environment_has_the_same_bytes_every_time(layout: Layout, tmp_path: Path) -> None:
    write_sbom(tmp_path / "sbom.json")
    assert (tmp_path / "sbom.json").read_bytes() == layout.sbom.read_bytes()


def test_an_environment_that_cannot_be_listed_is_one_line_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sbom, "_COMMAND", ("-m", "no_such_module"))
    with pytest.raises(InputError, match=r"sbom\.json: .*No module named no_such_module.*make setup") as refused:
        write_sbom(tmp_path / "sbom.json")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
