"""Which jobs of an experiment have to be done again: what their manifests record, against what is there now.

Snakemake has records of its own, beside the repository. They stay behind when results are copied, and the times of
files, by which it goes too, are then those of the copying. So a job is stale if its manifest says so: it was made under
other settings, by other code, or from other files than there are now, or a file of it is gone. Times are set right
where they contradict that.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dhel_kcl.errors import InputError
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job, jobs
from dhel_kcl.jobs.manifest import absolute
from dhel_kcl.jobs.stages import FEATURE_STAGES
from dhel_kcl.provenance.seal import read_seal


def stale_jobs(experiment: Experiment) -> dict[Path, str]:
    """Find the jobs that were done, and have to be done again.

    Jobs that were never done are not among them: Snakemake sees that. But it does not make again what is gone, if all
    that was made from it is there: jobs of which a file is missing are. Jobs that only follow from these are not:
    Snakemake does them after those that they depend on.

    Where all that a job read is as it recorded it, but newer than what it wrote, as after copying, what it wrote is
    given the time of the newest file that it read.

    Returns:
        The manifest of each such job, with the reason in a few words.
    """
    stale: dict[Path, str] = {}
    history, expected, layout = History(), jobs(experiment), experiment.layout
    discarded = {absolute(file) for file in experiment.discarded}
    for path, job in expected.items():
        try:
            history.load(path)
        except InputError:
            if path.is_file():
                stale[path] = "its manifest cannot be read"
            continue
        except OSError:
            continue
        # No rule runs configure: each call that runs jobs does.
        if job.stage.name != "configure" and (reason := _changed(job, history, discarded)):
            stale[path] = reason
    for path, job in expected.items():
        if path not in history.manifests and path not in stale and _was_used(job, history):
            stale[path] = f"{path.name} is missing"
    if layout.audit.exists() and (reason := _changed_since_audit(experiment, history)):
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


def _was_used(job: Job, history: History) -> bool:
    """Whether something that is there was made from what a job wrote, which was therefore done."""
    wrote = [*job.writes.values(), job.manifest]
    return any(map(history.users, wrote)) or (job.layout.report in wrote and job.layout.audit.exists())


def _changed(job: Job, history: History, discarded: set[Path]) -> str | None:
    """Say why a job is stale, if it is; else set the times of what it wrote right.

    Args:
        job: the job.
        history: it and the jobs before it.
        discarded: files that the workflow deletes once they were used.
    """
    path, done = job.manifest, history.manifests[job.manifest]
    if (done.stage, done.subject) != (job.stage.name, job.subject):
        return f"its manifest describes {done.stage} of {done.subject}"
    if done.settings != (settings := json.loads(json.dumps(job.settings))):
        return ", ".join(_differences(done.settings, settings))
    if done.source_digest != job.code:
        return "its code has changed"
    keeps = job.config.compute.keep_features
    if job.stage.name == "features" and job.layout.features(job.subject).exists() != keeps:
        return f"compute.keep_features is {json.dumps(keeps)} now"
    wrote = history.outputs(path)
    if missing := [file for file in wrote if file not in discarded and not file.exists()]:
        return f"{missing[0].name} is missing"
    read = {file: artifact.sha256 for file, artifact in history.inputs(path).items()}
    if others := read.keys() ^ {absolute(file) for file in job.reads.values()}:
        other = min(others)
        return f"it read {other.name}, and would not now" if other in read else f"it would read {other.name} now"
    for file, sha256 in read.items():
        # A file that no job wrote may be missing; then Snakemake says so.
        now = history.recorded(file) or (history.sha256(file) if file.is_file() else sha256)
        if now != sha256:
            return f"{file.name}, which it read, has changed"
    written = [path, *wrote, job.layout.benchmark(*_rule(job))]
    return _out_of_order(history, read, job.asks_for, written)


def _changed_since_audit(experiment: Experiment, history: History) -> str | None:
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
    return _out_of_order(history, audited, history.manifests, [layout.audit, layout.benchmark("audit")])


def _rule(job: Job) -> tuple[str, ...]:
    """What the benchmark of the rule that does a job is called after."""
    if job.stage.name in FEATURE_STAGES and not job.config.compute.keep_features:
        return ("measure", job.subject)
    return job.stage.label(job.subject)


def _out_of_order(
    history: History, read: Mapping[Path, str], asked_for: Iterable[Path], written: list[Path]
) -> str | None:
    """Give what a job wrote the time of the newest file that it read, if that one is newer but has not changed.

    A file that was discarded counts with the time of the manifest of its job.
    """
    times = {file: _time(file) or _time(history.writer(file) or file) for file in [*read, *asked_for]}
    newest = max(times.values(), default=0)
    older = [file for file in written if 0 < _time(file) < newest]
    oldest = min(map(_time, older), default=newest)
    for file, sha256 in read.items():
        if times[file] > oldest and file.is_file() and history.sha256(file) != sha256:
            return f"{file.name}, which it read, has changed"
    for file in older:
        with suppress(OSError):  # in a folder that cannot be written Snakemake plans what it takes for old
            os.utime(file, ns=(newest, newest))
    return None


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Name the settings that differ, with their values where these are short."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        before, now = json.dumps(old), json.dumps(new)
        yield f"{place} was {before}, is {now}" if len(before + now) < 80 else f"{place} has changed"


def _time(file: Path) -> int:
    """When a file was last changed, in nanoseconds; 0 if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
