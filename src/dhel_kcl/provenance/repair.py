"""Repair after a crash: find the files that do not match their manifests, and move them out of the workflow's way.

A file gets its name only once it is complete and on disk (`files.atomic_path`), so a killed job leaves no partial file.
But a disk that loses power may lose data that it had confirmed. Snakemake looks only at names and times, and would use
what is left.
"""

import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config, resolved_text
from dhel_kcl.files import TEMPORARY, read_json, read_regular, remove_abandoned, sha256_file
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import absolute, load_manifest
from dhel_kcl.jobs.ownership import is_experiment, is_release
from dhel_kcl.jobs.running import is_running, marks
from dhel_kcl.jobs.stages import STAGES

SUFFIX = ".damaged"
"""Suffix of damaged files that were moved aside."""


def repair_after_crash(layout: Layout, *, dry_run: bool = False) -> None:
    """Repair an experiment if the last workflow on it crashed; otherwise do nothing, at no cost.

    Cluster jobs may outlive their workflow, so files that one of them could be writing are not touched. Nothing is done
    in a folder that `check_is_experiment` refuses.

    Args:
        layout: the experiment's folder.
        dry_run: report damage and change nothing.

    Raises:
        InputError: a file cannot be read or moved.
    """
    running = {mark: is_running(mark) for mark in marks(layout)}
    unclear = [mark.name for mark, runs in running.items() if runs is None]
    if not running or True in running.values() or is_release(layout.root) or not _is_ours(layout):
        return
    if unclear:
        console.print(
            f"{layout.root}: {', '.join(unclear)} (host-process) may still be running a workflow on it. This cannot be "
            f"checked from here, so its files are not checked; if none is running, run: {_command(layout)}"
        )
        return
    console.print(f"{layout.root}: the last workflow crashed; checking the files that it left")
    repair(layout, dry_run=dry_run, jobs_may_run=True)


def check_is_experiment(layout: Layout) -> None:
    """Refuse a folder unless something shows that jobs of this package worked there.

    Repair moves and removes files by name, so it must not run anywhere else. A crash may have damaged any file, so it
    is enough that one intact manifest records an existing file, even a damaged one. Where `dhel-kcl configure` left its
    two files, a workflow's mark or an intact configuration is enough too.

    Raises:
        InputError: the folder is missing, is a release, or is not known to be an experiment's.
    """
    root = layout.root
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give an experiment's, such as results/quickstart")
    if is_release(root):
        raise InputError(f"{root}: a release, which stays as it was published; get a fresh copy of it")
    if not _is_ours(layout):
        raise InputError(f"{root}: no job has left a sound manifest in it; give one experiment's folder")


def _is_ours(layout: Layout) -> bool:
    if is_experiment(layout.root) and (marks(layout) or _is_sound(load_config, layout.config)):
        return True
    return any(os.path.lexists(file) for file, _ in _recorded(layout))


def check_free(layout: Layout) -> None:
    """Refuse to turn a folder into an experiment's if jobs would overwrite files that no job made.

    An experiment that lost its configuration in a crash is recognised by a file that matches its manifest, or by the
    damaged configuration that `repair` moved aside.

    Raises:
        InputError: the folder has a file, or something else, under a name that a job writes.
    """
    if any(layout.root.glob(f"{layout.config.name}*{SUFFIX}")):
        return
    alone = [layout.audit, layout.audit_problems, layout.log("**", "*"), layout.benchmark("**", "*")]
    patterns = [*outputs(layout), *manifests(layout), *(str(path.relative_to(layout.root)) for path in alone)]
    there = next((path for path in _found(layout.root, patterns) if path != layout.manifest("configure")), None)
    if there and not any(file.is_file() and sha256_file(file) == sha256 for file, sha256 in _recorded(layout)):
        raise InputError(f"{there}: jobs would overwrite it, but none of them made it; choose another folder")


def _recorded(layout: Layout) -> Iterator[tuple[Path, str]]:
    """Yield the files that the jobs of an experiment wrote according to its intact manifests, with their sha256."""
    history, written = History(), {absolute(path) for path in _found(layout.root, outputs(layout))}
    for path in _found(layout.root, manifests(layout)):
        if _is_sound(history.load, path):
            yield from ((file, each.sha256) for file, each in history.outputs(path).items() if file in written)


def _command(layout: Layout) -> str:
    return f"dhel-kcl repair {shlex.quote(str(layout.root))}"


def _is_sound(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except (InputError, OSError):
        return False
    return True


def _is_resolved(config: Path) -> bool:
    """Return whether a configuration is missing, or is exactly what `dhel-kcl configure` would write."""
    try:
        return not os.path.lexists(config) or read_regular(config) == resolved_text(load_config(config)).encode()
    except (InputError, OSError):
        return False


def repair(layout: Layout, *, dry_run: bool = False, jobs_may_run: bool = False) -> list[Path]:
    """Hash every file that a manifest lists; move damaged ones to ``<name>.damaged``, so that they are made again.

    The manifests of their jobs are removed, which tells planning to rerun these jobs. Unreadable manifests count as
    damaged. Files in a manifest that no job of the experiment writes are reported but not touched. Neither are files
    behind a link, because another experiment may use them. Marks of crashed workflows are removed.

    Args:
        layout: the experiment's folder; no workflow may be running on it.
        dry_run: report damage and change nothing.
        jobs_may_run: leave temporary files, and outputs that are newer than their manifests, alone. If false, temporary
            files that no process is writing are removed (`files.remove_abandoned`).

    Returns:
        The damaged files.

    Raises:
        InputError: a file cannot be read or moved; or a damaged file is behind a link, after all others are repaired.
    """
    found = marks(layout)
    damaged, again = _check(layout, jobs_may_run)
    behind = {path: link for path in (*damaged, *again) if (link := _link(layout.root, path))}
    for path, link in behind.items():
        why = damaged.get(path, "its job must be rerun")
        console.print(f"{path}: {why}, but behind the link {link}; left alone, remove it or restore what was damaged")
    try:
        for path in sorted(again - set(damaged) - behind.keys()):
            console.print(f"{path}: {'would be ' if dry_run else ''}removed, because its job must be rerun")
            if not dry_run:
                path.unlink()
        for path in [path for path in damaged if path not in behind]:
            aside = _free(path.with_name(path.name + SUFFIX))
            console.print(f"{path}: damaged ({damaged[path]}); {'would be ' if dry_run else ''}moved to {aside.name}")
            if not dry_run:
                path.replace(aside)
        if not dry_run and not jobs_may_run:
            _remove_abandoned(layout)
        if not dry_run and not behind:
            for mark in found:
                mark.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be moved ({error.strerror}); check its folder") from error
    if behind:
        raise InputError(
            f"{layout.root}: {len(behind)} files behind links were left, named above; restore or remove them, then "
            f"call: {_command(layout)}"
        )
    return list(damaged)


def _free(path: Path) -> Path:
    """Return a free path for a damaged file, with a number if an earlier one took the name."""
    names = (path.with_name(f"{path.name.removesuffix(SUFFIX)}.{number}{SUFFIX}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], names) if not os.path.lexists(each))


def _link(root: Path, path: Path) -> Path | None:
    """Return the first link on the path from the experiment's folder to a file, which may be the file itself."""
    below = [path, *path.parents][: len(path.relative_to(root).parts)]
    return next((each for each in reversed(below) if each.is_symlink()), None)


def _found(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in sorted(root.glob(pattern)))


def _remove_abandoned(layout: Layout) -> None:
    """Remove temporary files of killed jobs from the folders that jobs write to, but not behind links."""
    folders = {str(Path(pattern).parent) for pattern in (*outputs(layout), *manifests(layout))} - {"."}
    checkpoints = str(Path(layout.run("*").relative_to(layout.root), "checkpoints", "*"))
    for folder in [layout.root, *_found(layout.root, sorted({*folders, checkpoints}))]:
        if folder.is_dir() and not _link(layout.root, folder):
            for path in folder.glob(f"{TEMPORARY}*"):
                if not remove_abandoned(path):
                    console.print(f"{path}: a process may be writing it; left alone")


def _check(layout: Layout, jobs_may_run: bool) -> tuple[dict[Path, str], set[Path]]:
    """Find damaged files, each with the reason, and the manifests of jobs whose outputs are damaged or gone."""
    folder, history = layout.root, History()
    damaged: dict[Path, str] = {}
    again: set[Path] = set()
    gone: set[Path] = set()
    whole = 0
    written = {absolute(path): path for path in _found(folder, outputs(layout))}
    for path in _found(folder, manifests(layout)):
        with _named(path):
            time = path.stat().st_mtime_ns  # before it is read: a job may replace it
            try:
                history.load(path)
            except InputError:
                damaged[path] = "not a manifest"
                continue
        kept = False
        for listed, artifact in history.outputs(path).items():
            if listed not in written:
                if os.path.lexists(listed):
                    console.print(f"{listed}: listed by {path}, but no job of {folder} writes it; left alone")
                elif listed.name != layout.features("").name:  # the workflow may have discarded those
                    console.print(f"{os.path.normpath(path.parent / artifact.path)}: missing")
                    gone.add(path)
                continue
            file = written[listed]
            with _named(file):
                state = history.state(file, artifact)
                if state == "as recorded":
                    whole += 1
                if state != "changed":
                    continue
                newer = file.stat().st_mtime_ns > time
            if newer and jobs_may_run:
                console.print(f"{file}: newer than {path}, a job may be at work; left alone")
            else:
                damaged[file] = f"not what {path} records"
                kept = kept or _link(folder, file) is not None
                again.add(path)
        if kept:  # the next check needs the manifest to find the damaged file that stays
            again.discard(path)
            gone.discard(path)
    # Remove nothing from a folder into which somebody only copied manifests.
    if whole and os.path.lexists(layout.config):
        again |= gone
    # Otherwise `configure`, which replaces only what it wrote, would refuse what a crash left of the file.
    if not _is_sound(load_manifest, layout.manifest("configure")) and not _is_resolved(layout.config):
        damaged[layout.config] = "not what `dhel-kcl configure` writes"
    with _named(layout.audit):
        if layout.audit.exists():
            try:
                read_json(layout.audit)
            except InputError:
                damaged[layout.audit] = "not JSON"
    return damaged, again


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in errors raised while it is read, because not every OSError does."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be checked ({error.strerror}); repair its disk or move it away") from error


_SUBJECTS = {"experiment": ("",), "split": ("*/*",), "run": ("*",), "target": ("fig_*", "table_*")}
"""Patterns of the subjects of jobs, by `Stage.each`."""


def outputs(layout: Layout) -> list[str]:
    """Return patterns, relative to the experiment's folder, of the outputs that its jobs list in manifests."""
    files = [
        file
        for stage in STAGES.values()
        for subject in _SUBJECTS[stage.each]
        for file in stage.writes(layout, subject).values()
    ]
    return [str(path.relative_to(layout.root)) for path in files]


def manifests(layout: Layout) -> list[str]:
    """Return patterns, relative to the experiment's folder, of the manifests of its jobs."""
    paths = [stage.manifest(layout, each) for stage in STAGES.values() for each in _SUBJECTS[stage.each]]
    return [str(path.relative_to(layout.root)) for path in paths]
