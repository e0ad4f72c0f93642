"""Releases: publishing a finished experiment, and redrawing its figures, tables and pages from a release alone.

A release contains the tidy tables, every product and page, each run's measurements, the manifests of all jobs, and the
sha256 of each of these files in `SHA256SUMS`, which ``sha256sum -c`` can read. It has no images, weights or features,
and no seal, because the seal lists files that a release leaves out. It is an RO-Crate, unless it was made from an
earlier release.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.files import TEMPORARY, atomic_path, sha256_file
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.history import History
from dhel_kcl.jobs.job import Job, code_digest, jobs, script_digest
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import absolute, changes_since, load_manifest
from dhel_kcl.jobs.ownership import SUMS, check_not_inside, is_experiment, is_release, records_configuration
from dhel_kcl.jobs.stages import STAGES, measurements, run_stages
from dhel_kcl.provenance.crate import described, write_crate
from dhel_kcl.provenance.repair import manifests as manifest_patterns

README = "README.md"

_MANIFEST = r"manifests/.+\.json|.+\.manifest\.json"
_THEORY_STAGES = ("configure", "theory", "render")


@dataclass(frozen=True)
class Product:
    """A figure, table or page that was made again.

    Attributes:
        release: the folder of the release.
        name: the target, ``explorer`` or ``report``.
        numbers: whether the released files show the same numbers, and have the same bytes as the new ones unless the
            code or a package that writes them has changed; None if there is nothing to compare.
        other_bytes: suffixes of the files whose bytes differ from the released ones; None if there is nothing to
            compare, or if the product is a page, whose links differ.
    """

    release: Path
    name: str
    numbers: bool | None = None
    other_bytes: tuple[str, ...] | None = None

    def __str__(self) -> str:
        said = [{True: "same numbers", False: "DIFFERENT NUMBERS", None: "not compared"}[self.numbers]]
        if self.other_bytes is not None:
            said.append(f"different bytes in {' '.join(self.other_bytes)}" if self.other_bytes else "same bytes")
        return f"{self.release} {self.name}: {', '.join(said)}"


def release(experiment: Experiment, output: Path, theory_only: bool = False) -> int:
    """Copy the publishable files of a finished experiment into a folder, all or nothing, and make it an RO-Crate.

    An existing release that is unchanged since it was published is replaced, except for its README.md. Nothing else is
    replaced. A release made from an earlier release is not a crate, because files that the jobs read from outside the
    experiment are missing there.

    Args:
        experiment: the experiment, or an earlier release.
        output: the folder of the release.
        theory_only: leave out the runs and everything made from them.

    Returns:
        The number of files in the release.

    Raises:
        InputError: the experiment is not complete or not consistent, or `output` holds something else.
    """
    check_replaceable(output)
    layout, files = experiment.layout, contents(experiment, theory_only)
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: missing, and {len(missing) - 1} more; a release needs a finished experiment, "
            "run the workflow first"
        )
    if links := [path for path in files if path.is_symlink()]:
        raise InputError(f"{links[0]}: a link, not the file that its job wrote; put the file itself there")
    sums = {path.relative_to(layout.root).as_posix(): sha256_file(path) for path in sorted(files)}
    _refuse(_contradictions(layout.root, sums) or _not_ours(layout.root, sums))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        made, replaced = Path(temporary, "made"), Path(temporary, "replaced")
        for name in sums:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(layout.root / name, made / name)
        if not is_release(layout.root):
            crate = write_crate(experiment, made, files)
            sums |= {path.relative_to(made).as_posix(): sha256_file(path) for path in crate}
        _write_sums(made, sums)
        try:
            if output.exists():
                output.rename(replaced)
                if _has_changed(replaced):
                    raise InputError(f"{output}: changed in the meantime, so nothing was replaced; call this again")
                if (replaced / README).is_file():
                    shutil.copy2(replaced / README, made / README)
            made.rename(output)
        except BaseException:
            if replaced.exists() and not output.exists():
                replaced.rename(output)
            raise
    return len(sums)


def contents(experiment: Experiment, theory_only: bool = False) -> list[Path]:
    """List the files of an experiment that go into a release; a figure with nothing to show does not.

    Raises:
        InputError: the numbers of a figure are unreadable.
    """
    if theory_only:
        of_theory = {name: script for name, script in experiment.targets.items() if script.tables == ("theory",)}
        done = jobs(replace(experiment, chosen=of_theory)).values()
        published = [job for job in done if job.stage.name in _THEORY_STAGES]
    else:
        published = list(jobs(experiment).values())
    published = [job for job in published if not _is_left_out(job)]
    manifests = [job.manifest for job in published]
    written = [path for job in published for path in _published(job)]
    return [path for path in [*written, *manifests] if path not in experiment.discarded]


def _is_left_out(job: Job) -> bool:
    """Return whether a job drew a figure with nothing to show, which an earlier release has left out already."""
    from dhel_kcl.paper.report import has_something_to_show

    if job.stage.name != "render":
        return False
    there = [path.is_file() for path in (*job.writes.values(), job.manifest)]
    if not all(there):
        return is_release(job.layout.root) and not any(there)
    return not has_something_to_show(job.layout, job.experiment.targets[job.subject])


def _published(job: Job) -> list[Path]:
    """List the files of a job that go into a release: no images or weights, and tidy tables only as Parquet."""
    match job.stage.each:
        case "split":
            return []
        case "run":
            return [job.writes[name] for name in job.stage.measured]
    return [path for name, path in job.writes.items() if name != "csv"]


def _write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    with atomic_path(folder / SUMS) as temporary:
        temporary.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")


def verify(folder: Path) -> None:
    """Check that a release has exactly the files in its `SHA256SUMS`, and that its manifests agree with them.

    Raises:
        InputError: a file is wrong; the message has one line for each such file.
    """
    _refuse(_problems(folder))


def check_replaceable(output: Path) -> None:
    """Refuse a place for a release unless it is empty, or has only a README.md or an unchanged release.

    Raises:
        InputError: something else is there, or the place is inside an experiment or another release.
    """
    check_not_inside(output)
    if output.is_symlink():
        raise InputError(f"{output}: a link, which would be lost; give the folder that it leads to or another one")
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output}: not a folder, and would be lost; choose another name")
    if is_experiment(output) and not is_release(output):
        raise InputError(f"{output}: an experiment's own folder; choose another one for the release")
    foreign = _foreign(output)
    if foreign:
        raise InputError(f"{output / foreign}: not part of a release, and would be lost; choose another folder")


def _foreign(folder: Path) -> str | None:
    """Return the relative path of the first thing in a folder that does not belong to an unchanged release."""
    entries = _entries(folder)
    sums = _read_sums(folder) if entries.get(SUMS, False) else {}
    for name, is_file in entries.items():
        if not is_file or name not in (SUMS, README, *sums):
            return name
    for path, names, files in os.walk(folder):
        if not (names or files) and Path(path) != folder:  # an empty folder
            return os.path.relpath(path, folder)
    if sums:
        problems = _problems(folder) or _not_ours(folder, sums)
        if problems:
            raise InputError(f"{problems[0]}; so nothing was replaced: restore it or choose another folder")
    return None


def _has_changed(folder: Path) -> bool:
    """Return whether a folder may no longer be replaced, because somebody has just put a file into it."""
    try:
        return _foreign(folder) is not None
    except InputError:
        return True


def _not_ours(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Find files that, according to the manifests, no job wrote, or that do not belong in a release."""
    layout = Layout(folder)
    load_config(layout.config)
    if not records_configuration(layout):
        return [f"{layout.config}: not what {layout.manifest('configure')} records"]
    of_jobs = [Path("/", pattern) for pattern in manifest_patterns(layout)]
    manifests = [name for name in sums if _matches(name, of_jobs)]
    history = History(folder / name for name in manifests)
    written = {file: artifact.sha256 for file, (_, artifact) in history.written.items()}
    crate = described(layout) if layout.crate.exists() else {}
    patterns = _released(Layout(Path("/")))
    return [
        f"{folder / name}: not a file of a release"
        for name in sorted(sums.keys() - {*manifests, layout.crate.name})
        if not (
            (written.get(absolute(folder / name)) == sums[name] and _matches(name, patterns))
            or crate.get(absolute(folder / name)) == sums[name]
        )
    ]


def _matches(name: str, files: Iterable[Path]) -> bool:
    return any(Path("/", name).match(str(file)) for file in files)


def _drawn(layout: Layout) -> list[Path]:
    """Return path patterns of everything that is drawn from tables."""
    products = [path for target in ("fig_*", "table_*") for path in layout.products(target)]
    return [layout.explorer, layout.report, *products]


def _released(layout: Layout) -> list[Path]:
    """Return path patterns of the files of a release, apart from its manifests."""
    tables = [layout.table(name) for name in declarations.TABLES]
    measured = measurements(layout, "*", (name for name, stage in STAGES.items() if stage.each == "run"))
    return [layout.config, layout.sbom, *tables, *_drawn(layout), *measured]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise InputError("\n".join(problems))


def _problems(folder: Path) -> list[str]:
    sums, files = _read_sums(folder), _listed(folder)
    problems = [f"{folder / name}: missing, but listed in {SUMS}" for name in sorted(sums.keys() - files.keys())]
    problems += [f"{folder / name}: not listed in {SUMS}; remove it" for name in sorted(files.keys() - sums.keys())]
    for name in sorted(sums.keys() & files.keys()):
        if not files[name].is_file() or sha256_file(files[name]) != sums[name]:
            problems.append(f"{files[name]}: not the file that {SUMS} lists; it is damaged or was changed")
    return problems or _contradictions(folder, sums)


def _contradictions(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Find files whose sha256 is not the recorded one, and tables that no job wrote."""
    names = {absolute(folder / name): name for name in sums}
    history = History(folder / name for name in sums if re.fullmatch(_MANIFEST, name))
    problems: dict[str, str] = {}
    recorded = [(path, history.outputs(path)) for path in history.manifests]
    recorded += [(path, history.inputs(path)) for path in history.manifests]
    for manifest, files in recorded:
        for file, artifact in files.items():
            name = names.get(file, "")
            if sums.get(name, artifact.sha256) != artifact.sha256:
                by = manifest.relative_to(folder).as_posix()
                problems.setdefault(name, f"{folder / name}: not the file that {by} records; one was changed")
    for file, name in names.items():
        if file.suffix == ".parquet" and file not in history.written:
            problems[name] = f"{folder / name}: no manifest records the job that wrote it"
    return list(problems.values())


def _listed(folder: Path) -> dict[str, Path]:
    """Return everything that a release's `SHA256SUMS` has to list, by relative path."""
    return {name: folder / name for name in _entries(folder) if name not in (SUMS, README)}


def _entries(folder: Path) -> dict[str, bool]:
    """Return everything in a folder except subfolders, by relative path, and whether it is a file; links are not files.

    Raises:
        OSError: a folder cannot be read.
    """
    found = {}
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() or not path.is_dir():
                found[path.relative_to(folder).as_posix()] = path.is_file() and not path.is_symlink()
    return dict(sorted(found.items()))


def _raise(error: OSError) -> NoReturn:
    raise error


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    if not path.is_file():
        raise InputError(f"{path}: missing; give the folder of a release, such as docs/results/theory")
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(errors="replace", encoding="utf-8").splitlines(), start=1):
        parts = re.fullmatch("([0-9a-f]{64})  (.+)", line)
        if parts is None or parts[2] in sums:
            raise InputError(f"{path}: line {number} is not a sha256, two spaces and a file not listed before")
        sums[parts[2]] = parts[1]
    if not sums:
        raise InputError(f"{path}: lists no file")
    return sums


def redraw(folders: Sequence[Path], output: Path, scripts: Path = SCRIPTS) -> Iterator[Product]:
    """Redraw every figure, table and page of some releases from their tables, on all cores.

    Every file of every release is verified first. A release without results has only the figures and tables of the
    theorems, and no pages.

    Args:
        folders: the releases.
        output: where the products go, in a folder named after each release, which must be new or from an earlier
            redraw. A `SHA256SUMS` there lists what was made, so that the next redraw knows what it may replace.
        scripts: the folder of the figure and table scripts.

    Yields:
        Each product, once it is made and compared with the released one.

    Raises:
        InputError: a release is damaged or cannot be drawn, or something else is in the place of its products.
    """
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{folder}: another folder is called {name} too; draw them one at a time")
        _check_redrawable(output / name)
        verify(folder)
        if not any(Layout(folder).table(table).is_file() for table in declarations.TABLES):
            raise InputError(f"{folder}: has no results.parquet and no theory.parquet, nothing to draw from")
    targets = [
        (folder, script)
        for folder in folders
        for script in declarations.scripts(scripts).values()
        if _is_drawable(folder, script)
    ]
    if not targets:
        raise InputError(f"{scripts}: no figure or table is drawn from the tables of these releases alone")
    whole = [folder for folder in folders if Layout(folder).results.is_file()]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("forkserver")) as pool:
        for product in pool.map(_draw, *map(list, zip(*targets, strict=True)), repeat(output)):
            _list(product, output)
            yield product
        for pages in pool.map(_write_pages, whole, repeat(scripts), repeat(output)):
            for page in pages:
                _list(page, output)
                yield page


def _is_drawable(folder: Path, script: declarations.Script) -> bool:
    """Return whether a release has the tables of a figure or table; early ones have no verdicts."""
    return all(Layout(folder).table(table).is_file() for table in script.tables)


def _list(product: Product, output: Path) -> None:
    """Add the files of a product to the redraw's `SHA256SUMS`."""
    made = Layout(output / product.release.resolve().name)
    pages = {"explorer": [made.explorer], "report": [made.report]}
    files = pages.get(product.name) or made.products(product.name)
    sums = _read_sums(made.root) if (made.root / SUMS).is_file() else {}
    _write_sums(made.root, sums | {path.relative_to(made.root).as_posix(): sha256_file(path) for path in files})


def _check_redrawable(folder: Path) -> None:
    """Refuse a place for products unless it is empty, or has only unchanged products and pages of an earlier redraw.

    Raises:
        InputError: something else is there, or the place is inside an experiment or a release.
    """
    check_not_inside(folder)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise InputError(f"{folder}: not a folder; choose another output")
    if not folder.exists():
        return
    if is_release(folder) or is_experiment(folder):
        raise InputError(f"{folder}: would replace files of an experiment or a release; choose another output")
    drawn = _drawn(Layout(Path("/")))
    entries = _entries(folder)
    sums = _read_sums(folder) if entries.get(SUMS, False) else {}
    for name, is_file in entries.items():
        ours = name == SUMS or Path(name).name.startswith(TEMPORARY)
        drawn_here = _matches(name, drawn) and name in sums
        if not (is_file and (ours or (drawn_here and sha256_file(folder / name) == sums[name]))):
            raise InputError(f"{folder / name}: not from an earlier redraw; choose another output")


def _draw(folder: Path, script: declarations.Script, output: Path) -> Product:
    from dhel_kcl.paper.render import load_target, points_equal, read_points, render, shows_points

    released, made = Layout(folder), Layout(output / folder.resolve().name)
    render(script.path, [released.table(name) for name in script.tables], made.products(script.name)[0].parent)
    pairs = list(zip(made.products(script.name), released.products(script.name), strict=True))
    csv, released_csv = next(pair for pair in pairs if pair[0].suffix == ".csv")
    if not released_csv.exists():
        return Product(folder, script.name)
    points, target, other = read_points(released_csv), load_target(script.path), _other_bytes(pairs)
    shown = [shows_points(old, target, points) for _, old in pairs if old.suffix == ".md" and old.exists()]
    numbers = points_equal(read_points(csv), points) and all(shown)
    excused = _may_differ(released.manifest("render", script.name), script_digest(script.path))
    return Product(folder, script.name, numbers and (excused or not set(other) - {".csv"}), other)


def _may_differ(manifest: Path, code: str) -> bool:
    """Return whether a job's output may have different bytes now, because its code or a package has changed."""
    return manifest.exists() and bool(changes_since(load_manifest(manifest), code))


def _write_pages(folder: Path, scripts: Path, output: Path) -> list[Product]:
    from dhel_kcl.paper.explorer import explorer_text, read_rows, run_rows, trainings, write_explorer
    from dhel_kcl.paper.page import write_page
    from dhel_kcl.paper.report import compare_report, report_of

    experiment, made = Experiment.open(folder, scripts), Layout(output / folder.resolve().name)
    drawable = {name: script for name, script in experiment.targets.items() if _is_drawable(folder, script)}
    experiment = replace(experiment, chosen=drawable)
    released, manifests = experiment.layout, trainings(experiment)
    stages = run_stages(experiment.config)
    write_explorer(released.results, manifests, made.explorer, stages)
    rows = run_rows(released.results, manifests, released.root)
    write_page(report_of(experiment, released.root, made), made.report)
    page = explorer_text(released.results, manifests, released.explorer, stages).encode()
    may_differ = {name: _may_differ(released.manifest(name), code_digest(name)) for name in ("explorer", "report")}
    same_rows = read_rows(released.explorer) == rows
    same_page = may_differ["explorer"] or released.explorer.read_bytes() == page
    same, wrong = compare_report(experiment)
    return [
        Product(folder, "explorer", same_rows and same_page),
        Product(folder, "report", same or (may_differ["report"] and not wrong)),
    ]


def _other_bytes(pairs: Iterable[tuple[Path, Path]]) -> tuple[str, ...]:
    return tuple(new.suffix for new, old in pairs if not old.exists() or new.read_bytes() != old.read_bytes())
