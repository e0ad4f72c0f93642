"""The provenance audit: is every number what its recorded origin gives?

The manifests of an experiment form a graph from figures and tables, through the tidy results and
each run's measurements, features and checkpoint, to the betons and the configuration; the theorems'
table has only the configuration behind it. The audit hashes every file of that graph again, checks
that each job used what the job before it wrote, reads every measurement again, and derives every
point and cell again.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.tree import Tree

from dhel_kcl import declarations, stages
from dhel_kcl.artifacts import sha256_file, write_json
from dhel_kcl.config import ExperimentConfig
from dhel_kcl.errors import InputError
from dhel_kcl.explorer import read_rows, run_rows
from dhel_kcl.layout import Layout
from dhel_kcl.paper import load_results, load_target, points_equal, read_points, rederive, table_text
from dhel_kcl.provenance import Artifact, Manifest, load_manifest, locate
from dhel_kcl.results import collect

Targets = Mapping[str, declarations.Script]
Expected = Mapping[Path, tuple[str, str]]


@dataclass
class Outcome:
    """What an audit looked at, and every problem it found."""

    files: int = 0
    manifests: int = 0
    measurements: int = 0
    points: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line of what was checked, and a line for each note."""
        counts = (
            f"audit passed: {self.points} points and cells, {self.measurements} measurements, "
            f"{self.manifests} manifests, {self.files} files re-hashed"
        )
        return "\n".join([counts, *(f"note: {note}" for note in self.notes)])

    def write(self, path: Path) -> None:
        """Write the counts as JSON."""
        write_json(path, {name: value for name, value in vars(self).items() if name != "problems"})


def audit(config: ExperimentConfig, layout: Layout, scripts: Path) -> Outcome:
    """Audit one experiment.

    Args:
        config: its configuration.
        layout: its folder.
        scripts: the folder of the figure and table scripts.
    """
    outcome = Outcome()
    targets = declarations.scripts(scripts)
    expected = stages.expected_manifests(config, layout, targets)
    manifests = _load_manifests(expected, outcome)
    _check_files(config, layout, manifests, outcome)
    _check_settings(config, layout, targets, expected, manifests, outcome)
    _check_chains(config, layout, targets, manifests, outcome)
    if not outcome.problems:  # what is missing or changed has been listed; deriving from it would only repeat that
        _check_measurements(config, layout, outcome)
        _check_points(layout, targets, outcome)
        _check_explorer(config, layout, scripts, outcome)
    return outcome


def _load_manifests(expected: Expected, outcome: Outcome) -> dict[Path, Manifest]:
    manifests = {}
    for path in expected:
        try:
            manifests[path] = load_manifest(path)
        except InputError as error:
            outcome.problems.append(str(error))
    outcome.manifests = len(manifests)
    return manifests


def _producers(manifests: dict[Path, Manifest]) -> dict[Path, tuple[Path, Artifact]]:
    return {
        locate(path, artifact): (path, artifact)
        for path, manifest in manifests.items()
        for artifact in manifest.outputs.values()
    }


def _check_files(config: ExperimentConfig, layout: Layout, manifests: dict[Path, Manifest], outcome: Outcome) -> None:
    sha256 = functools.cache(sha256_file)
    producers, described = _producers(manifests), {path.resolve() for path in manifests}
    discarded = set() if config.compute.keep_features else {layout.features(run).resolve() for run in config.runs}

    def check(file: Path, recorded: Artifact, manifest: Path) -> None:
        if not file.exists():
            if file not in discarded:
                outcome.problems.append(f"{_shown(file)}: missing, but recorded in {_shown(manifest)}")
        elif sha256(file) != recorded.sha256:
            outcome.problems.append(f"{_shown(file)}: changed since {_shown(manifest)} recorded it")

    for file, (producer, artifact) in producers.items():
        check(file, artifact, producer)
    for path, manifest in manifests.items():
        for artifact in manifest.inputs.values():
            file = locate(path, artifact)
            if file in described and sha256(file) != artifact.sha256:
                outcome.problems.append(
                    f"{_shown(file)}: changed since {_shown(path)} recorded it; if that job was done again, "
                    "run the workflow again"
                )
            elif file not in producers:
                check(file, artifact, path)
            elif producers[file][1].sha256 != artifact.sha256:
                outcome.problems.append(
                    f"{_shown(file)}: {manifest.stage} of {manifest.subject} used another version than the one "
                    f"that {_shown(producers[file][0])} records; run the workflow again"
                )
    outcome.files = sha256.cache_info().currsize


def _check_settings(
    config: ExperimentConfig,
    layout: Layout,
    targets: Targets,
    expected: Expected,
    manifests: dict[Path, Manifest],
    outcome: Outcome,
) -> None:
    outdated: dict[str, None] = {}
    for path, (stage, subject) in expected.items():
        if path not in manifests:
            continue
        manifest = manifests[path]
        if (manifest.stage, manifest.subject) != (stage, subject):
            outcome.problems.append(f"{_shown(path)}: describes {manifest.stage} of {manifest.subject}, not {stage}")
        if stage != "render" and manifest.settings != stages.settings(config, stage, subject):
            outcome.problems.append(f"{_shown(path)}: made under other settings than {layout.config} has now")
        if stage == "render":
            current = stages.script_digest(targets[subject].path)
        else:
            current = stages.code_digest(stage, *stages.plugins(config, stage, subject))
        if manifest.source_digest != current:
            outdated[subject if stage == "render" else stage] = None
    outcome.notes.extend(f"the code of {name} has changed since its results were made" for name in outdated)


def _check_chains(
    config: ExperimentConfig, layout: Layout, targets: Targets, manifests: dict[Path, Manifest], outcome: Outcome
) -> None:
    """Walk back from each measurement and product; the walk must pass through what it was made from."""
    producers = _producers(manifests)

    @functools.cache
    def origins(file: Path) -> frozenset[Path]:
        if file not in producers:
            return frozenset()
        path, _ = producers[file]
        direct = [locate(path, artifact) for artifact in manifests[path].inputs.values()]
        return frozenset(direct).union(*(origins(used) for used in direct))

    def require(file: Path, *needed: Path) -> None:
        for missing in sorted({path.resolve() for path in needed} - origins(file.resolve())):
            outcome.problems.append(f"{file}: its manifests do not lead back to {_shown(missing)}")

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
            require(layout.report, product)
    require(layout.explorer, layout.results, *stages.pretraining_manifests(config, layout).values())
    require(layout.report, layout.explorer, *stages.reported_manifests(config, layout, targets))


def _check_measurements(config: ExperimentConfig, layout: Layout, outcome: Outcome) -> None:
    written, measured = load_results(layout.results), collect(config, layout)
    outcome.measurements = len(measured)
    if len(written) != len(measured) or list(written) != list(measured):
        outcome.problems.append(f"{layout.results}: does not list the measurements of the runs; collect again")
        return
    same = (written == measured) | (written.isna() & measured.isna())
    wrong = measured[~same.all(axis=1)]
    for run, metric, source in wrong[["run", "metric", "source"]].drop_duplicates().itertuples(index=False):
        outcome.problems.append(f"{layout.results}: {metric} of {run} is not what {source} says")


def _check_points(layout: Layout, targets: Targets, outcome: Outcome) -> None:
    known = {name: set(load_results(layout.table(name), table=name)["run"]) for name in declarations.TABLES}
    for target, script in targets.items():
        tables = [layout.table(name) for name in script.tables]
        written_to = next(path for path in layout.products(target) if path.suffix == ".csv")
        points = read_points(written_to)
        outcome.points += len(points)
        named = {run for cell in points["runs"].dropna() for run in str(cell).split(";") if run}
        runs = [known[name] for name in script.tables]
        outcome.problems.extend(f"{written_to}: names an unknown run {run}" for run in sorted(named.difference(*runs)))
        try:
            current = points_equal(points, rederive(script.path, tables))
        except InputError as error:
            outcome.problems.extend(str(error).splitlines())
            continue
        if not current:
            outcome.problems.append(
                f"{written_to}: {' and '.join(path.name for path in tables)} gives other values; render {target} again"
            )
        printed = written_to.with_suffix(".md")
        if not script.is_figure and printed.read_text() != table_text(load_target(script.path), points):
            outcome.problems.append(f"{printed}: does not print the values of {written_to.name}; render {target} again")


def _check_explorer(config: ExperimentConfig, layout: Layout, scripts: Path, outcome: Outcome) -> None:
    manifests = stages.pretraining_manifests(config, layout)
    current = run_rows(layout.results, manifests, scripts / "style.py", layout.root)
    outcome.points += len(current)
    if read_rows(layout.explorer) != current:
        outcome.problems.append(f"{layout.explorer}: {layout.results.name} gives other values; make explorer again")


def trace(config: ExperimentConfig, layout: Layout, scripts: Path, path: Path) -> Tree:
    """The chain of jobs that a file came from, down to its betons and configuration.

    Raises:
        InputError: no job of the experiment wrote the file.
    """
    expected = stages.expected_manifests(config, layout, declarations.scripts(scripts))
    manifests = {file: load_manifest(file) for file in expected if file.exists()}
    producers, described = _producers(manifests), {file.resolve() for file in manifests}
    if path.resolve() not in producers:
        raise InputError(f"{path}: no job of {layout.root} wrote this file; name a file below that folder")

    def grow(branch: Tree, file: Path) -> None:
        manifest_path, artifact = producers[file]
        manifest = manifests[manifest_path]
        seeds = "".join(f", {name} seed {seed}" for name, seed in manifest.seeds.items() if name == "run")
        label = f"{_shown(file)}  sha256 {artifact.sha256[:12]}  ({manifest.stage} of {manifest.subject}{seeds})"
        node = branch.add(label, highlight=False)
        for used in _needed(file, manifest_path, manifest):
            if used in producers:
                grow(node, used)
            elif used not in described:  # a manifest describes a job that the tree shows already
                node.add(f"{_shown(used)}  (not made by the workflow)", highlight=False)

    def _needed(file: Path, manifest_path: Path, manifest: Manifest) -> list[Path]:
        inputs = [locate(manifest_path, artifact) for artifact in manifest.inputs.values()]
        if manifest.stage != "collect" or wanted is None:
            return inputs
        return [used for used in inputs if used.parent.name in wanted]

    written_by = manifests[producers[path.resolve()][0]]
    wanted = _runs_behind(path) if written_by.stage == "render" else None
    root = Tree(str(path), highlight=False)
    grow(root, path.resolve())
    root.add(f"{_shown(layout.config)}  (the settings that each job's manifest repeats)", highlight=False)
    return root


def _runs_behind(product: Path) -> set[str] | None:
    points = product.with_suffix(".csv")
    if not points.exists():
        return None
    return {run for runs in pd.read_csv(points)["runs"].dropna() for run in str(runs).split(";")}


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
