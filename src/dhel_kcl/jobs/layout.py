"""Where every file of an experiment lives; the command line and the workflow both ask here."""

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
        """One split of a data set in FFCV's format; its sidecar is beside it."""
        return self.root / "data" / dataset / f"{split}.beton"

    def run(self, run: str) -> Path:
        """The folder of one run."""
        return self.root / "runs" / run

    def encoder(self, run: str) -> Path:
        """Final weights of backbone and projector."""
        return self.run(run) / "encoder.safetensors"

    def training_log(self, run: str) -> Path:
        """Loss, its two terms, gradient norm and learning rate for each epoch; there while the run trains."""
        return self.run(run) / "training_log.csv"

    def throughput(self, run: str) -> Path:
        """Images per second for each epoch; apart from the log because it is never the same twice."""
        return self.run(run) / "throughput.csv"

    def outcome(self, run: str) -> Path:
        """How training ended: finished or diverged."""
        return self.run(run) / "outcome.json"

    def live(self, run: str) -> Path:
        """Folder of drawings of the run while it trains; no result, so no job describes them."""
        return self.run(run) / "live"

    def features(self, run: str) -> Path:
        """Cached outputs of the frozen encoder."""
        return self.run(run) / "features.safetensors"

    def evaluation(self, run: str) -> Path:
        """Linear-probe and k-NN accuracies."""
        return self.run(run) / "evaluation.json"

    def classifier(self, run: str) -> Path:
        """The linear classifier that the linear evaluation fitted."""
        return self.run(run) / "classifier.safetensors"

    def representation(self, run: str) -> Path:
        """Metrics of the representation."""
        return self.run(run) / "representation.json"

    def augmented_probe(self, run: str) -> Path:
        """Linear-probe accuracies of the protocol with augmented images."""
        return self.run(run) / "augmented_probe.json"

    def corruptions(self, run: str) -> Path:
        """Accuracies of the linear classifier on corrupted test images."""
        return self.run(run) / "corruptions.json"

    @property
    def results(self) -> Path:
        """The tidy table of everything measured on the runs."""
        return self.root / "results.parquet"

    @property
    def theory(self) -> Path:
        """The tidy table of the theorems' numerical verification."""
        return self.root / "theory.parquet"

    def table(self, name: str) -> Path:
        """A tidy table by the name that figure scripts give it, one of `declarations.TABLES`."""
        return {"results": self.results, "theory": self.theory}[name]

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.root / "figures"

    @property
    def tables(self) -> Path:
        """Folder of the tables."""
        return self.root / "tables"

    def products(self, target: str) -> list[Path]:
        """Files of a figure or table target; the CSV holds the numbers that it shows."""
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
        """Metadata of the experiment's run as an RO-Crate, whose files are those of this folder."""
        return self.root / "ro-crate-metadata.json"

    @property
    def sbom(self) -> Path:
        """The software of the environment, a CycloneDX bill of materials."""
        return self.root / "sbom.json"

    @property
    def source(self) -> Path:
        """Folder of the crate's copy of the workflow and of what the jobs read outside of the experiment's folder."""
        return self.root / "source"

    @property
    def audit(self) -> Path:
        """The seal of the last provenance audit that passed."""
        return self.root / "audit.json"

    @property
    def audit_problems(self) -> Path:
        """What the last audit found, one problem a line; missing if it passed."""
        return self.root / "audit_problems.txt"

    @property
    def running(self) -> Path:
        """Folder of marks of the workflows that run on the experiment, and of those that crashed."""
        return self.root / ".running"

    def manifest(self, stage: str, name: str = "") -> Path:
        """Manifest of a job that belongs to the whole experiment, to one beton, or to one figure."""
        return self.root / "manifests" / f"{'-'.join(filter(None, (stage, name)))}.json"

    def run_manifest(self, stage: str, run: str) -> Path:
        """Manifest of a job that belongs to one run."""
        return self.run(run) / f"{stage}.manifest.json"

    def log(self, *parts: str) -> Path:
        """What a job printed."""
        return self.root / "logs" / f"{'/'.join(parts)}.log"

    def benchmark(self, *parts: str) -> Path:
        """Time and memory of a job, as Snakemake measures them."""
        return self.root / "benchmarks" / f"{'/'.join(parts)}.tsv"


def sidecar_path(beton: Path) -> Path:
    """The JSON file beside a beton that says what it holds."""
    return beton.with_name(f"{beton.name}.json")


def walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, sorted within each; folders that are links are entered.

    A link to a folder that it lies in itself, which would lead around in a circle, is not entered but given.

    Raises:
        OSError: a folder cannot be read.
    """
    yield from _walk(folder, (Path(os.path.realpath(folder)),))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """`above` are the real folders on the way here, `folder` the last of them."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for path in (folder / name for name in names):
        is_link = path.is_symlink()
        real = Path(os.path.realpath(path)) if is_link else above[-1] / path.name
        if not path.is_dir() or (is_link and any(each.is_relative_to(real) for each in above)):
            yield path
        else:
            yield from _walk(path, (*above, real))
