"""The history of an experiment: all its manifests as one graph of jobs and files."""

import functools
import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from dhel_kcl.files import parse_json, read_regular, sha256_file
from dhel_kcl.jobs.manifest import Artifact, Manifest, absolute, load_manifest, locate

State = Literal["as recorded", "missing", "changed", "discarded"]


class History:
    """The jobs of an experiment, the files that each read and wrote, and the present state of those files.

    Files are identified by their absolute paths, manifests by the paths under which they were loaded.

    Attributes:
        manifests: the loaded manifests, in order of loading.
        written: the files that these jobs wrote, each with its job's manifest and the record in it.
        discarded: files that the workflow deletes after use.
    """

    def __init__(self, manifests: Iterable[Path] = (), discarded: Iterable[Path] = ()) -> None:
        """Load manifests.

        Args:
            manifests: their paths.
            discarded: files that the workflow deletes after use.

        Raises:
            InputError: a manifest is missing or malformed.
        """
        self.manifests: dict[Path, Manifest] = {}
        self.written: dict[Path, tuple[Path, Artifact]] = {}
        self._paths: dict[Path, Path] = {}
        self.discarded = {absolute(path) for path in discarded}
        self._hashed = functools.cache(sha256_file)
        self._of_manifests: dict[Path, str] = {}
        self._users: dict[Path, list[tuple[Path, Artifact]]] = {}
        for path in manifests:
            self.load(path)

    def load(self, path: Path) -> Manifest:
        """Add the job that a manifest describes, unless it is already loaded.

        Raises:
            InputError: the manifest is missing or malformed.
            OSError: the manifest cannot be read.
        """
        place = absolute(path)
        if place not in self._paths:
            try:
                content = read_regular(path)
                manifest = Manifest.model_validate(parse_json(content))
            except (FileNotFoundError, ValueError):
                manifest = load_manifest(path)  # raises a one-line error
                content = read_regular(path)
            self._paths[place], self.manifests[path] = path, manifest
            self._of_manifests[place] = hashlib.sha256(content).hexdigest()
            self.written |= {file: (path, artifact) for file, artifact in self.outputs(path).items()}
            for file, artifact in self.inputs(path).items():
                self._users.setdefault(file, []).append((path, artifact))
        return self.manifests[self._paths[place]]

    def outputs(self, manifest: Path) -> dict[Path, Artifact]:
        """Return the files that a job wrote, each with the record in its manifest."""
        return _located(manifest, self.manifests[manifest].outputs)

    def inputs(self, manifest: Path) -> dict[Path, Artifact]:
        """Return the files that a job read, each with the record in its manifest."""
        return _located(manifest, self.manifests[manifest].inputs)

    def writer(self, file: Path) -> Path | None:
        """Return the manifest of the job that wrote a file, which may be the file itself; None if no job wrote it."""
        place = absolute(file)
        if place in self._paths:
            return self._paths[place]
        return self.written[place][0] if place in self.written else None

    def is_manifest(self, file: Path) -> bool:
        """Return whether a file is one of the loaded manifests."""
        return absolute(file) in self._paths

    def recorded(self, file: Path) -> str | None:
        """Return a file's sha256 from its job's manifest, or of a manifest as loaded; None if no job wrote it."""
        place = absolute(file)
        if place in self._of_manifests:
            return self._of_manifests[place]
        return self.written[place][1].sha256 if place in self.written else None

    def users(self, file: Path) -> list[tuple[Path, Artifact]]:
        """Return the manifests of the jobs that read a file, each with its record of the file."""
        return self._users.get(absolute(file), [])

    def sha256(self, file: Path) -> str:
        """Return the sha256 of a file; each file is read only once."""
        return self._hashed(absolute(file))

    @property
    def files_hashed(self) -> int:
        """The number of files that `sha256` has read."""
        return self._hashed.cache_info().currsize

    def state(self, file: Path, recorded: Artifact) -> State:
        """Return the present state of a file that a manifest describes.

        Raises:
            InputError: it is not a regular file but, for example, a pipe.
            OSError: it cannot be read.
        """
        if not file.exists():
            return "discarded" if absolute(file) in self.discarded else "missing"
        return "as recorded" if self.sha256(file) == recorded.sha256 else "changed"

    def stage_costs(self) -> list[dict[str, Any]]:
        """Sum up the time and memory of each stage; figures and tables count as separate stages.

        Returns:
            For each stage its name (`stage`), the number of `jobs`, their total time (`total`), the seconds of the
            median and the longest one (`median`, `longest`), the highest peak memory in MiB (`memory`), and the stages
            whose files it used (`uses`).
        """
        jobs: dict[str, list[Path]] = {}
        for path, job in self.manifests.items():
            jobs.setdefault(_shown_stage(job), []).append(path)
        costs = []
        for stage, paths in jobs.items():
            seconds = [self.manifests[path].seconds for path in paths]
            memory = [peak for path in paths if (peak := self.manifests[path].peak_memory_mib) is not None]
            used = {self.writer(file) for path in paths for file in self.inputs(path)}
            uses = {_shown_stage(self.manifests[path]) for path in used if path is not None} - {stage}
            costs.append(
                {
                    "stage": stage,
                    "jobs": len(paths),
                    "total": timedelta(seconds=round(sum(seconds))),
                    "median": statistics.median(seconds),
                    "longest": max(seconds),
                    "memory": max(memory, default=None),
                    "uses": [each for each in jobs if each in uses],
                }
            )
        return costs

    def hardware(self) -> list[dict[str, Any]]:
        """Return the kinds of machines that the jobs ran on, most used first, each with its number of `jobs`."""
        counts = Counter(tuple(job.hardware.items()) for job in self.manifests.values())
        return [{**dict(facts), "jobs": count} for facts, count in counts.most_common()]


def _located(manifest: Path, artifacts: Mapping[str, Artifact]) -> dict[Path, Artifact]:
    return {locate(manifest, artifact): artifact for artifact in artifacts.values()}


def _shown_stage(job: Manifest) -> str:
    if job.stage != "render":
        return job.stage
    return "figures" if job.subject.startswith("fig_") else "tables"
