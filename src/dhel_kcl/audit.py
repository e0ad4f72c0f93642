"""The provenance audit: is every number what its recorded origin gives?

The manifests of an experiment form a graph from figures and tables, through the tidy results and
each run's measurements, features and checkpoint, to the betons and the configuration; the theorems'
table has only the configuration behind it. The audit hashes every file of that graph again, checks
that each job used what the job before it wrote, compares the whole folder with the seal of the last
audit that passed, reads every measurement again, and derives every point and cell again.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx

from dhel_kcl import declarations, stages
from dhel_kcl.artifacts import atomic_path, sha256_file
from dhel_kcl.config import ExperimentConfig
from dhel_kcl.errors import InputError
from dhel_kcl.explorer import read_rows, run_rows
from dhel_kcl.layout import Layout
from dhel_kcl.ownership import is_release
from dhel_kcl.paper import load_results, load_target, points_equal, read_points, rederive, table_text
from dhel_kcl.provenance import Artifact, Manifest, load_manifest, locate, shown
from dhel_kcl.results import collect
from dhel_kcl.seal import Seal, differences, discarded, file_digests, read_seal

Targets = Mapping[str, declarations.Script]
Expected = Mapping[Path, tuple[str, str]]
Sha256 = Callable[[Path], str]


@dataclass
class Outcome:
    """What an audit looked at, every problem, and warnings: what depends on code that is not, or no longer, there.

    Of the warnings, those in `uncommitted` stay true whatever the code is now.
    """

    files: int = 0
    manifests: int = 0
    measurements: int = 0
    points: int = 0
    sha256: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    blamed: set[Path] = field(default_factory=set)

    def blame(self, file: Path, problem: str) -> None:
        """Add a problem of a file."""
        self.problems.append(f"{shown(file)}: {problem}")
        self.blamed.add(file.resolve())

    @contextmanager
    def blaming(self, file: Path) -> Iterator[None]:
        """Make an error of this block, which reads `file`, a problem."""
        try:
            yield
        except InputError as error:
            self.problems.extend(str(error).splitlines())
            self.blamed.add(file.resolve())
        except Exception as error:  # nobody can list what damaged files make their readers raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.blame(file, f"cannot be used ({reason}); delete it and run its rule again")

    @property
    def seal(self) -> Seal:
        """What audit.json says if there is no problem."""
        counts = {"points": self.points, "measurements": self.measurements, "manifests": self.manifests}
        return Seal(**counts, files=self.files, uncommitted=self.uncommitted, sha256=self.sha256)

    def summary(self) -> str:
        """One line of what was checked."""
        return (
            f"audit passed: {self.points} points and cells, {self.measurements} measurements, "
            f"{self.manifests} manifests, {self.files} files re-hashed"
        )


def audit(config: ExperimentConfig, layout: Layout, scripts: Path) -> Outcome:
    """Audit one experiment.

    Args:
        config: its configuration.
        layout: its folder.
        scripts: the folder of the figure and table scripts.
    """
    outcome = Outcome()
    sha256 = functools.cache(sha256_file)
    targets = declarations.scripts(scripts)
    expected = stages.expected_manifests(config, layout, targets)
    manifests = _load_manifests(expected, outcome)
    _check_files(config, layout, manifests, sha256, outcome)
    outcome.files = sha256.cache_info().currsize
    _check_jobs(config, layout, targets, expected, manifests, outcome)
    if len(manifests) == len(expected):
        _check_chains(config, layout, targets, manifests, outcome)
    with outcome.blaming(layout.root):
        outcome.sha256 = file_digests(config, layout, sha256)
        _check_seal(layout, outcome)
    if not outcome.problems:  # what is missing or changed has been listed; deriving from it would only repeat that
        _check_measurements(config, layout, outcome)
        _check_points(layout, targets, outcome)
        _check_explorer(config, layout, scripts, outcome)
        if not outcome.problems and layout.audit.exists() and read_seal(layout.audit) != outcome.seal:
            outcome.blame(layout.audit, "gives other counts than this audit; restore it, or delete it and audit again")
    return outcome


def conclude(outcome: Outcome, layout: Layout) -> None:
    """Keep what an audit found: the seal if it passed, else its problems.

    Raises:
        InputError: the folder cannot be written, or is a release, which must stay as it was published.
    """
    if is_release(layout.root):
        raise InputError(f"{layout.root}: a release, so nothing was written into it")
    passed = not outcome.problems
    kept, text = (layout.audit, outcome.seal.text()) if passed else (layout.audit_problems, "\n".join(outcome.problems))
    with atomic_path(kept) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if passed:
        layout.audit_problems.unlink(missing_ok=True)


def _load_manifests(expected: Expected, outcome: Outcome) -> dict[Path, Manifest]:
    manifests = {}
    for path in expected:
        with outcome.blaming(path):
            manifests[path] = load_manifest(path)
    outcome.manifests = len(manifests)
    return manifests


def _producers(manifests: dict[Path, Manifest]) -> dict[Path, tuple[Path, Artifact]]:
    return {
        locate(path, artifact): (path, artifact)
        for path, manifest in manifests.items()
        for artifact in manifest.outputs.values()
    }


def _check_files(
    config: ExperimentConfig, layout: Layout, manifests: dict[Path, Manifest], sha256: Sha256, outcome: Outcome
) -> None:
    producers, described = _producers(manifests), {path.resolve() for path in manifests}
    may_be_missing = {path.resolve() for path in discarded(config, layout)}

    def check(file: Path, recorded: Artifact, manifest: Path) -> None:
        if not file.is_file():
            if file not in may_be_missing:
                outcome.blame(file, f"missing, but recorded in {shown(manifest)}")
        elif sha256(file) != recorded.sha256:
            outcome.blame(file, f"changed since {shown(manifest)} recorded it")

    for file, (producer, artifact) in producers.items():
        check(file, artifact, producer)
    for path, manifest in manifests.items():
        for artifact in manifest.inputs.values():
            file = locate(path, artifact)
            if file in described and sha256(file) != artifact.sha256:
                outcome.blame(
                    file,
                    f"changed since {shown(path)} recorded it; if that job was done again, run the workflow again",
                )
            elif file not in producers:
                check(file, artifact, path)
            elif producers[file][1].sha256 != artifact.sha256:
                outcome.blame(
                    file,
                    f"{manifest.stage} of {manifest.subject} used another version than the one that "
                    f"{shown(producers[file][0])} records; run the workflow again",
                )


def _check_jobs(
    config: ExperimentConfig,
    layout: Layout,
    targets: Targets,
    expected: Expected,
    manifests: dict[Path, Manifest],
    outcome: Outcome,
) -> None:
    """Compare what each manifest says of its job with what the experiment asks for and the code that is there now."""
    uncommitted: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    outdated: dict[str, list[str]] = {}
    for path, manifest in manifests.items():
        stage, subject = expected[path]
        if (manifest.stage, manifest.subject) != (stage, subject):
            outcome.blame(path, f"describes {manifest.stage} of {manifest.subject}, not {stage} of {subject}")
        if stage != "render" and manifest.settings != stages.settings(config, stage, subject):
            outcome.blame(path, f"made under other settings than {layout.config} has now")
        if manifest.git_dirty:
            uncommitted.setdefault(stage, []).append(subject)
        elif manifest.git_dirty is None or manifest.git_commit is None:
            unknown.setdefault(stage, []).append(subject)
        if manifest.source_digest != stages.current_code(config, targets, stage, subject):
            outdated.setdefault(stage, []).append(subject)
    outcome.uncommitted = [
        f"uncommitted changes were in the code when {stage} ran for {_some(subjects)}"
        for stage, subjects in uncommitted.items()
    ]
    outcome.uncommitted += [
        f"the code's commit is not known for {stage} of {_some(subjects)}" for stage, subjects in unknown.items()
    ]
    outcome.warnings += outcome.uncommitted
    for stage, subjects in outdated.items():
        since = f"{stages.MODULES[stage]} or code that it uses has changed since {stage} ran for {_some(subjects)}"
        if stage == "render":
            drawn_by = ", ".join(shown(targets[subject].path) for subject in subjects)
            since = f"{drawn_by} or code used there has changed since render ran"
        outcome.warnings.append(since)


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _check_chains(
    config: ExperimentConfig, layout: Layout, targets: Targets, manifests: dict[Path, Manifest], outcome: Outcome
) -> None:
    """Walk back from each measurement and product; the walk must pass through what it was made from."""
    graph = nx.DiGraph()
    for path, manifest in manifests.items():
        written = [locate(path, artifact) for artifact in manifest.outputs.values()]
        graph.add_nodes_from(written)
        for artifact in manifest.inputs.values():
            graph.add_edges_from((locate(path, artifact), file) for file in written)

    def require(file: Path, *needed: Path) -> None:
        origins = nx.ancestors(graph, file.resolve()) if file.resolve() in graph else set()
        for missing in sorted({path.resolve() for path in needed} - origins):
            outcome.blame(file, f"its manifests do not lead back to {shown(missing)}")

    measuring = stages.run_stages(config)
    for run in config.runs.values():
        data = run.dataset.data
        betons = [layout.beton(run.dataset.name, split) for split in data.splits]
        for measurement in (layout.evaluation(run.id), layout.representation(run.id)):
            require(measurement, layout.features(run.id), layout.encoder(run.id), *betons)
        if "augmented_probe" in measuring:
            require(layout.augmented_probe(run.id), layout.encoder(run.id), *betons)
        if "corruptions" in measuring:
            require(layout.corruptions(run.id), layout.encoder(run.id), layout.classifier(run.id), *betons)
        for training in (layout.outcome(run.id), layout.training_log(run.id)):
            require(training, layout.beton(run.dataset.name, data.pretrain_split))
    require(layout.results, *(file for run in config.runs for file in layout.measurements(run, measuring)))
    for target, script in targets.items():
        for product in layout.products(target):
            require(product, *map(layout.table, script.tables))
    products = [product for target in targets for product in layout.products(target)]
    require(layout.explorer, layout.results, *stages.pretraining_manifests(config, layout).values())
    require(layout.report, *products, layout.explorer, *stages.reported_manifests(config, layout, targets))
    for described in (layout.crate, layout.sbom):
        require(described, layout.report, layout.manifest("report"))


def _check_seal(layout: Layout, outcome: Outcome) -> None:
    if not layout.audit.exists():
        return
    with outcome.blaming(layout.audit):
        for name, difference in differences(read_seal(layout.audit).sha256, outcome.sha256):
            if (layout.root / name).resolve() not in outcome.blamed:
                outcome.blame(layout.root / name, difference)


def _check_measurements(config: ExperimentConfig, layout: Layout, outcome: Outcome) -> None:
    with outcome.blaming(layout.results):
        written, measured = load_results(layout.results), collect(config, layout)
        outcome.measurements = len(measured)
        if len(written) != len(measured) or list(written) != list(measured):
            outcome.blame(layout.results, "does not list the measurements of the runs; collect again")
            return
        same = (written == measured) | (written.isna() & measured.isna())
        wrong = measured[~same.all(axis=1)]
        for run, metric, source in wrong[["run", "metric", "source"]].drop_duplicates().itertuples(index=False):
            outcome.blame(layout.results, f"{metric} of {run} is not what {source} says")


def _check_points(layout: Layout, targets: Targets, outcome: Outcome) -> None:
    known: dict[str, set[str]] = {}
    for name in declarations.TABLES:
        with outcome.blaming(layout.table(name)):
            known[name] = set(load_results(layout.table(name), table=name)["run"])
    for target, script in targets.items():
        written_to = next(path for path in layout.products(target) if path.suffix == ".csv")
        if known.keys() >= set(script.tables):
            with outcome.blaming(written_to):
                _check_target(
                    layout, script, written_to, set().union(*(known[name] for name in script.tables)), outcome
                )


def _check_target(
    layout: Layout, script: declarations.Script, written_to: Path, runs: set[str], outcome: Outcome
) -> None:
    tables = [layout.table(name) for name in script.tables]
    points = read_points(written_to)
    outcome.points += len(points)
    named = {run for cell in points["runs"].dropna() for run in str(cell).split(";") if run}
    for run in sorted(named - runs):
        outcome.blame(written_to, f"names an unknown run {run}")
    if not points_equal(points, rederive(script.path, tables)):
        giving = " and ".join(path.name for path in tables)
        outcome.blame(written_to, f"{giving} gives other values; render {script.name} again")
    printed = written_to.with_suffix(".md")
    with outcome.blaming(printed):
        if not script.is_figure and printed.read_text(encoding="utf-8") != table_text(load_target(script.path), points):
            outcome.blame(printed, f"does not print the values of {written_to.name}; render {script.name} again")


def _check_explorer(config: ExperimentConfig, layout: Layout, scripts: Path, outcome: Outcome) -> None:
    manifests = stages.pretraining_manifests(config, layout)
    with outcome.blaming(layout.explorer):
        current = run_rows(layout.results, manifests, scripts / "style.py", layout.root)
        outcome.points += len(current)
        if read_rows(layout.explorer) != current:
            outcome.blame(layout.explorer, f"{layout.results.name} gives other values; make explorer again")
