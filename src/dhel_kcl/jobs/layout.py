"""The path of every file of an experiment, for the command line and the workflow."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths below one experiment's folder, such as ``results/quickstart``."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    def beton(self, dataset: str, split: str) -> Path:
        """Return the path of one split of a data set in FFCV's format; its sidecar is beside it."""
        return self.root / "data" / dataset / f"{split}.beton"

    def run(self, run: str) -> Path:
        """Return the folder of one run."""
        return self.root / "runs" / run

    def encoder(self, run: str) -> Path:
        """Return the path of the final weights of backbone and projector."""
        return self.run(run) / "encoder.safetensors"

    def training_log(self, run: str) -> Path:
        """Return the path of the log of each epoch: loss, its two terms, gradient norm, learning rate.

        The log is available while the run trains.
        """
        return self.run(run) / "training_log.csv"

    def throughput(self, run: str) -> Path:
        """Return the path of images per second for each epoch; not in the log, because it is never the same twice."""
        return self.run(run) / "throughput.csv"

    def outcome(self, run: str) -> Path:
        """Return the path of the file that says how training ended: finished or diverged."""
        return self.run(run) / "outcome.json"

    def live(self, run: str) -> Path:
        """Return the folder of plots of the run while it trains; they are not results, so no manifest lists them."""
        return self.run(run) / "live"

    def features(self, run: str) -> Path:
        """Return the path of the cached outputs of the frozen encoder."""
        return self.run(run) / "features.safetensors"

    def evaluation(self, run: str) -> Path:
        """Return the path of linear-probe and k-NN accuracies."""
        return self.run(run) / "evaluation.json"

    def classifier(self, run: str) -> Path:
        """Return the path of the classifier that the linear evaluation fitted."""
        return self.run(run) / "classifier.safetensors"

    def representation(self, run: str) -> Path:
        """Return the path of the metrics of the representation."""
        return self.run(run) / "representation.json"

    def augmented_probe(self, run: str) -> Path:
        """Return the path of linear-probe accuracies with the augmented-image protocol."""
        return self.run(run) / "augmented_probe.json"

    def corruptions(self, run: str) -> Path:
        """Return the path of accuracies of the linear classifier on corrupted test images."""
        return self.run(run) / "corruptions.json"

    @property
    def results(self) -> Path:
        """The tidy table of all measurements of the runs."""
        return self.root / "results.parquet"

    @property
    def theory(self) -> Path:
        """The tidy table of the theorems' numerical verification."""
        return self.root / "theory.parquet"

    @property
    def verdicts(self) -> Path:
        """The tidy table of the verdicts on the claims about trained networks."""
        return self.root / "verdicts.parquet"

    def table(self, name: str) -> Path:
        """Return the path of a tidy table by its name in figure scripts, one of `declarations.TABLES`."""
        return {"results": self.results, "theory": self.theory, "verdicts": self.verdicts}[name]

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.root / "figures"

    @property
    def tables(self) -> Path:
        """Folder of the tables."""
        return self.root / "tables"

    def products(self, target: str) -> list[Path]:
        """Return the files of a figure or table target; the CSV has the numbers that it shows."""
        if target.startswith("fig_"):
            return [self.figures / f"{target}{suffix}" for suffix in (".png", ".pdf", ".csv")]
        return [self.tables / f"{target}{suffix}" for suffix in (".md", ".csv")]

    @property
    def explorer(self) -> Path:
        """The explorer of single runs, one self-contained page."""
        return self.root / "explorer.html"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.root / "report.html"

    @property
    def crate(self) -> Path:
        """Metadata of the experiment's run as an RO-Crate; the crate's files are those of this folder."""
        return self.root / "ro-crate-metadata.json"

    @property
    def sbom(self) -> Path:
        """The CycloneDX bill of materials: the software of the environment."""
        return self.root / "sbom.json"

    @property
    def source(self) -> Path:
        """Folder of the crate's copies: the workflow, and files that jobs read from outside the experiment's folder."""
        return self.root / "source"

    @property
    def audit(self) -> Path:
        """The seal of the last provenance audit that passed."""
        return self.root / "audit.json"

    @property
    def audit_problems(self) -> Path:
        """The problems that the last audit found, one per line; missing if it passed."""
        return self.root / "audit_problems.txt"

    @property
    def running(self) -> Path:
        """Folder of marks of the workflows that are running on the experiment or have crashed."""
        return self.root / ".running"

    def manifest(self, stage: str, name: str = "") -> Path:
        """Return the manifest of a job that belongs to the whole experiment, one beton, or one figure."""
        return self.root / "manifests" / f"{'-'.join(filter(None, (stage, name)))}.json"

    def run_manifest(self, stage: str, run: str) -> Path:
        """Return the manifest of a job that belongs to one run."""
        return self.run(run) / f"{stage}.manifest.json"

    def log(self, *parts: str) -> Path:
        """Return the path of a job's log."""
        return self.root / "logs" / f"{'/'.join(parts)}.log"

    def benchmark(self, *parts: str) -> Path:
        """Return the path of a job's time and memory, as measured by Snakemake."""
        return self.root / "benchmarks" / f"{'/'.join(parts)}.tsv"


def sidecar_path(beton: Path) -> Path:
    """Return the path of the JSON file beside a beton that describes its content."""
    return beton.with_name(f"{beton.name}.json")


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything in a folder and its subfolders except folders, sorted within each; linked folders are entered.

    A link to a folder that contains the link would lead in a circle, so it is yielded instead of entered.

    Raises:
        OSError: a folder cannot be read.
    """
    yield from _walk(folder, (Path(os.path.realpath(folder)),))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Walk `folder`; `above` are the real paths of the folders entered so far, `folder` being the last."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for path in (folder / name for name in names):
        is_link = path.is_symlink()
        real = Path(os.path.realpath(path)) if is_link else above[-1] / path.name
        if not path.is_dir() or (is_link and any(each.is_relative_to(real) for each in above)):
            yield path
        else:
            yield from _walk(path, (*above, real))
