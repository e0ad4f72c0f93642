"""The provenance audit: does every number follow from its recorded origin?

The manifests of an experiment form a graph. It leads from figures and tables, through the tidy results and each run's
measurements, features and checkpoint, to the betons and the configuration; the theorems' table has only the
configuration behind it. The audit rehashes every file of that graph, checks that each job used what the job before it
wrote, compares the whole folder with the seal of the last audit that passed, rereads every measurement, and makes every
table, figure and page again.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dhel_kcl import declarations
from dhel_kcl.errors import InputError, escaped, few
from dhel_kcl.experiment.grid import ExperimentConfig
from dhel_kcl.files import atomic_path
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job, jobs
from dhel_kcl.jobs.layout import Layout, walk
from dhel_kcl.jobs.manifest import Artifact, absolute, changes_since, shown
from dhel_kcl.jobs.ownership import is_own, is_release
from dhel_kcl.jobs.stages import STAGES, run_stages
from dhel_kcl.paper.render import load_results, load_target, points_equal, read_points, render, shows_points
from dhel_kcl.paper.report import compare_report
from dhel_kcl.provenance.crate import outdated
from dhel_kcl.provenance.seal import Seal, differences, file_digests, read_seal
from dhel_kcl.results.collect import collect
from dhel_kcl.results.judge import read_and_judge
from dhel_kcl.results.table import write_results


@dataclass
class Outcome:
    """Counts of what an audit checked, every problem, and warnings about results of code that is not in the clone now.

    Warnings in `uncommitted` stay true whatever the code is now. Warnings in `unlike` name files that look different
    from what would be made now.
    """

    files: int = 0
    manifests: int = 0
    measurements: int = 0
    points: int = 0
    sha256: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    blamed: set[Path] = field(default_factory=set)

    def blame(self, file: Path, problem: str) -> None:
        """Add a problem with a file."""
        self.problems.append(f"{shown(file)}: {problem}")
        self.blamed.add(absolute(file))

    @contextmanager
    def blaming(self, file: Path) -> Iterator[None]:
        """Turn an error in this block, which reads `file`, into a problem."""
        try:
            yield
        except InputError as error:
            self.problems.extend(line for line in str(error).splitlines() if line not in self.problems)
            self.blamed.add(absolute(file))
        except OSError as error:
            named = Path(error.filename) if isinstance(error.filename, str) else file
            self.blame(named, f"cannot be read ({error.strerror or error}); check the disk and its permissions")
            self.blamed.add(absolute(file))
        except Exception as error:  # readers of damaged files may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            again = "" if file.is_dir() else "run its rule again, and if that does not help "
            self.blame(file, f"cannot be used ({reason}); {again}report this line as a bug")

    @property
    def seal(self) -> Seal:
        """The content of audit.json if there is no problem."""
        return Seal(
            points=self.points,
            measurements=self.measurements,
            manifests=self.manifests,
            files=self.files,
            uncommitted=self.uncommitted,
            unlike=self.unlike,
            sha256=self.sha256,
        )

    def summary(self) -> str:
        """Return one line that says what was checked."""
        return (
            f"audit passed: {self.points} points and cells, {self.measurements} measurements, "
            f"{self.manifests} manifests, {self.files} files re-hashed"
        )


def audit(experiment: Experiment) -> Outcome:
    """Audit one experiment."""
    outcome, layout = Outcome(), experiment.layout
    expected, history = jobs(experiment), History(discarded=experiment.discarded)
    with outcome.blaming(layout.root):
        _check_links(layout, outcome)
    for path in expected:
        with outcome.blaming(path):
            history.load(path)
    outcome.manifests = len(history.manifests)
    _check_files(history, outcome)
    outcome.files = history.files_hashed
    _check_jobs(experiment, expected, history, outcome)
    if len(history.manifests) == len(expected):
        _check_chains(expected, history, outcome)
    with outcome.blaming(layout.root):
        outcome.sha256 = file_digests(experiment, history.sha256)
        _check_seal(layout, outcome)
    if not outcome.problems:  # else deriving from missing or changed files would only repeat the problems
        remade = _Remade(expected, history, outcome)
        with _redrawn(experiment) as redrawn:
            _check_measurements(experiment, outcome)
            _check_tables(layout, experiment.config, remade, outcome)
            _check_points(experiment, redrawn, remade, outcome)
            _check_explorer(experiment, remade, outcome)
            _check_report(experiment, remade, outcome)
        _check_crate(experiment, history, outcome)
        outcome.unlike = remade.warnings()
        outcome.warnings += outcome.unlike
        if not outcome.problems and layout.audit.exists() and not _agree(read_seal(layout.audit), outcome.seal):
            outcome.blame(layout.audit, "the counts differ from this audit's; restore it, or delete it and audit again")
    return outcome


def _agree(sealed: Seal, now: Seal) -> bool:
    """Return whether two seals agree about the files; `unlike` is ignored, because it depends on the code too."""
    return sealed.model_copy(update={"unlike": now.unlike}) == now


def conclude(outcome: Outcome, layout: Layout) -> None:
    """Write what an audit found: the seal if it passed, else its problems.

    Raises:
        InputError: the folder cannot be written, is a release, which must not change, or is not an experiment's own.
    """
    if not is_own(layout.root):
        kind = "a release" if is_release(layout.root) else "not made by `dhel-kcl configure`"
        raise InputError(f"{layout.root}: {kind}, so nothing was written into it")
    passed = not outcome.problems
    kept = layout.audit if passed else layout.audit_problems
    text = outcome.seal.text() if passed else "\n".join(map(escaped, outcome.problems))
    with atomic_path(kept) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if passed:
        layout.audit_problems.unlink(missing_ok=True)


def _check_links(layout: Layout, outcome: Outcome) -> None:
    """Report files that are links: jobs replace links in the place of their outputs, so no job wrote one."""
    for path in walk(layout.root):
        if path.is_symlink():
            circle = path.is_dir()
            said = "a link to a folder that contains it" if circle else "a link, not the file that its job wrote"
            outcome.blame(path, f"{said}; {'remove it' if circle else 'put the file itself here, or remove the link'}")


def _check_files(history: History, outcome: Outcome) -> None:
    """Compare every file with the manifest of the job that wrote it, or else with those of the jobs that read it."""
    links = set(outcome.blamed)

    def check(file: Path, recorded: Artifact, manifest: Path) -> None:
        if file in links:
            return
        with outcome.blaming(file):
            match history.state(file, recorded):
                case "missing":
                    outcome.blame(file, f"missing, but recorded in {shown(manifest)}")
                case "changed":
                    outcome.blame(file, f"changed since {shown(manifest)} recorded it")

    for file, (producer, artifact) in history.written.items():
        check(file, artifact, producer)
    for path, manifest in history.manifests.items():
        for file, artifact in history.inputs(path).items():
            if history.is_manifest(file):
                if history.recorded(file) != artifact.sha256:
                    outcome.blame(
                        file,
                        f"changed since {shown(path)} recorded it; if that job was rerun, run the workflow again",
                    )
            elif file not in history.written:
                check(file, artifact, path)
            elif history.written[file][1].sha256 != artifact.sha256:
                outcome.blame(
                    file,
                    f"{manifest.stage} of {manifest.subject} used a different version from the one that "
                    f"{shown(history.written[file][0])} records; run the workflow again",
                )


def _check_jobs(experiment: Experiment, expected: Mapping[Path, Job], history: History, outcome: Outcome) -> None:
    """Compare what each manifest says about its job with the experiment's settings and the present code."""
    uncommitted: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    outdated: dict[str, list[str]] = {}
    for path, manifest in history.manifests.items():
        job = expected[path]
        stage, subject = job.stage.name, job.subject
        if (manifest.stage, manifest.subject) != (stage, subject):
            outcome.blame(path, f"describes {manifest.stage} of {manifest.subject}, not {stage} of {subject}")
        if manifest.settings != job.settings:
            outcome.blame(path, f"made under other settings than {experiment.layout.config} has now")
        if manifest.git_dirty:
            uncommitted.setdefault(stage, []).append(subject)
        elif manifest.git_dirty is None or manifest.git_commit is None:
            unknown.setdefault(stage, []).append(subject)
        if manifest.source_digest != job.code:
            outdated.setdefault(stage, []).append(subject)
    outcome.uncommitted = [
        f"uncommitted changes were in the code when {stage} ran for {few(subjects, 3)}"
        for stage, subjects in uncommitted.items()
    ]
    outcome.uncommitted += [
        f"the code's commit is not known for {stage} of {few(subjects, 3)}" for stage, subjects in unknown.items()
    ]
    outcome.warnings += outcome.uncommitted
    for stage, subjects in outdated.items():
        since = f"{STAGES[stage].module} or code that it uses has changed since {stage} ran for {few(subjects, 3)}"
        if STAGES[stage].each == "target":
            drawn_by = ", ".join(shown(experiment.targets[subject].path) for subject in subjects)
            since = f"{drawn_by} or code used there has changed since render ran"
        outcome.warnings.append(since)


def _check_chains(expected: Mapping[Path, Job], history: History, outcome: Outcome) -> None:
    """Check that the chain is complete: each job read and wrote exactly the files that its stage reads and writes.

    A configuration may have been read from any file.
    """
    for path, job in expected.items():
        wrote = {absolute(file) for file in job.writes.values()}
        for missing in sorted(wrote - history.outputs(path).keys()):
            outcome.blame(missing, f"{shown(path)} does not record it; run the workflow again")
        for other in sorted(history.outputs(path).keys() - wrote):
            outcome.blame(other, f"{shown(path)} records it, but {job.stage.name} writes no such file")
        if job.stage.name == "configure":
            continue
        read = {absolute(file) for file in job.reads.values()}
        for missing in sorted(read - history.inputs(path).keys()):
            for file in job.writes.values():
                outcome.blame(file, f"its manifest does not lead back to {shown(missing)}")
        for other in sorted(history.inputs(path).keys() - read):
            outcome.blame(path, f"records {shown(other)}, which {job.stage.name} does not read")


def _check_seal(layout: Layout, outcome: Outcome) -> None:
    if not layout.audit.exists():
        return
    with outcome.blaming(layout.audit):
        for name, difference in differences(read_seal(layout.audit).sha256, outcome.sha256):
            if absolute(layout.root / name) not in outcome.blamed:
                outcome.blame(layout.root / name, difference)


def _check_measurements(experiment: Experiment, outcome: Outcome) -> None:
    layout = experiment.layout
    with outcome.blaming(layout.results):
        written, measured = load_results(layout.results), collect(experiment)
        outcome.measurements = len(measured)
        if len(written) != len(measured) or list(written) != list(measured):
            outcome.blame(layout.results, "does not list the measurements of the runs; rerun collect")
            return
        same = (written == measured) | (written.isna() & measured.isna())
        wrong = measured[~same.all(axis=1)]
        for run, metric, source in wrong[["run", "metric", "source"]].drop_duplicates().itertuples(index=False):
            outcome.blame(layout.results, f"{metric} of {run} is not what {source} says")


class _Remade:
    """Compares files with what their jobs would write now, and distinguishes changed files from changed code.

    This concerns only looks. The values that a file shows are compared before, and must be equal whatever the code is.
    """

    def __init__(self, expected: Mapping[Path, Job], history: History, outcome: Outcome) -> None:
        self._expected, self._history, self._outcome = expected, history, outcome
        self._changed: dict[str, list[str]] = {}

    def compare(self, file: Path, same: bool, by: Path, problem: str) -> None:
        """Blame a file that is not the same, or only warn if its job might write different bytes now.

        Args:
            file: a file that a job wrote.
            same: whether it is, byte for byte, what the job would write now.
            by: the manifest of the job.
            problem: the problem to report.
        """
        if same:
            return
        if reasons := changes_since(self._history.manifests[by], self._expected[by].code):
            self._changed.setdefault("; ".join(reasons), []).append(shown(file))
        else:
            self._outcome.blame(file, problem)

    def warnings(self) -> list[str]:
        """Return warnings that name the files that differ, and why they may."""
        return [
            f"not byte for byte what would be made now, which may be because {reasons}: {few(files, 3)}"
            for reasons, files in self._changed.items()
        ]


def _check_tables(layout: Layout, config: ExperimentConfig, remade: _Remade, outcome: Outcome) -> None:
    """Compare the tidy tables' CSV, which people read, with the Parquet, which programs read."""
    for name, stage in (("results", "collect"), ("theory", "theory"), ("verdicts", "judge")):
        if name == "theory" and not config.theory:
            continue
        table = layout.table(name)
        written = table.with_suffix(".csv")
        with outcome.blaming(written), tempfile.TemporaryDirectory() as folder:
            again, tidy = Path(folder, table.name), load_results(table, table=name)
            if name == "verdicts" and not points_equal(read_and_judge(layout.results, config.study), tidy):
                outcome.blame(table, f"{layout.results.name} gives different verdicts; rerun {stage}")
            if not points_equal(read_points(written), tidy):
                outcome.blame(written, f"{table.name} gives different values; rerun {stage}")
                continue
            write_results(tidy, again)
            same = written.read_bytes() == again.with_suffix(".csv").read_bytes()
            remade.compare(
                written, same, layout.manifest(stage), f"is formatted differently from {table.name}; rerun {stage}"
            )


Redrawn = Mapping[str, Future[list[Path]]]
"""The files of each figure and table, drawn again."""


@contextmanager
def _redrawn(experiment: Experiment) -> Iterator[Redrawn]:
    """Draw every figure and table again, on the other cores while the audit goes on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tables, drawings = experiment.layout.table, {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            min(cores, 8), multiprocessing.get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
        ) as pool,
    ):
        for script in experiment.targets.values():
            output = Path(folder, script.name)
            output.mkdir()
            drawings[script.name] = pool.submit(render, script.path, [*map(tables, script.tables)], output)
        try:
            yield drawings
        finally:
            pool.shutdown(cancel_futures=True)


def _check_points(experiment: Experiment, redrawn: Redrawn, remade: _Remade, outcome: Outcome) -> None:
    layout = experiment.layout
    known: dict[str, set[str]] = {}
    for name in declarations.TABLES:
        with outcome.blaming(layout.table(name)):
            known[name] = set(load_results(layout.table(name), table=name)["run"])
    for script in experiment.targets.values():
        if known.keys() >= set(script.tables):
            runs = set().union(*(known[name] for name in script.tables))
            _check_target(layout, script, runs, redrawn, remade, outcome)


def _check_target(
    layout: Layout, script: declarations.Script, runs: set[str], redrawn: Redrawn, remade: _Remade, outcome: Outcome
) -> None:
    """Compare the files of a figure or table with those drawn again from the tidy tables."""
    products = {path.suffix: path for path in layout.products(script.name)}
    written = products.pop(".csv")
    with outcome.blaming(written):
        points = read_points(written)
        outcome.points += len(points)
        named = {run for cell in points["runs"].dropna() for run in str(cell).split(";") if run}
        for run in sorted(named - runs):
            outcome.blame(written, f"names an unknown run {run}")
    with outcome.blaming(script.path):
        again = {path.suffix: path for path in redrawn[script.name].result()}
        if absolute(written) not in outcome.blamed and not points_equal(points, read_points(again[".csv"])):
            giving = " and ".join(layout.table(name).name for name in script.tables)
            outcome.blame(written, f"{giving} gives different values; rerun render for {script.name}")
        said = f"does not show the values of {written.name}; rerun render for {script.name}"
        for suffix, product in products.items():
            with outcome.blaming(product):
                if suffix == ".md" and not shows_points(product, load_target(script.path), points):
                    outcome.blame(product, said)
                    continue
                same = product.read_bytes() == again[suffix].read_bytes()
                remade.compare(product, same, layout.manifest("render", script.name), said)


def _check_explorer(experiment: Experiment, remade: _Remade, outcome: Outcome) -> None:
    # Altair takes a second or two to import, during which the other cores draw.
    from dhel_kcl.paper.explorer import explorer_text, read_rows, run_rows, trainings

    layout, manifests = experiment.layout, trainings(experiment)
    with outcome.blaming(layout.explorer):
        current = run_rows(layout.results, manifests, layout.root)
        outcome.points += len(current)
        if read_rows(layout.explorer) != current:
            outcome.blame(layout.explorer, f"{layout.results.name} gives different values; rerun explorer")
            return
        page = explorer_text(layout.results, manifests, layout.explorer, run_stages(experiment.config))
        same = layout.explorer.read_bytes() == page.encode()
        said = "shows the values of the runs on a page that was changed; rerun explorer"
        remade.compare(layout.explorer, same, layout.manifest("explorer"), said)


def _check_report(experiment: Experiment, remade: _Remade, outcome: Outcome) -> None:
    layout = experiment.layout
    with outcome.blaming(layout.report):
        same, wrong = compare_report(experiment)
        for part in wrong:
            outcome.blame(layout.report, f"{part} does not match the experiment; rerun report")
        if not wrong:
            said = "has the figures, tables and settings, but was changed elsewhere; rerun report"
            remade.compare(layout.report, same, layout.manifest("report"), said)


def _check_crate(experiment: Experiment, history: History, outcome: Outcome) -> None:
    """Warn about an outdated or wrong crate; this is not an error, because nothing is made from the crate."""
    layout = experiment.layout
    if not layout.crate.exists():
        return
    with outcome.blaming(layout.crate):
        if reason := outdated(experiment, history):
            outcome.warnings.append(
                f"{layout.crate}: {reason}; call `dhel-kcl crate {layout.root}` again, or delete it"
            )
