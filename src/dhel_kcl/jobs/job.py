"""One job of a stage: its files, settings, code and manifest."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import ExperimentConfig, Run
from dhel_kcl.files import sha256_file, sha256_json
from dhel_kcl.jobs.digests import imported_modules, source_digest
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import record
from dhel_kcl.jobs.stages import STAGES, Files, Stage


@dataclass(frozen=True)
class Job:
    """The job of a stage for one subject of an experiment."""

    experiment: Experiment
    stage: Stage
    subject: str

    @property
    def config(self) -> ExperimentConfig:
        """The experiment's configuration."""
        return self.experiment.config

    @property
    def layout(self) -> Layout:
        """The paths of the experiment's files."""
        return self.experiment.layout

    @property
    def run(self) -> Run:
        """The run that the job is about.

        Raises:
            InputError: the experiment has no such run.
        """
        return self.config.run(self.subject)

    @property
    def rule(self) -> str:
        """The rule that runs the job."""
        return self.stage.rule or self.stage.name

    def check_subject(self) -> None:
        """Refuse a subject that the experiment does not have.

        Raises:
            InputError: the experiment has no such data set, split, run, figure or table.
        """
        match self.stage.each:
            case "split":
                name, split = self.subject.split("/", 1)
                splits = self.config.dataset(name).data.splits
                if split not in splits:
                    raise InputError(f"split {split!r}: data set {name} has {', '.join(splits)}")
            case "run":
                self.config.run(self.subject)
            case "target":
                if self.subject not in self.experiment.targets:
                    known = ", ".join(self.experiment.targets)
                    raise InputError(f"target {self.subject!r} is unknown; choose one of {known}")

    @property
    def reads(self) -> Files:
        """The files that the job reads, by the names under which its manifest records them."""
        return self.stage.reads(self.experiment, self.subject)

    @property
    def writes(self) -> Files:
        """The files that the job writes, by the names under which its manifest records them."""
        return self.stage.writes(self.layout, self.subject)

    @property
    def manifest(self) -> Path:
        """The path of the job's manifest."""
        return self.stage.manifest(self.layout, self.subject)

    @property
    def settings(self) -> Any:
        """The part of the configuration that the outputs depend on, as JSON values."""
        return self.stage.depends(self.experiment, self.subject)

    @property
    def code(self) -> str:
        """Digest of the source code that the job would run now; its manifest records the code that it ran."""
        if self.stage.each == "target":
            return script_digest(self.experiment.targets[self.subject].path)
        return code_digest(self.stage.name, *self.stage.plugins(self.experiment, self.subject))

    @property
    def identity(self) -> str:
        """Digest of everything that the outputs depend on apart from the input files: settings and code."""
        return sha256_json([self.settings, self.code])[:16]

    @property
    def asks_for(self) -> list[Path]:
        """The inputs of the job's rule: the files that it reads, with `Stage.gathers` in place of the files of runs."""
        runs = self.layout.run("")
        whole = self.stage.each == "experiment"
        read = [path for path in self.reads.values() if not (whole and path.is_relative_to(runs))]
        return [*read, *self.stage.gathers(self.experiment, self.subject)]

    @property
    def comes_after(self) -> list[Path]:
        """Files that must exist before the job starts, however old they are; see `Stage.after`."""
        return list(self.stage.after(self.experiment, self.subject))

    @contextmanager
    def recorded(self, seeds: Mapping[str, int] | None = None, inputs: Files | None = None) -> Iterator[None]:
        """Run the job inside this block; if it succeeds, its manifest is written last.

        Args:
            seeds: the seeds of its random streams, by purpose.
            inputs: the files that it reads, if its stage's row cannot say.

        Raises:
            InputError: an input is missing, or its modification time is in the future.
        """
        with record(
            self.manifest,
            stage=self.stage.name,
            subject=self.subject,
            settings=self.settings,
            source=self.code,
            inputs=self.reads if inputs is None else inputs,
            outputs=self.writes,
            seeds=seeds,
        ):
            yield

    def do(self) -> str | None:
        """Import the stage's module and do the job; return a message about it, if any."""
        said: str | None = import_module(self.stage.module).run(self)
        return said


def jobs(experiment: Experiment) -> dict[Path, Job]:
    """Return every job of an experiment, by its manifest; each comes after the jobs whose files it reads."""
    every = [Job(experiment, stage, subject) for stage in STAGES.values() for subject in stage.subjects(experiment)]
    return {job.manifest: job for job in every}


@functools.cache
def code_digest(stage: str, *plugged_in: str) -> str:
    """Return the digest of the source code that a stage runs and of the modules in `plugged_in`, one job's plugins."""
    modules = {STAGES[stage].module, *plugged_in}
    return sha256_json([*sorted(source_digest(module) for module in modules), *STAGES[stage].declared()])[:16]


def script_digest(script: Path) -> str:
    """Return the digest of a figure or table script, the code that draws it, and the modules that it imports."""
    modules = [source_digest(module) for module in imported_modules(script)]
    return sha256_json([code_digest("render"), *modules, sha256_file(script)])[:16]
