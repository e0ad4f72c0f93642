"""Manifests: the record of each job, with the digests that show when it is stale."""

import functools
import os
import platform
import shlex
import subprocess  # nosec B404 # for git
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dhel_kcl.errors import InputError
from dhel_kcl.files import read_json, sha256_file, write_json


class Artifact(BaseModel):
    """A file as a job saw it; `path` is relative to the manifest's folder."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """Everything needed to trace, judge and repeat one job."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    subject: str
    command: list[str]
    settings: Any
    seeds: dict[str, int]
    inputs: dict[str, Artifact]
    outputs: dict[str, Artifact]
    source_digest: str
    git_commit: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    hardware: dict[str, str | int]
    started: str
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    peak_memory_mib: int | None = None
    host: str | None = None


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        InputError: it is missing or malformed.
    """
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: not a manifest; delete it and run its rule again") from error


def absolute(path: Path) -> Path:
    """Return an absolute path without ``..``; links are kept, so a file is named by its place, whatever is there."""
    return Path(os.path.normpath(path.absolute()))


def locate(manifest: Path, artifact: Artifact) -> Path:
    """Return the absolute path of a file that a manifest describes."""
    return absolute(manifest.parent / artifact.path)


def shown(path: Path) -> str:
    """Return a path for people to read: relative to the current folder if it is inside it."""
    path = absolute(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


_WRITERS = {
    *("altair", "jinja2", "matplotlib", "numpy", "pandas", "pillow", "rocrate", "scipy", "seaborn"),
    *("statsmodels", "tabulate", "vl-convert-python"),
}
"""Packages whose version may affect the bytes of a picture, a page or a table."""


def changes_since(manifest: Manifest, code: str) -> list[str]:
    """List the reasons why a job that shows results might write different bytes now; empty if there are none.

    Args:
        manifest: the job's manifest.
        code: digest of the code that it would run now.
    """
    installed = _package_versions()
    versions = {name: manifest.packages.get(name) for name in sorted(_WRITERS & installed.keys())}
    changed = [f"{name} was {was} and is {installed[name]}" for name, was in versions.items() if was != installed[name]]
    return [*(["its code has changed since"] if manifest.source_digest != code else []), *changed]


@contextmanager
def record(
    manifest: Path,
    *,
    stage: str,
    subject: str,
    settings: Any,
    source: str,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    seeds: Mapping[str, int] | None = None,
) -> Iterator[None]:
    """Run a job inside this block; if it succeeds, its manifest is written last.

    Inputs are hashed before the job runs, so that a file that changes meanwhile is not mistaken for the one used. None
    may have a time in the future; see `refuse_future`.

    Args:
        manifest: where the manifest goes.
        stage: the stage's name.
        subject: the run, beton or figure that the job is about.
        settings: the part of the resolved configuration that the outputs depend on.
        source: digest of the stage's source code, from `digests.source_digest`.
        inputs: files read, by name.
        outputs: files written, by name; the block may add to them.
        seeds: seeds of the named random streams.

    Raises:
        InputError: an input is missing or not a file, or its modification time lies in the future.
    """
    for path in inputs.values():
        if not path.exists():
            raise InputError(f"{path}: missing; run the rule that writes it")
        if not path.is_file():
            raise InputError(f"{path}: not a file, so its content cannot be recorded; give a file")
    refuse_future(inputs.values())
    used = {name: _describe(path, manifest.parent) for name, path in inputs.items()}
    commit, dirty = _git_state()  # before the job, because somebody may edit or commit while it runs
    started, clock = datetime.now(UTC), time.monotonic()
    _reset_peak_memory()
    yield
    written = Manifest(
        stage=stage,
        subject=subject,
        command=["dhel-kcl", *sys.argv[1:]],
        settings=settings,
        seeds=dict(seeds or {}),
        inputs=used,
        outputs={name: _describe(path, manifest.parent) for name, path in outputs.items()},
        source_digest=source,
        git_commit=commit,
        git_dirty=dirty,
        packages=_package_versions(),
        hardware=_hardware(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 3),
        peak_memory_mib=_peak_memory_mib(),
        host=platform.node() or None,
    )
    write_json(manifest, written.model_dump())


CLOCK_SKEW_SECONDS = 5.0
"""How far the clock of a network file system may be ahead of this machine's."""


def refuse_future(inputs: Iterable[Path]) -> None:
    """Refuse a job that has an input from the future; if it is only slightly ahead, wait until it is in the past.

    Snakemake removes the outputs of a job, however long it took, if they are older than one of its inputs.

    Raises:
        InputError: the modification time of an input is ahead of the clock by more than `CLOCK_SKEW_SECONDS`.
    """
    newest: tuple[float, Path] | None = None
    for path in inputs:  # Snakemake looks at a link itself and, when it plans, at its target
        modified = max(path.stat().st_mtime, path.lstat().st_mtime)
        if newest is None or modified > newest[0]:
            newest = modified, path
    if newest is None or (ahead := newest[0] - time.time()) <= 0:
        return
    if ahead > CLOCK_SKEW_SECONDS:
        raise InputError(
            f"{newest[1]}: was modified {ahead:.0f} seconds in the future, so Snakemake would remove what is made from "
            f"it; check the clock, then touch {shlex.quote(str(newest[1]))}"
        )
    time.sleep(ahead)


def _describe(path: Path, folder: Path) -> Artifact:
    relative = os.path.relpath(absolute(path), absolute(folder))
    return Artifact(path=relative, sha256=sha256_file(path), bytes=path.stat().st_size)


_PACKAGE = Path(__file__).parents[1]
"""The folder in which git is called."""
_CODE = [".", *(f":/{name}" for name in ("src", "paper_figures", "workflow", "Snakefile", "envs"))]
"""Code that results depend on; files in these places that were never committed count as uncommitted too."""


@functools.cache
def _git_state() -> tuple[str | None, bool | None]:
    """Return the commit of this package's code, and whether the code differs from it; None where git cannot tell.

    A repository that contains an installed package says nothing about its code unless it tracks that code.
    """
    try:
        _git("ls-files", "--error-unmatch", "--", str(Path(__file__).relative_to(_PACKAGE)))
        commit = _git("rev-parse", "--verify", "HEAD").decode()
    except (OSError, subprocess.CalledProcessError):
        return None, None
    try:
        changed = _git("status", "--porcelain", "--untracked-files=all", "--ignore-submodules=none", "--", *_CODE)
        # A lower-case letter marks files that git was told to assume unchanged, and S those it was told to skip.
        marked = _git("ls-files", "-v", "--", *_CODE).splitlines()
        # Files hidden by ignore rules count too, if they are code.
        ignored = _git("ls-files", "-z", "--others", "--exclude=__pycache__", "--", *_CODE).split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        return commit, None
    hidden = any(line[:1].islower() or line.startswith(b"S") for line in marked)
    return commit, bool(changed) or hidden or any(_may_be_code(os.fsdecode(name)) for name in ignored)


def _may_be_code(name: str) -> bool:
    """Return whether an ignored path in the package may be code; a link may always be.

    A repository inside this one is listed as a folder.
    """
    return name.endswith((*all_suffixes(), ".smk", "/")) or (_PACKAGE / name).is_symlink()


def _git(*arguments: str) -> bytes:
    """Run git in this package's folder, on its repository, whatever the environment names.

    Raises:
        OSError: git is not installed.
        CalledProcessError: git fails, for example because there is no repository or it belongs to somebody else.
    """
    # Without optional locks nothing is written and no hook runs. The file system monitor is off, because it is a
    # program that a repository can choose. All file times are compared, whatever the repository's settings leave out.
    settings = ["-c", "core.fsmonitor=false", "-c", "core.trustctime=true", "-c", "core.checkStat=default"]
    command = ["git", "--no-optional-locks", "--no-replace-objects", *settings, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ran = subprocess.run(command, cwd=_PACKAGE, env=environment, capture_output=True, check=True)  # nosec B603 # no shell
    return ran.stdout.strip()


def _package_versions() -> dict[str, str]:
    names = {requirement.partition(";")[0] for requirement in metadata.requires("dhel-kcl") or []}
    versions = {"python": platform.python_version()}
    for name in sorted(name.strip().split("=")[0].split("<")[0].split(">")[0] for name in names):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, str | int]:
    facts: dict[str, str | int] = {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _reset_peak_memory() -> None:
    """Make the kernel count this process's peak memory from now on; where it cannot, the peak is the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_memory_mib() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)
