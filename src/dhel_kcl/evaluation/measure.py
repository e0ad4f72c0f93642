"""Measurement of one run in one process: the stages of the rule `measure`, one after another."""

from collections.abc import Iterator

from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.stages import STAGES, Stage, stages_of
from dhel_kcl.jobs.stale import why_stale


def measure(experiment: Experiment, run: str) -> None:
    """Run the stages of one run that are missing or stale.

    A stage is skipped if its manifest matches the current settings, code and inputs. Deleted features are recomputed
    only for a stage that reads them, and deleted again at the end unless `compute.keep_features` is set.

    Args:
        experiment: the experiment.
        run: id of the run.

    Raises:
        InputError: there is no such run, or a stage raises it.
    """
    members = [Job(experiment, stage, run) for stage in stages_of("measure", experiment.config)]
    try:
        for job in members:
            if reason := why_needed(job, members):
                console.print(f"{job.stage.name} of {run}: {reason}")
                job.do()
            else:
                console.print(f"{job.stage.name} of {run}: nothing has changed; kept")
    finally:
        for file in {path for job in members for path in job.writes.values()} & experiment.discarded:
            file.unlink(missing_ok=True)


def why_needed(job: Job, members: list[Job]) -> str | None:
    """Return why a stage of a run must run, or None if it need not."""
    history = _history(job)
    if job.manifest not in history.manifests:
        return "not done yet"
    if reason := why_stale(job, history):
        return reason
    gone = [file for file in job.writes.values() if not file.exists()]
    readers = [other for other in members if not set(gone).isdisjoint(other.reads.values())]
    return next((f"needed by {other.stage.name}" for other in readers if why_needed(other, members)), None)


def _history(job: Job) -> History:
    """Load the manifests of a run and of its betons; skip those that are missing or damaged."""
    experiment, run = job.experiment, job.run
    data = [f"{run.dataset.name}/{split}" for split in run.dataset.data.splits]
    every = [(STAGES["data"], subject) for subject in data] + [(stage, run.id) for stage in _of_runs(experiment)]
    history = History(discarded=experiment.discarded)
    for stage, subject in every:
        try:
            history.load(stage.manifest(experiment.layout, subject))
        except (InputError, OSError):
            continue
    return history


def _of_runs(experiment: Experiment) -> Iterator[Stage]:
    return (stage for stage in STAGES.values() if stage.each == "run" and stage.asked(experiment.config))
