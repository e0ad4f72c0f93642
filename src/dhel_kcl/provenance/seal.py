"""The seal of an experiment: the sha256 of every file in its folder, which an audit that passes writes as audit.json.

Manifests describe what jobs read and write. The seal adds all the rest: logs, benchmarks, TensorBoard's events,
the manifests themselves. Not sealed are `audit.json`, the audit's own log, benchmark and list of problems, the mark of
a running workflow, drawings of `dhel-kcl watch`, which anyone may make at any time, features that the workflow
discards, the crate, damaged files that were moved aside, and temporary files.

An audit that fails leaves the seal as it is: without it, the next audit would pass over a change that nothing else
shows. So that an old pass does not count after a failure, the problems are kept beside it until an audit passes.
The workflow removes the seal before it audits again, which it does when a job was done again.

Who can write the folder can write a new seal. The audit therefore prints the seal's own sha256, to be kept elsewhere.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dhel_kcl.errors import InputError
from dhel_kcl.files import TEMPORARY, atomic_path, parse_json, read_regular, sha256_file, sha256_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout, walk
from dhel_kcl.jobs.ownership import is_own

_AGAIN = "if a job was done again, run the workflow again"


class Seal(BaseModel):
    """What an audit that passed counted, and the sha256 of each file by its path below the experiment's folder.

    `uncommitted` has a line for each stage of which a job ran code with uncommitted changes, or of an unknown commit;
    `unlike` a line for pictures and pages that have other bytes than the code of that audit makes, and why they may.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    points: int
    measurements: int
    manifests: int
    files: int
    uncommitted: list[str]
    unlike: list[str] = []
    sha256: dict[str, str]

    def text(self) -> str:
        """The one form in which the seal is written; its last entry is a digest of the others."""
        content = self.model_dump(exclude_defaults=True)
        return json.dumps({**content, "seal": sha256_json(content)}, indent=2) + "\n"


def begin(layout: Layout) -> None:
    """Make a pass of an earlier audit count no longer, before another one that may end by an error or be killed.

    It is called first of all: whoever interrupts an audit in its first seconds must not find the earlier pass. Nothing
    is written where there is none, nor into a folder that is no experiment's own.

    Raises:
        InputError: the folder cannot be written.
    """
    if (layout.audit.exists() or layout.audit_problems.exists()) and is_own(layout.root):
        with atomic_path(layout.audit_problems) as temporary:
            temporary.write_text(f"{layout.root}: an audit began and did not end; audit again", encoding="utf-8")


def read_seal(path: Path) -> Seal:
    """Read a seal.

    Raises:
        InputError: it is missing, a pipe or a device, or is not to the byte what an audit writes.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run the audit") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); remove it and audit again") from error
    try:
        values = dict(parse_json(content))
        seal = Seal.model_validate({name: values[name] for name in values if name != "seal"})
    except (TypeError, ValueError):
        seal = None
    if seal is None or seal.text().encode() != content:
        raise InputError(f"{path}: not what an audit wrote; restore it, or delete it and audit again without its seal")
    return seal


def file_digests(experiment: Experiment, sha256: Callable[[Path], str]) -> dict[str, str]:
    """List what a seal of the experiment's folder, as it is now, holds; folders that are links are entered.

    The crate is apart, as it may be made when the audit is over.

    Args:
        experiment: the experiment.
        sha256: gives the digest of a file.

    Raises:
        InputError: a file or folder cannot be read.
    """
    from dhel_kcl.provenance.repair import SUFFIX  # not above: it takes time that `begin` has not

    layout = experiment.layout
    apart = {layout.audit, layout.audit_problems, layout.log("audit"), layout.benchmark("audit"), layout.running}
    apart |= {layout.live(run) for run in experiment.config.runs} | experiment.discarded
    apart |= {layout.crate, layout.sbom}
    found = {}
    try:
        for path in walk(layout.root):
            aside = path.name.startswith(TEMPORARY) or path.name.endswith(SUFFIX) or layout.source in path.parents
            if not aside and not apart & {path, path.parent}:
                found[path.relative_to(layout.root).as_posix()] = sha256(path) if path.is_file() else "not a file"
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); check the disk and its permissions"
        ) from error
    return dict(sorted(found.items()))


def changed(layout: Layout, seal: Seal, files: Iterable[Path]) -> list[Path]:
    """Those of some files of an experiment that are not as they were sealed, each once."""
    return [
        path
        for path in dict.fromkeys(files)
        if (sha256_file(path) if path.is_file() else None) != seal.sha256.get(path.relative_to(layout.root).as_posix())
    ]


def differences(sealed: dict[str, str], now: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each file that is not as it was sealed, and how it differs."""
    for name in sorted(sealed.keys() | now.keys()):
        if name not in now:
            yield name, f"missing, but sealed by the audit; {_AGAIN}"
        elif name not in sealed:
            yield name, f"added after the audit sealed the folder; remove it, or {_AGAIN}"
        elif sealed[name] != now[name]:
            yield name, f"changed since the audit sealed it; {_AGAIN}"
