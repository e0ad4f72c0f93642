"""An experiment's run as a research object that other programs can read: a Workflow Run RO-Crate.

It follows the profile Provenance Run Crate 0.5 (https://w3id.org/ro/wfrun/provenance/0.5) and repeats what the
manifests say. Each job is a `CreateAction`: its instrument is the code that it ran, its object the files and settings
that it used, and its result the files that it wrote. The crate is the experiment's folder, or a release, with a copy of
the workflow.
"""

import json
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from importlib.metadata import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from dhel_kcl.errors import InputError
from dhel_kcl.files import atomic_path, read_json, sha256_file, sha256_json, write_json
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import Artifact, Manifest, absolute
from dhel_kcl.jobs.stages import STAGES
from dhel_kcl.provenance.sbom import write_sbom

Reference = dict[str, str]

_TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}  # RO-Crate 1.1 has none
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
_FORMATS = {
    **{".csv": "text/csv", ".html": "text/html", ".md": "text/markdown", ".py": "text/x-python", ".txt": "text/plain"},
    **{".json": "application/json", ".yaml": "application/yaml", ".parquet": "application/vnd.apache.parquet"},
    **{".png": "image/png", ".pdf": "application/pdf", ".smk": "text/plain", "": "text/plain"},
}
_COMPLETED = "http://schema.org/CompletedActionStatus"
_BEFORE_RESULTS = {"configure", *(name for name, stage in STAGES.items() if stage.each in ("split", "run"))}
_WORKFLOW = (
    "Snakefile",
    "workflow/rules/*.smk",
    "workflow/report/*.rst",
    "envs/environment*",
    "envs/lock.txt",
    f"{SCRIPTS}/*.py",
)


def profiles(clone: Path) -> list[Path]:
    """List Snakemake's profiles in a clone or a copy of it; users edit them, so they do not define the workflow."""
    return sorted(clone.glob("workflow/profiles/*/*.yaml"))


def workflow_files() -> list[Path]:
    """List the files that define the workflow: the rules, their environment, and the figure and table scripts.

    Raises:
        InputError: they are not in the current folder.
    """
    if not Path("Snakefile").exists():
        raise InputError("Snakefile: missing; run this in the root of the repository")
    return [path for each in _WORKFLOW for path in sorted(Path().glob(each)) if path.is_file()]


def write_crate(experiment: Experiment, output: Path | None = None, published: Iterable[Path] = ()) -> list[Path]:
    """Turn a folder into a crate: list the software, copy the workflow into the folder, and write the metadata.

    The same manifests in the same environment give the same bytes.

    Args:
        experiment: the experiment, whose folder becomes the crate if no other is given.
        output: the folder of a release, which becomes the crate instead.
        published: the files of the experiment that are in the release.

    Returns:
        The files that were written.

    Raises:
        InputError: a manifest, or a file that a manifest records, is missing or has changed.
    """
    made, there = Layout(output or experiment.layout.root), set(map(absolute, published))
    manifests = [path for path in jobs(experiment) if output is None or absolute(path) in there]
    history = History(manifests, experiment.discarded)
    write_sbom(made.sbom)
    files = _Files(experiment, history, made, None if output is None else there)
    copies = files.copy_workflow(made.source)
    _remove_old_copies(made, copies)
    write_json(made.crate, _describe(experiment, history, files))
    return [made.crate, made.sbom, *copies]


def _remove_old_copies(layout: Layout, copies: Sequence[Path]) -> None:
    """Remove copies that only an earlier crate made, unless somebody changed them or they are behind a link."""
    if not layout.crate.exists():
        return
    source, new = absolute(layout.source), {absolute(path) for path in copies}
    for file, sha256 in described(layout).items():
        behind = any(each.is_symlink() for each in (file, *file.parents) if each.is_relative_to(source))
        if not file.is_relative_to(source) or file in new or behind:
            continue
        if file.is_file() and sha256_file(file) == sha256:
            file.unlink()


def described(layout: Layout) -> dict[Path, str]:
    """Return the files of a crate, each with the sha256 that the metadata give.

    Raises:
        InputError: the metadata cannot be read.
    """
    try:
        files = [
            entity
            for entity in read_json(layout.crate)["@graph"]
            if "File" in (kind if isinstance(kind := entity["@type"], list) else [kind])
        ]
        return {absolute(layout.root / unquote(entity["@id"])): str(entity["sha256"]) for entity in files}
    except (KeyError, TypeError) as error:
        raise InputError(f"{layout.crate}: not the metadata of a crate; delete it and make the crate again") from error


def outdated(experiment: Experiment, history: History) -> str | None:
    """Say why an experiment's crate is not what `write_crate` would make now; None if it is.

    Args:
        experiment: the experiment.
        history: all its jobs.

    Raises:
        InputError: the crate cannot be read, or two manifests contradict each other.
    """
    layout = experiment.layout
    for file, sha256 in described(layout).items():
        if not file.is_file() or history.sha256(file) != sha256:
            return f"describes a different {file.relative_to(absolute(layout.root))}"
    now = _describe(experiment, history, _Files(experiment, history, layout, None))
    return None if read_json(layout.crate) == json.loads(json.dumps(now)) else "does not match the manifests"


class _Files:
    """Every file of the crate: what the manifests say about it, and its id in the crate.

    Attributes:
        made: the files that each job wrote, its manifest last; a job is identified by its manifest.
        used: the files that each job read.
        from_outside: the files that a job read but none wrote.
    """

    def __init__(self, experiment: Experiment, history: History, made: Layout, published: set[Path] | None) -> None:
        """Collect the files; `made` is the crate's folder, `published` the experiment's files in it, all if None."""
        self._clone, self._published = Path.cwd(), published
        self._root = absolute(experiment.layout.root)
        self._names = {self._clone: Path(made.source.name), self._root: Path()}
        self._discarded = {absolute(path) for path in experiment.discarded}
        self._recorded: dict[Path, tuple[Artifact, Path]] = {}
        self.made: dict[Path, list[Path]] = {}
        self.used: dict[Path, list[Path]] = {}
        for path in history.manifests:
            outputs = {file: (artifact, path) for file, artifact in history.outputs(path).items()}
            self._recorded |= outputs
            self.made[path] = [*outputs, self._add(path)]
        by_jobs = set(self._recorded)
        for path in history.manifests:
            for file, artifact in (used := history.inputs(path)).items():
                known, origin = self._recorded.setdefault(file, (artifact, path))
                if known.sha256 != artifact.sha256:
                    raise InputError(
                        f"{file}: {path} used a different version than {origin} has; run the workflow again"
                    )
            self.used[path] = list(used)
        self.from_outside = [file for file in self._recorded if file not in by_jobs]
        for file in [*workflow_files(), *profiles(Path())]:
            self._add(file)
        bill = self._add(experiment.layout.sbom, made.sbom)
        if published is not None:
            published.add(bill)

    def _add(self, file: Path, there: Path | None = None) -> Path:
        """Add a file that no job wrote; `there` says where to read it if it is elsewhere."""
        there = there or file
        described = Artifact(path=file.name, sha256=sha256_file(there), bytes=there.stat().st_size)
        self._recorded.setdefault(absolute(file), (described, file))
        return absolute(file)

    def copy_workflow(self, folder: Path) -> list[Path]:
        """Copy files from outside the experiment's folder into `folder`, and check that those inside are there.

        Other files in `folder` stay, because `dhel-kcl crate` did not write them.

        Returns:
            The copies.

        Raises:
            InputError: a file is missing or has changed since it was recorded, or a copy would be written through a
                link. Files inside the experiment's folder are compared only by size, because the audit hashes them.
        """
        copies: list[Path] = []
        for file, (artifact, origin) in self._recorded.items():
            if not self._has(file):
                continue
            inside = self._home(file) == self._root
            if inside and self._published is not None:
                continue  # its bytes were compared when the release was made
            same = file.exists() and file.stat().st_size == artifact.bytes
            if not (same and (inside or sha256_file(file) == artifact.sha256)):
                raise InputError(f"{file}: missing or changed since {origin} recorded it; run the workflow again")
            if not inside:
                copies.append(copy := folder / file.relative_to(self._clone))
                links = [each for each in copy.parents if each.is_relative_to(folder) and each.is_symlink()]
                if links:
                    raise InputError(f"{links[-1]}: a link, through which the crate would write; remove it")
                with atomic_path(copies[-1]) as temporary:
                    shutil.copyfile(file, temporary)
        return copies

    def _home(self, file: Path) -> Path | None:
        """Return the innermost of the two folders, experiment and clone, that contains the file."""
        return next((each for each in (file, *file.parents) if each in self._names), None)

    def _has(self, file: Path) -> bool:
        if file in self._discarded or (home := self._home(file)) is None:
            return False
        return self._published is None or home != self._root or file in self._published

    def reference(self, file: Path) -> Reference:
        """Return the id of a file: its path in the crate, or a fragment if it is not in the crate."""
        home = self._home(file)
        if home is None:  # other files may have the same name
            return {"@id": f"#{quote(file.name)}-{self._recorded[file][0].sha256[:16]}"}
        path = (self._names[home] / file.relative_to(home)).as_posix()
        return {"@id": quote(path) if self._has(file) else f"#{quote(path)}"}

    def entities(self) -> Iterator[dict[str, Any]]:
        """Describe each file; a file outside the crate is not a `File`, as the specification requires."""
        for file, (artifact, _) in self._recorded.items():
            entity: dict[str, Any] = {**self.reference(file), "@type": "File", "name": file.name}
            if not self._has(file):
                why = "discarded after use" if file in self._discarded else "kept elsewhere"
                entity |= {"@type": "CreativeWork", "description": f"not in the crate: {why}"}
            encoding = _FORMATS.get(file.suffix, "application/octet-stream")
            yield entity | {
                "contentSize": str(artifact.bytes),
                "encodingFormat": encoding,
                "sha256": artifact.sha256,
            }


class _Graph:
    """Entities by id; an entity that is added several times is kept once."""

    def __init__(self) -> None:
        self.entities: dict[str, dict[str, Any]] = {}
        self._linked: set[tuple[str, str, str]] = set()

    def add(self, identifier: str, kind: str, /, **properties: Any) -> Reference:
        self.entities.setdefault(identifier, {"@id": identifier, "@type": kind, **properties})
        return {"@id": identifier}

    def link(self, owner: Reference, key: str, reference: Reference) -> None:
        """Add a reference to the list in a property of an entity."""
        if (link := (owner["@id"], key, reference["@id"])) not in self._linked:
            self._linked.add(link)
            self.entities[owner["@id"]].setdefault(key, []).append(reference)


def _describe(experiment: Experiment, history: History, files: _Files) -> dict[str, Any]:
    """Return the crate's metadata as JSON-LD."""
    config, jobs = experiment.config, history.manifests
    graph = _Graph()
    for entity in files.entities():
        graph.entities[entity["@id"]] = entity
    parts = [{"@id": name} for name, entity in graph.entities.items() if entity["@type"] == "File"]
    last = max(jobs.values(), key=_end)
    times = {"startTime": min(job.started for job in jobs.values()), "endTime": _end(last), "actionStatus": _COMPLETED}

    workflow, snakemake = files.reference(absolute(Path("Snakefile"))), last.packages.get("snakemake", "unknown")
    run = graph.add("#run", "CreateAction", name=f"Run of {config.name}", instrument=workflow, **times)
    engine = _add_package(graph, "snakemake", snakemake)
    organised = graph.add("#engine", "OrganizeAction", name="Run of Snakemake", instrument=engine, result=run, **times)
    actions = [run, *(_add_job(graph, files, workflow, organised, path, job) for path, job in jobs.items())]
    configured = graph.entities[f"#configure/{quote(config.name)}"]
    outside = [files.reference(file) for file in files.from_outside]
    graph.entities[run["@id"]] |= {
        "description": f"Every job of {config.name}, each when its inputs were there",
        "object": [*configured["object"], *(file for file in outside if file not in configured["object"])],
        "result": [
            files.reference(file)
            for path, job in jobs.items()
            if job.stage not in _BEFORE_RESULTS
            for file in files.made[path]
        ],
    }
    graph.entities[workflow["@id"]] |= {
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        "name": "The workflow of dhel-kcl",
        "conformsTo": {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
        "input": graph.entities[configured["instrument"]["@id"]]["input"],
        "version": _commit(last),
    }

    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms = _TERMS
    main = crate.add_workflow(
        dest_path=workflow["@id"],
        main=True,
        lang="snakemake",
        lang_version=snakemake,
        properties=_compact(graph.entities.pop(workflow["@id"])),
    )
    for profile, name in _PROFILES.items():
        graph.add(profile, "CreativeWork", name=name, version=profile.rpartition("/")[2])
    about = metadata("dhel-kcl")
    spdx = about["License-Expression"]
    licence = graph.add(f"https://spdx.org/licenses/{spdx}", "CreativeWork", name=spdx, identifier=spdx)
    for entity in graph.entities.values():
        crate.add(ContextEntity(crate, entity["@id"], _compact(entity)))
    for key, value in {
        "name": f"{config.name}, an experiment of dhel-kcl",
        "description": about["Summary"],
        "datePublished": times["endTime"],
        "license": licence,
        "conformsTo": [{"@id": profile} for profile in _PROFILES],
        "mainEntity": main,
        "hasPart": parts,
        "mentions": [organised, *actions],
    }.items():
        crate.root_dataset[key] = value
    described: dict[str, Any] = crate.metadata.generate()
    return described


def _add_job(
    graph: _Graph, files: _Files, workflow: Reference, organised: Reference, path: Path, job: Manifest
) -> Reference:
    """Add a job as an action, with its tool and its settings, under its step of the workflow."""
    name = job.subject if job.stage == "render" else job.stage
    tool = _add_tool(graph, name, job)
    settings = [_add_setting(graph, name, tool, *each) for each in _flat({**job.settings, "seeds": job.seeds})]
    action = graph.add(
        f"#{quote(job.stage)}/{quote(job.subject)}",
        "CreateAction",
        name=f"{job.stage} of {job.subject}",
        description=shlex.join(job.command),
        instrument=tool,
        object=[*map(files.reference, files.used[path]), *settings],
        result=[*map(files.reference, files.made[path])],
        startTime=job.started,
        endTime=_end(job),
        actionStatus=_COMPLETED,
    )
    position = str(len(graph.entities[workflow["@id"]].get("step", ())) + 1)
    step = graph.add(f"{workflow['@id']}#{quote(name)}", "HowToStep", name=name, position=position)
    control = graph.add(f"#step/{quote(name)}", "ControlAction", name=f"Jobs of {name}", instrument=step)
    graph.link(workflow, "hasPart", tool)
    graph.link(workflow, "step", step)
    graph.link(step, "workExample", tool)
    graph.link(control, "object", action)
    graph.link(organised, "object", control)
    return action


def _add_tool(graph: _Graph, name: str, job: Manifest) -> Reference:
    """Add the code that a job ran: one entity for each version of it in each environment."""
    digest = sha256_json([job.source_digest, _commit(job), job.packages])[:16]
    return graph.add(
        f"#code/{quote(name)}-{digest}",
        "SoftwareSourceCode",
        name=f"The code of {name}",
        description=f"at commit {_commit(job)}; the version is a digest of the modules that it runs",
        version=job.source_digest,
        softwareRequirements=[_add_package(graph, *each) for each in job.packages.items()],
    )


def _add_package(graph: _Graph, name: str, version: str) -> Reference:
    """Add a package under its package URL, which is also used in the bill of materials."""
    kind = "generic" if name == "python" else "pypi"
    return graph.add(f"pkg:{kind}/{name}@{quote(version)}", "SoftwareApplication", name=name, version=version)


def _add_setting(graph: _Graph, step: str, tool: Reference, name: str, value: Any) -> Reference:
    """Add a setting of a job, as the value of a parameter of its tool."""
    parameter = graph.add(
        f"#parameter/{quote(step)}/{quote(name)}", "FormalParameter", name=name, additionalType="PropertyValue"
    )
    graph.link(tool, "input", parameter)
    identifier = f"#value/{quote(step)}/{quote(name)}/{sha256_json(value)[:16]}"
    return graph.add(identifier, "PropertyValue", name=name, value=value, exampleOfWork=parameter)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str | int | float]]:
    """Yield the settings under dotted names; lists (whose order JSON-LD would lose) and null become JSON text."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}".lstrip("."))
    else:
        yield name, value if isinstance(value, str | int | float) else json.dumps(value)


def _compact(entity: dict[str, Any]) -> dict[str, Any]:
    """Return an entity in RO-Crate's form, without empty lists and with single values instead of lists of one."""
    single = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in entity.items()}
    return {key: value for key, value in single.items() if value != []}


def _end(job: Manifest) -> str:
    return (datetime.fromisoformat(job.started) + timedelta(seconds=job.seconds)).isoformat(timespec="seconds")


def _commit(job: Manifest) -> str:
    """Return a job's commit, with the mark of `git describe` for uncommitted (-dirty) or unknown (-broken) changes."""
    if job.git_commit is None:
        return "unknown"
    return job.git_commit + {True: "-dirty", False: "", None: "-broken"}[job.git_dirty]
