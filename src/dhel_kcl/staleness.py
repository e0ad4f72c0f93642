"""Which jobs of an experiment have to be done again: what their manifests record, against what is there now.

Snakemake has records of its own, beside the repository. They stay behind when results are copied, and the times of
files, by which it goes too, are then those of the copying. So a job is stale if its manifest says so: it was made under
other settings, by other code, or from other files than there are now. Times are set right where they contradict that.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dhel_kcl import stages
from dhel_kcl.artifacts import read_regular, sha256_file
from dhel_kcl.config import ExperimentConfig
from dhel_kcl.declarations import Script
from dhel_kcl.errors import InputError
from dhel_kcl.layout import Layout
from dhel_kcl.ownership import is_experiment, is_release
from dhel_kcl.provenance import Manifest, absolute, locate
from dhel_kcl.repair import outputs
from dhel_kcl.seal import read_seal

_ASKING_FOR_MANIFESTS = ("collect", "explorer", "report", "crate")
"""Stages whose rules ask for the manifests of jobs before them, besides the files that they read."""


def set_time(file: Path, nanoseconds: int) -> None:
    """Give a file a time of modification."""
    with suppress(OSError):  # in a folder that cannot be written Snakemake plans what it takes for old
        os.utime(file, ns=(nanoseconds, nanoseconds))


def stale_jobs(
    config: ExperimentConfig,
    layout: Layout,
    targets: Mapping[str, Script],
    set_time: Callable[[Path, int], None] = set_time,
) -> dict[Path, str]:
    """Find the jobs that were done, and have to be done again.

    Jobs that were never done, or whose manifest is gone, are not among them: Snakemake sees that a file is missing.
    Jobs that only follow from these are not either: Snakemake does them after those that they depend on.

    Where all that a job read is as it recorded it, but newer than what it wrote, as after copying, what it wrote is
    given the time of the newest file that it read. What it wrote at a time in the future, and is as it was recorded, is
    given the present time. In a release, and in a folder that is no experiment's, times stay as they are.

    Args:
        config: the experiment.
        layout: its folder.
        targets: the figure and table scripts, by name.
        set_time: gives a file a time; a dry run only notes it.

    Returns:
        The manifest of each such job, with the reason in a few words.
    """
    stale: dict[Path, str] = {}
    history = _History(config, layout, targets, set_time)
    for path, (stage, subject) in stages.expected_manifests(config, layout, targets).items():
        try:
            content = read_regular(path)
            job = Manifest.model_validate_json(content)
        except OSError:
            continue
        except (InputError, ValidationError):
            stale[path] = "its manifest cannot be read"
            continue
        # No rule runs configure: each call that runs jobs does.
        if stage != "configure" and (reason := history.changed(path, job, stage, subject)):
            stale[path] = reason
        history.add(path, job, hashlib.sha256(content).hexdigest())
    if layout.audit.exists() and (reason := history.changed_since_audit()):
        stale[layout.audit] = reason
    return stale


def explain(stale: Mapping[Path, str], jobs: Mapping[Path, tuple[str, str]]) -> Iterator[str]:
    """Say why jobs are stale, one line for each stage and reason.

    Args:
        stale: as `stale_jobs` gives it.
        jobs: stage and subject of each job, as `stages.expected_manifests` gives them.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for path, reason in stale.items():
        stage, subject = jobs.get(path, ("audit", path.parent.name))
        alike.setdefault((stage, reason), []).append(subject)
    for (stage, reason), subjects in alike.items():
        others = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        yield f"{stage} of {subjects[0]}{others} is stale: {reason}"


class _History:
    """The jobs whose manifests have been read so far, and the files that they wrote."""

    def __init__(
        self,
        config: ExperimentConfig,
        layout: Layout,
        targets: Mapping[str, Script],
        set_time: Callable[[Path, int], None],
    ) -> None:
        self._config, self._layout, self._targets = config, layout, targets
        self._set_time = set_time if is_experiment(layout.root) and not is_release(layout.root) else None
        self._times: dict[Path, int] = {}
        self._sha256 = cache(sha256_file)
        self._recorded: dict[Path, str] = {}
        self._producers: dict[Path, Path] = {}
        self._manifests: list[Path] = []

    def add(self, path: Path, job: Manifest, sha256: str) -> None:
        written = {locate(path, artifact): artifact.sha256 for artifact in job.outputs.values()}
        self._recorded |= written
        self._recorded[absolute(path)] = sha256
        self._producers |= dict.fromkeys(written, path)
        self._manifests.append(path)

    def changed(self, path: Path, job: Manifest, stage: str, subject: str) -> str | None:
        """Say why a job is stale, if it is; else set the times of what it wrote right."""
        if (job.stage, job.subject) != (stage, subject):
            return f"its manifest describes {job.stage} of {job.subject}"
        config, layout = self._config, self._layout
        settings = {} if stage == "render" else json.loads(json.dumps(stages.settings(config, stage, subject)))
        if job.settings != settings:
            return ", ".join(_differences(job.settings, settings))
        if job.source_digest != stages.current_code(config, self._targets, stage, subject):
            return "its code has changed"
        if stage == "features" and layout.features(subject).exists() != config.compute.keep_features:
            return f"compute.keep_features is {json.dumps(config.compute.keep_features)} now"
        read = {locate(path, artifact): artifact.sha256 for artifact in job.inputs.values()}
        for file, sha256 in read.items():
            # A file that no job wrote may be missing; then Snakemake says so.
            now = self._recorded.get(file) or (self._sha256(file) if file.is_file() else sha256)
            if now != sha256:
                return f"{file.name}, which it read, has changed"
        asked_for = self._manifests if stage in _ASKING_FOR_MANIFESTS else []
        written: dict[Path, str | None] = {path: None, layout.benchmark(*self._rule(stage, subject)): None}
        written |= {locate(path, artifact): artifact.sha256 for artifact in job.outputs.values()}
        return self._out_of_order(read, asked_for, written)

    def changed_since_audit(self) -> str | None:
        """Say why the audit is stale, if it is; else set its time right."""
        layout = self._layout
        try:
            sealed = read_seal(layout.audit).sha256
        except InputError:
            return "its seal cannot be read"
        for path in self._manifests:
            if sealed.get(path.relative_to(layout.root).as_posix()) != self._recorded[absolute(path)]:
                return f"{path} is not the one that it saw"
        audited = {absolute(file): sealed.get(file.name, "") for file in (layout.report, layout.crate, layout.sbom)}
        return self._out_of_order(audited, self._manifests, {layout.audit: None, layout.benchmark("audit"): None})

    def _rule(self, stage: str, subject: str) -> tuple[str, ...]:
        """The rule that does a job, and what its files are called after."""
        if stage in stages.RUN_STAGES:
            together = stage in stages.FEATURE_STAGES and not self._config.compute.keep_features
            return "measure" if together else stage, subject
        return (stage, subject.replace("/", "-")) if stage in ("data", "render") else (stage,)

    def _out_of_order(
        self, read: Mapping[Path, str], asked_for: Iterable[Path], written: Mapping[Path, str | None]
    ) -> str | None:
        """Give what a job wrote the time of the newest file that it read, if that one is newer but has not changed.

        A file that was discarded counts with the time of the manifest of its job. With each file that was written comes
        the sha256 that is recorded of it, if any.
        """
        now = time.time_ns()
        times = {file: self._time(file) or self._time(self._producers.get(file, file)) for file in [*read, *asked_for]}
        newest = max((each for each in times.values() if each <= now), default=0)
        older = [file for file in written if 0 < self._time(file) < newest]
        oldest = min(map(self._time, older), default=newest)
        for file, sha256 in read.items():
            if times[file] > oldest and file.is_file() and self._sha256(file) != sha256:
                return f"{file.name}, which it read, has changed"
        for file, recorded in written.items():
            ahead = self._time(file) > now and file.is_file() and recorded in (None, self._sha256(file))
            if self._set_time and (ahead or file in older) and self._may_set(file, recorded):
                self._times[absolute(file)] = now if ahead else newest
                self._set_time(file, now if ahead else newest)
        return None

    def _may_set(self, file: Path, recorded: str | None) -> bool:
        """Whether a file lies where jobs write; that of an output is what a manifest says, which may be anywhere."""
        if file.is_symlink():
            return False
        place = Path("/", os.path.relpath(file.absolute(), self._layout.root.absolute()))
        in_source = place.is_relative_to(Path("/", self._layout.source.name))
        return recorded is None or in_source or any(place.match(f"/{pattern}") for pattern in self._patterns)

    @cached_property
    def _patterns(self) -> list[str]:
        return outputs(self._layout)

    def _time(self, file: Path) -> int:
        """When a file was last changed, in nanoseconds, or the time that it was given; 0 if it is not there."""
        try:
            return self._times.get(absolute(file)) or file.stat().st_mtime_ns
        except OSError:
            return 0


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Name the settings that differ, with their values where these are short."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        before, now = json.dumps(old), json.dumps(new)
        yield f"{place} was {before}, is {now}" if len(before + now) < 80 else f"{place} has changed"
