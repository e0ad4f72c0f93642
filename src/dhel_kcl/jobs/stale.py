"""Decide whether a job must be rerun, by comparing its manifest with the current state."""

import json
from collections.abc import Iterator
from typing import Any

from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.manifest import absolute


def why_stale(job: Job, history: History) -> str | None:
    """Return why a finished job must be rerun, or None if it need not.

    A job is stale if its settings, its code or the files that it reads have changed, or if a file that it wrote is gone
    and is not one that the workflow discards.

    Args:
        job: the job.
        history: has its manifest and those of the jobs that wrote the files it reads.
    """
    done = history.manifests[job.manifest]
    if (done.stage, done.subject) != (job.stage.name, job.subject):
        return f"its manifest describes {done.stage} of {done.subject}"
    if done.settings != (settings := json.loads(json.dumps(job.settings))):
        return ", ".join(_differences(done.settings, settings))
    if done.source_digest != job.code:
        return "its code has changed"
    wrote = history.outputs(job.manifest)
    if missing := [file for file in wrote if file not in history.discarded and not file.exists()]:
        return f"{missing[0].name} is missing"
    read = {file: artifact.sha256 for file, artifact in history.inputs(job.manifest).items()}
    if others := read.keys() ^ {absolute(file) for file in job.reads.values()}:
        other = min(others)
        return f"it no longer reads {other.name}" if other in read else f"it now reads {other.name}"
    for file, sha256 in read.items():
        # A file that no job wrote may be missing; Snakemake then reports it.
        now = history.recorded(file) or (history.sha256(file) if file.is_file() else sha256)
        if now != sha256:
            return f"{file.name}, which it read, has changed"
    return None


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield the settings that differ, with their values if these are short."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        before, now = json.dumps(old), json.dumps(new)
        yield f"{place} was {before}, is {now}" if len(before + now) < 80 else f"{place} has changed"
