"""After a crash: find the files that are not what their manifests say, and move them out of the workflow's way.

A file gets its name when it is whole and on the disk (`files.atomic_path`), so a killed job leaves no half of one.
A disk that loses power may lose what it said it had; Snakemake, which looks at names and times, would use what is left.
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
"""What the name of a file that was moved aside ends in."""


def repair_after_crash(layout: Layout, *, dry_run: bool = False) -> None:
    """Repair an experiment if the last workflow on it did not end by itself; else do nothing, at no cost.

    Jobs of a cluster may outlive their workflow, so nothing is touched that one of them could be writing. Nothing is
    done in a folder that `check_is_experiment` refuses.

    Args:
        layout: the experiment's folder.
        dry_run: say what is damaged and change nothing.

    Raises:
        InputError: a file cannot be read or moved.
    """
    running = {mark: is_running(mark) for mark in marks(layout)}
    unclear = [mark.name for mark, runs in running.items() if runs is None]
    if not running or True in running.values() or is_release(layout.root) or not _is_ours(layout):
        return
    if unclear:
        console.print(
            f"{layout.root}: {', '.join(unclear)} (host-process) may still run a workflow on it, which cannot be told "
            f"from here, so its files are not checked; if none runs, call: {_command(layout)}"
        )
        return
    console.print(f"{layout.root}: the last workflow did not end by itself; checking what it left")
    repair(layout, dry_run=dry_run, jobs_may_run=True)


def check_is_experiment(layout: Layout) -> None:
    """Refuse a folder in which nothing shows that jobs of ours worked there: repair moves and removes files by name.

    A crash may have damaged any file, so it is enough that one sound manifest records a file that is there, be it
    damaged. So is the mark of a workflow, or a sound configuration, where `dhel-kcl configure` left its two files.

    Raises:
        InputError: the folder is missing, a release, or not known to be an experiment's.
    """
    root = layout.root
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give an experiment's, such as results/quickstart")
    if is_release(root):
        raise InputError(f"{root}: a release, which stays as it was published; take it anew from where you got it")
    if not _is_ours(layout):
        raise InputError(f"{root}: no job has left a sound manifest in it; give one experiment's folder")


def _is_ours(layout: Layout) -> bool:
    if is_experiment(layout.root) and (marks(layout) or _is_sound(load_config, layout.config)):
        return True
    return any(os.path.lexists(file) for file, _ in _recorded(layout))


def check_free(layout: Layout) -> None:
    """Refuse to make a folder an experiment's if jobs would write over what is there and none of them made.

    An experiment that lost its configuration in a crash is known by a file that is as its job's manifest records it,
    or by the damaged configuration, which `repair` moved aside.

    Raises:
        InputError: the folder has a file, or something else, under a name that a job writes.
    """
    if any(layout.root.glob(f"{layout.config.name}*{SUFFIX}")):
        return
    alone = [layout.audit, layout.audit_problems, layout.log("**", "*"), layout.benchmark("**", "*")]
    patterns = [*outputs(layout), *manifests(layout), *(str(path.relative_to(layout.root)) for path in alone)]
    there = next((path for path in _found(layout.root, patterns) if path != layout.manifest("configure")), None)
    if there and not any(file.is_file() and sha256_file(file) == sha256 for file, sha256 in _recorded(layout)):
        raise InputError(f"{there}: jobs would write over it, and none of them made it; choose another folder")


def _recorded(layout: Layout) -> Iterator[tuple[Path, str]]:
    """The files that sound manifests in an experiment's folder say its jobs wrote, with their sha256."""
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
    """Whether a configuration is missing, or whole and in the form in which `dhel-kcl configure` writes it."""
    try:
        return not os.path.lexists(config) or read_regular(config) == resolved_text(load_config(config)).encode()
    except (InputError, OSError):
        return False


def repair(layout: Layout, *, dry_run: bool = False, jobs_may_run: bool = False) -> list[Path]:
    """Hash every file that a manifest lists; move damaged ones to ``<name>.damaged``, so that they are made again.

    The manifests of their jobs are removed, which tells planning to run these jobs again. Unreadable manifests count as
    damaged. Files in a manifest that no job of the experiment writes are reported but not touched, and so is whatever
    lies behind a link, as another experiment may use it. Marks of workflows that crashed are removed.

    Args:
        layout: the experiment's folder; no workflow runs on it.
        dry_run: say what is damaged and change nothing.
        jobs_may_run: leave outputs that are newer than their manifests, and temporary files; else those that no process
            writes any more are removed (`files.remove_abandoned`).

    Returns:
        The damaged files.

    Raises:
        InputError: a file cannot be read or moved, or, once all others are repaired, one lies behind a link.
    """
    found = marks(layout)
    damaged, again = _check(layout, jobs_may_run)
    behind = {path: link for path in (*damaged, *again) if (link := _link(layout.root, path))}
    for path, link in behind.items():
        why = damaged.get(path, "its job has to be done again")
        console.print(f"{path}: {why}, but behind the link {link}; left alone, remove it or restore what was damaged")
    try:
        for path in sorted(again - set(damaged) - behind.keys()):
            console.print(f"{path}: {'would be ' if dry_run else ''}removed, as its job has to be done again")
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
    """The path of a damaged file, with a number if that of an earlier one is there."""
    names = (path.with_name(f"{path.name.removesuffix(SUFFIX)}.{number}{SUFFIX}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], names) if not os.path.lexists(each))


def _link(root: Path, path: Path) -> Path | None:
    """The first link on the way from the experiment's folder to a file, which may be the file itself."""
    below = [path, *path.parents][: len(path.relative_to(root).parts)]
    return next((each for each in reversed(below) if each.is_symlink()), None)


def _found(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in sorted(root.glob(pattern)))


def _remove_abandoned(layout: Layout) -> None:
    """Remove what killed jobs were writing from the folders that jobs write to, but from none behind a link."""
    folders = {str(Path(pattern).parent) for pattern in (*outputs(layout), *manifests(layout))} - {"."}
    checkpoints = str(Path(layout.run("*").relative_to(layout.root), "checkpoints", "*"))
    for folder in [layout.root, *_found(layout.root, sorted({*folders, checkpoints}))]:
        if folder.is_dir() and not _link(layout.root, folder):
            for path in folder.glob(f"{TEMPORARY}*"):
                if not remove_abandoned(path):
                    console.print(f"{path}: a process may be writing it; left alone")


def _check(layout: Layout, jobs_may_run: bool) -> tuple[dict[Path, str], set[Path]]:
    """Damaged files, each with the reason, and the manifests of jobs whose outputs are damaged or gone."""
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
        if kept:  # by its manifest the next check finds what stays
            again.discard(path)
            gone.discard(path)
    # Of a folder that somebody put copies of manifests into nothing is removed.
    if whole and os.path.lexists(layout.config):
        again |= gone
    # Else `configure`, which replaces only what it wrote, would refuse what a crash left of it.
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
    """Name a file that cannot be read: not every OSError does."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be checked ({error.strerror}); repair its disk or move it away") from error


_SUBJECTS = {"experiment": ("",), "split": ("*/*",), "run": ("*",), "target": ("fig_*", "table_*")}
"""Patterns of what jobs are about, by `Stage.each`."""


def outputs(layout: Layout) -> list[str]:
    """Patterns, below the experiment's folder, of the files that its jobs list in manifests as their outputs."""
    files = [
        file
        for stage in STAGES.values()
        for subject in _SUBJECTS[stage.each]
        for file in stage.writes(layout, subject).values()
    ]
    return [str(path.relative_to(layout.root)) for path in files]


def manifests(layout: Layout) -> list[str]:
    """Patterns, below the experiment's folder, of the manifests of its jobs."""
    paths = [stage.manifest(layout, each) for stage in STAGES.values() for each in _SUBJECTS[stage.each]]
    return [str(path.relative_to(layout.root)) for path in paths]
