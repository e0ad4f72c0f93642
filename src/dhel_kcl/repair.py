"""After a crash: find the files that are not what their manifests say, and move them out of the workflow's way.

A file gets its name when it is whole and on the disk (`artifacts.atomic_path`), so a killed job leaves no half of one.
A disk that loses power may lose what it said it had; Snakemake, which looks at names and times, would use what is left.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dhel_kcl.artifacts import TEMPORARY, read_json, sha256_file
from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.layout import Layout
from dhel_kcl.provenance import load_manifest, locate

SUFFIX = ".damaged"
"""What the name of a file that was moved aside ends in."""


class RunningMark:
    """A file that is there while a workflow runs on an experiment, and that one which crashed leaves behind.

    Workflows hold a shared lock on it, which the system gives up when a process ends, however it ends.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def set(self) -> None:
        """Write and lock the file, as a workflow that begins."""
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        os.fsync(self._lock)

    def clear(self) -> None:
        """Remove the file, as a workflow that ends, unless another one runs."""
        os.close(self._lock)
        if not self.is_held():
            self.path.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether a workflow runs; True where locks cannot tell."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def is_left_behind(self) -> bool:
        """Whether a workflow crashed and none runs."""
        return self.path.exists() and not self.is_held()


def repair_after_crash(layout: Layout, *, dry_run: bool = False) -> None:
    """Repair an experiment if the last workflow on it did not end by itself; else do nothing, at no cost.

    Args:
        layout: the experiment's folder.
        dry_run: say what is damaged and change nothing.

    Raises:
        InputError: a file cannot be read or moved.
    """
    mark = RunningMark(layout.running)
    if not mark.is_left_behind():
        return
    console.print(f"{layout.root}: the last workflow did not end by itself; checking what it left")
    repair(layout, dry_run=dry_run)
    if not dry_run:
        mark.path.unlink(missing_ok=True)


def repair(layout: Layout, *, dry_run: bool = False) -> list[Path]:
    """Hash every file that a manifest lists; move damaged ones to ``<name>.damaged``, so that they are made again.

    Unreadable manifests count as damaged. Temporary files of jobs that were killed are removed.

    Args:
        layout: the experiment's folder; no workflow runs on it.
        dry_run: say what is damaged and change nothing.

    Returns:
        The damaged files.

    Raises:
        InputError: a file cannot be read or moved.
    """
    damaged = dict(_damaged(layout))
    try:
        for path, reason in damaged.items():
            aside = path.with_name(path.name + SUFFIX)
            console.print(f"{path}: damaged ({reason}); {'would be ' if dry_run else ''}moved to {aside.name}")
            if not dry_run:
                path.replace(aside)
        for unfinished in layout.root.rglob(f"{TEMPORARY}*"):
            if not dry_run:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be moved ({error.strerror}); check its folder") from error
    return list(damaged)


def _damaged(layout: Layout) -> Iterator[tuple[Path, str]]:
    folder = layout.root
    for path in sorted([*folder.glob("manifests/*.json"), *folder.glob("runs/*/*.manifest.json")]):
        try:
            manifest = load_manifest(path)
        except InputError:
            yield path, "not a manifest"
            continue
        for artifact in manifest.outputs.values():
            file = locate(path, artifact)
            if file.exists() and sha256_file(file) != artifact.sha256:
                yield file, f"not what {path} records"
                if layout.source.resolve() in file.parents:  # of which Snakemake does not look at each file
                    yield path, f"{file.name} has to be made again"
    if layout.audit.exists():
        try:
            read_json(layout.audit)
        except InputError:
            yield layout.audit, "not JSON"
