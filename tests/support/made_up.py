"""Make experiments that do not match their manifests: made up, or forged and signed again."""

import json
from pathlib import Path

from dhel_kcl.files import sha256_file, write_json
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job, jobs
from dhel_kcl.jobs.manifest import Artifact, Manifest, load_manifest, locate
from dhel_kcl.provenance.seal import Seal, file_digests


def make_up(experiment: Experiment) -> None:
    """Write the files, manifests and seal of a finished experiment; each file contains its own name."""
    for job in jobs(experiment).values():
        for path in job.writes.values():
            if path not in experiment.discarded:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(path.name, encoding="utf-8")
        write_manifest(job)
    digests = file_digests(experiment, sha256_file)
    seal = Seal(points=1, measurements=1, manifests=1, files=1, uncommitted=[], sha256=digests)
    experiment.layout.audit.write_text(seal.text(), encoding="utf-8")


def write_manifest(job: Job) -> None:
    """Write the manifest of a job from the current files that it reads and writes."""

    def described(files: dict[str, Path]) -> dict[str, Artifact]:
        return {
            name: Artifact(path=str(path.absolute()), sha256=sha256_file(path) if path.exists() else "0", bytes=1)
            for name, path in files.items()
        }

    manifest = Manifest(
        stage=job.stage.name,
        subject=job.subject,
        command=[],
        settings=json.loads(json.dumps(job.settings)),
        seeds={},
        inputs=described(job.reads),
        outputs=described(job.writes),
        source_digest=job.code,
        git_commit="c" * 40,
        git_dirty=False,
        packages={},
        hardware={},
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    write_json(job.manifest, manifest.model_dump())


def sign_again(experiment: Experiment, code: str | None = None) -> None:
    """Update the manifests to the current files, and to `code` if it is given, and remove the seal."""
    for path in jobs(experiment):
        manifest = load_manifest(path)
        manifest.source_digest = code or manifest.source_digest
        for artifact in [*manifest.inputs.values(), *manifest.outputs.values()]:
            file = locate(path, artifact)
            artifact.sha256, artifact.bytes = sha256_file(file), file.stat().st_size
        write_json(path, manifest.model_dump())
    experiment.layout.audit.unlink(missing_ok=True)
