"""Which jobs of an experiment have to be done again: what their manifests record, against what is there now.

Snakemake has records of its own, beside the repository. They stay behind when results are copied, and the times of
files, by which it goes too, are then those of the copying. So a job is stale if its manifest says so: it was made under
other settings, by other code, or from other files than there are now, or a file of it is gone. Times are set right
where they contradict that.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from dhel_kcl.errors import InputError
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job, jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import absolute
from dhel_kcl.jobs.ownership import is_experiment, is_release
from dhel_kcl.jobs.stages import stages_of
from dhel_kcl.jobs.stale import why_stale
from dhel_kcl.provenance.repair import outputs
from dhel_kcl.provenance.seal import read_seal


def set_time(file: Path, nanoseconds: int) -> None:
    """Give a file a time of modification."""
    with suppress(OSError):  # in a folder that cannot be written Snakemake plans what it takes for old
        os.utime(file, ns=(nanoseconds, nanoseconds))


def stale_jobs(experiment: Experiment, set_time: Callable[[Path, int], None] = set_time) -> dict[Path, str]:
    """Find the jobs that were done, and have to be done again.

    Jobs that were never done are not among them: Snakemake sees that. But it does not make again what is gone, if all
    that was made from it is there: jobs of which a file is missing are. Jobs that only follow from these are not:
    Snakemake does them after those that they depend on.

    Where all that a job read is as it recorded it, but newer than what it wrote, as after copying, what it wrote is
    given the time of the newest file that it read. What it wrote at a time in the future, and is as it was recorded, is
    given the present time. In a release, and in a folder that is no experiment's, times stay as they are.

    Args:
        experiment: the experiment.
        set_time: gives a file a time; a dry run only notes it.

    Returns:
        The manifest of each such job, with the reason in a few words.
    """
    stale: dict[Path, str] = {}
    history, expected, layout = History(discarded=experiment.discarded), jobs(experiment), experiment.layout
    times = _Times(layout, history, set_time)
    for path, job in expected.items():
        try:
            history.load(path)
        except InputError:
            if os.path.lexists(path):
                stale[path] = "its manifest cannot be read"
            continue
        except OSError:
            continue
        # No rule runs configure: each call that runs jobs does.
        if job.stage.name != "configure" and (reason := _changed(job, history, times)):
            stale[path] = reason
    for path, job in expected.items():
        if path not in history.manifests and path not in stale and _was_done(job, history):
            stale[path] = f"{path.name} is missing"
    if layout.audit.exists() and (reason := _changed_since_audit(experiment, history, times)):
        stale[layout.audit] = reason
    return stale


def explain(stale: Mapping[Path, str], experiment: Experiment) -> Iterator[str]:
    """Say why jobs are stale, one line for each stage and reason.

    Args:
        stale: as `stale_jobs` gives it.
        experiment: the experiment.
    """
    every = jobs(experiment)
    alike: dict[tuple[str, str], list[str]] = {}
    for path, reason in stale.items():
        stage, subject = (every[path].stage.name, every[path].subject) if path in every else ("audit", path.parent.name)
        alike.setdefault((stage, reason), []).append(subject)
    for (stage, reason), subjects in alike.items():
        others = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        yield f"{stage} of {subjects[0]}{others} is stale: {reason}"


def _was_done(job: Job, history: History) -> bool:
    """Whether a job without a manifest was done: something made from its files is there, or its rule ended."""
    wrote = [*job.writes.values(), job.manifest]
    if any(map(history.users, wrote)) or (job.layout.report in wrote and job.layout.audit.exists()):
        return True
    last = stages_of(job.rule, job.config)[-1]
    return last is not job.stage and last.manifest(job.layout, job.subject) in history.manifests


def _changed(job: Job, history: History, times: "_Times") -> str | None:
    """Say why a job is stale, if it is; else set the times of what it wrote right."""
    if reason := why_stale(job, history):
        return reason
    wrote = history.outputs(job.manifest)
    if any(file in history.discarded and file.exists() for file in wrote):
        return "compute.keep_features is false now"
    read = {file: artifact.sha256 for file, artifact in history.inputs(job.manifest).items()}
    written: dict[Path, str | None] = {
        job.manifest: None,
        job.layout.benchmark(*job.stage.rule_label(job.subject)): None,
    }
    written |= {file: artifact.sha256 for file, artifact in wrote.items()}
    return times.set_right(read, job.asks_for, written)


def _changed_since_audit(experiment: Experiment, history: History, times: "_Times") -> str | None:
    """Say why the audit is stale, if it is; else set its time right."""
    layout = experiment.layout
    # The call that does the audit again runs configure first.
    if missing := [file for file in (layout.config, layout.manifest("configure")) if not file.exists()]:
        return f"{missing[0].name} is missing"
    try:
        sealed = read_seal(layout.audit).sha256
    except InputError:
        return "its seal cannot be read"
    for path in history.manifests:
        if sealed.get(path.relative_to(layout.root).as_posix()) != history.recorded(path):
            return f"{path} is not the one that it saw"
    audited = {absolute(layout.report): sealed.get(layout.report.name, "")}
    return times.set_right(audited, history.manifests, {layout.audit: None, layout.benchmark("audit"): None})


class _Times:
    """The times of an experiment's files, as Snakemake will see them."""

    def __init__(self, layout: Layout, history: History, set_time: Callable[[Path, int], None]) -> None:
        self._root, self._history = layout.root, history
        self._set_time = set_time if is_experiment(layout.root) and not is_release(layout.root) else None
        self._given: dict[Path, int] = {}
        self._patterns = outputs(layout)

    def set_right(
        self, read: Mapping[Path, str], asked_for: Iterable[Path], written: Mapping[Path, str | None]
    ) -> str | None:
        """Give what a job wrote the time of the newest file that it read, if that one is newer but has not changed.

        A file that was discarded counts with the time of the manifest of its job.

        Args:
            read: the files that the job read, with the sha256 that it recorded.
            asked_for: further files that its rule asks for.
            written: the files that it wrote, with the sha256 that is recorded of each, if any.

        Returns:
            Why the job is stale, if it is after all.
        """
        now, history = time.time_ns(), self._history
        times = {file: self._time(file) or self._time(history.writer(file) or file) for file in [*read, *asked_for]}
        newest = max((each for each in times.values() if each <= now), default=0)
        older = [file for file in written if 0 < self._time(file) < newest]
        oldest = min(map(self._time, older), default=newest)
        for file, sha256 in read.items():
            if times[file] > oldest and file.is_file() and history.sha256(file) != sha256:
                return f"{file.name}, which it read, has changed"
        for file, recorded in written.items():
            ahead = self._time(file) > now and file.is_file() and recorded in (None, history.sha256(file))
            if self._set_time and (ahead or file in older) and self._may_set(file, recorded):
                self._given[absolute(file)] = now if ahead else newest
                self._set_time(file, now if ahead else newest)
        return None

    def _may_set(self, file: Path, recorded: str | None) -> bool:
        """Whether a file lies where jobs write; that of an output is what a manifest says, which may be anywhere."""
        if file.is_symlink():
            return False
        place = Path("/", os.path.relpath(file.absolute(), self._root.absolute()))
        return recorded is None or any(place.match(f"/{pattern}") for pattern in self._patterns)

    def _time(self, file: Path) -> int:
        """When a file was last changed, in nanoseconds, or the time that it was given; 0 if it is not there."""
        try:
            return self._given.get(absolute(file)) or file.stat().st_mtime_ns
        except OSError:
            return 0
