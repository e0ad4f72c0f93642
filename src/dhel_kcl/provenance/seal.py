"""The seal of an experiment: `audit.json`, the sha256 of every file in its folder, written by an audit that passes.

Manifests describe what jobs read and write. The seal covers everything else too: logs, benchmarks, TensorBoard's
events and the manifests themselves. It leaves out `audit.json`, the audit's own log, benchmark and list of problems,
the mark of a running workflow, plots by `dhel-kcl watch` (which anyone may make at any time), features that the
workflow discards, the crate, damaged files that were moved aside, and temporary files.

An audit that fails leaves the seal unchanged: without it, the next audit would miss a change that nothing else
reveals. The problems are kept beside the seal until an audit passes, so that an old pass does not count after a
failure. When a job is rerun, the workflow audits again and removes the seal first.

Anyone who can write to the folder can write a new seal. The audit therefore prints the seal's own sha256, to be kept
elsewhere.
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

_AGAIN = "if a job was rerun, run the workflow again"


class Seal(BaseModel):
    """The counts of an audit that passed, and the sha256 of each file by its path in the experiment's folder.

    `uncommitted` has a line for each stage with a job that ran code with uncommitted changes or of an unknown commit.
    `unlike` has lines that name pictures and pages whose bytes differ from what the code made at the time of that
    audit, with the reason.
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
        """Return the text of audit.json; its last entry is a digest of the others."""
        content = self.model_dump(exclude_defaults=True)
        return json.dumps({**content, "seal": sha256_json(content)}, indent=2) + "\n"


def begin(layout: Layout) -> None:
    """Invalidate the pass of an earlier audit before a new audit, which may fail or be killed.

    This must be called first, so that the earlier pass does not count even if the audit is interrupted in its first
    seconds. Nothing is written if there was no earlier audit or the folder is not an experiment's own.

    Raises:
        InputError: the folder cannot be written.
    """
    if (layout.audit.exists() or layout.audit_problems.exists()) and is_own(layout.root):
        with atomic_path(layout.audit_problems) as temporary:
            temporary.write_text(f"{layout.root}: an audit started and did not finish; audit again", encoding="utf-8")


def read_seal(path: Path) -> Seal:
    """Read a seal.

    Raises:
        InputError: it is missing, a pipe or a device, or not byte for byte what an audit writes.
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
    """Return the digests that a seal of the experiment's folder would contain now; linked folders are entered.

    The crate is left out, because it may be made after the audit.

    Args:
        experiment: the experiment.
        sha256: returns the digest of a file.

    Raises:
        InputError: a file or folder cannot be read.
    """
    from dhel_kcl.provenance.repair import SUFFIX  # not at the top: importing it takes too long for `begin`

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
    """Return the files of an experiment that differ from the seal, each once."""
    return [
        path
        for path in dict.fromkeys(files)
        if (sha256_file(path) if path.is_file() else None) != seal.sha256.get(path.relative_to(layout.root).as_posix())
    ]


def differences(sealed: dict[str, str], now: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each file that differs from the seal, and how it differs."""
    for name in sorted(sealed.keys() | now.keys()):
        if name not in now:
            yield name, f"missing, but sealed by the audit; {_AGAIN}"
        elif name not in sealed:
            yield name, f"added after the audit sealed the folder; remove it, or {_AGAIN}"
        elif sealed[name] != now[name]:
            yield name, f"changed since the audit sealed it; {_AGAIN}"
