"""Finding stale jobs: comparing what their manifests record with what is there now.

Snakemake's own records are left behind when results are copied, and the file times that it also uses are then those of
the copy. Staleness therefore depends on the manifests: a job is stale if its settings, its code or its input files have
changed, or one of its files is gone. File times that contradict this are corrected.
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
    """Set the modification time of a file."""
    with suppress(OSError):  # in a read-only folder Snakemake simply plans the jobs that it considers old
        os.utime(file, ns=(nanoseconds, nanoseconds))


def stale_jobs(experiment: Experiment, set_time: Callable[[Path, int], None] = set_time) -> dict[Path, str]:
    """Find the jobs that were done before and have to be rerun.

    Jobs that were never done are not included, because Snakemake finds those. Jobs with a missing file are included,
    because Snakemake does not remake a file if everything made from it exists. Jobs that are stale only because they
    depend on these are not included, because Snakemake reruns them anyway.

    If the inputs of a job are unchanged but newer than its outputs, as after copying, the outputs get the time of the
    newest input. Unchanged outputs whose time lies in the future get the present time. In a release, and in a folder
    that is not an experiment's, times are left alone.

    Args:
        experiment: the experiment.
        set_time: sets the time of a file; a dry run only records it.

    Returns:
        The manifest of each stale job, with a short reason.
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
        # No rule runs configure; every call that runs jobs does.
        if job.stage.name != "configure" and (reason := _changed(job, history, times)):
            stale[path] = reason
    for path, job in expected.items():
        if path not in history.manifests and path not in stale and _was_done(job, history):
            stale[path] = f"{path.name} is missing"
    if layout.audit.exists() and (reason := _changed_since_audit(experiment, history, times)):
        stale[layout.audit] = reason
    return stale


def explain(stale: Mapping[Path, str], experiment: Experiment) -> Iterator[str]:
    """Say why jobs are stale, in one line for each stage and reason.

    Args:
        stale: the return value of `stale_jobs`.
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
    """Return whether a job without a manifest was done: a file made from its outputs exists, or its rule finished."""
    wrote = [*job.writes.values(), job.manifest]
    if any(map(history.users, wrote)) or (job.layout.report in wrote and job.layout.audit.exists()):
        return True
    last = stages_of(job.rule, job.config)[-1]
    return last is not job.stage and last.manifest(job.layout, job.subject) in history.manifests


def _changed(job: Job, history: History, times: "_Times") -> str | None:
    """Say why a job is stale; if it is not, correct the times of its outputs."""
    if reason := why_stale(job, history):
        return reason
    wrote = history.outputs(job.manifest)
    if any(file in history.discarded and file.exists() for file in wrote):
        return "compute.keep_features is now false"
    read = {file: artifact.sha256 for file, artifact in history.inputs(job.manifest).items()}
    written: dict[Path, str | None] = {
        job.manifest: None,
        job.layout.benchmark(*job.stage.rule_label(job.subject)): None,
    }
    written |= {file: artifact.sha256 for file, artifact in wrote.items()}
    return times.set_right(read, job.asks_for, written)


def _changed_since_audit(experiment: Experiment, history: History, times: "_Times") -> str | None:
    """Say why the audit is stale; if it is not, correct its time."""
    layout = experiment.layout
    # The call that reruns the audit runs configure first.
    if missing := [file for file in (layout.config, layout.manifest("configure")) if not file.exists()]:
        return f"{missing[0].name} is missing"
    try:
        sealed = read_seal(layout.audit).sha256
    except InputError:
        return "its seal cannot be read"
    for path in history.manifests:
        if sealed.get(path.relative_to(layout.root).as_posix()) != history.recorded(path):
            return f"{path} has changed since"
    audited = {absolute(layout.report): sealed.get(layout.report.name, "")}
    return times.set_right(audited, history.manifests, {layout.audit: None, layout.benchmark("audit"): None})


class _Times:
    """The modification times of an experiment's files, as Snakemake will see them."""

    def __init__(self, layout: Layout, history: History, set_time: Callable[[Path, int], None]) -> None:
        self._root, self._history = layout.root, history
        self._set_time = set_time if is_experiment(layout.root) and not is_release(layout.root) else None
        self._given: dict[Path, int] = {}
        self._patterns = outputs(layout)

    def set_right(
        self, read: Mapping[Path, str], asked_for: Iterable[Path], written: Mapping[Path, str | None]
    ) -> str | None:
        """Give a job's outputs the time of its newest input, if that input is newer but unchanged.

        A discarded file counts with the time of its job's manifest.

        Args:
            read: the files that the job read, with the sha256 that it recorded.
            asked_for: further files that its rule asks for.
            written: the files that it wrote, each with its recorded sha256, if any.

        Returns:
            The reason if the job turns out to be stale, else None.
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
        """Return whether a file is where jobs write; a manifest can name an output at any other place."""
        if file.is_symlink():
            return False
        place = Path("/", os.path.relpath(file.absolute(), self._root.absolute()))
        return recorded is None or any(place.match(f"/{pattern}") for pattern in self._patterns)

    def _time(self, file: Path) -> int:
        """Return the modification time of a file in nanoseconds, or the time it was set to; 0 if it does not exist."""
        try:
            return self._given.get(absolute(file)) or file.stat().st_mtime_ns
        except OSError:
            return 0
