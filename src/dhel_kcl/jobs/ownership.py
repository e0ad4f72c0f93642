"""Who owns a folder, judged by its content: commands write only into empty places or folders that this package made."""

import os
import shlex
from pathlib import Path

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import ExperimentConfig, load_config, resolved_text
from dhel_kcl.files import read_regular, sha256_file
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest

SUMS = "SHA256SUMS"
"""The file that distinguishes a release from an experiment; it lists the sha256 of every file."""


def is_release(folder: Path) -> bool:
    """Return whether a folder is a release, damaged or not."""
    return os.path.lexists(folder / SUMS) and os.path.lexists(Layout(folder).config)


def is_experiment(folder: Path) -> bool:
    """Return whether `dhel-kcl configure` made a folder; this is true for a release too."""
    layout = Layout(folder)
    return os.path.lexists(layout.config) and os.path.lexists(layout.manifest("configure"))


def how_to_verify(release: Path) -> str:
    """Say how to verify a release, for which there is no audit."""
    return f"a release; verify it with `dhel-kcl redraw {shlex.quote(str(release))}`"


def is_own(folder: Path) -> bool:
    """Return whether a folder is an experiment's own and not a release, into which nothing may be written."""
    return is_experiment(folder) and not is_release(folder)


def check_not_inside(folder: Path) -> None:
    """Refuse a folder inside an experiment or a release, which must contain only the files that they record.

    Raises:
        InputError: the folder, which need not exist yet, is inside one.
    """
    for each in Path(os.path.realpath(folder)).parents:
        if is_release(each) or is_experiment(each):
            kind = "a release" if is_release(each) else "an experiment"
            raise InputError(f"{folder}: inside {each}, {kind}; choose a folder outside of it")


def check_open_to_jobs(layout: Layout) -> None:
    """Refuse, before a job writes into it, a folder that is not an experiment's own.

    Raises:
        InputError: it is a release, or `dhel-kcl configure` did not make it.
    """
    if is_release(layout.root):
        raise InputError(f"{layout.root}: a release, which stays as it was published; give the experiment's folder")
    if not is_experiment(layout.root):
        raise InputError(
            f"{layout.manifest('configure')}: missing, so this may not be an experiment's folder; "
            "create one with `dhel-kcl configure`"
        )


def check_open_to_log(log: Path) -> None:
    """Refuse a log file inside a release, or inside an experiment but outside its `logs/`.

    Raises:
        InputError: the file, which need not exist yet, is in such a place.
    """
    folder = Path(os.path.realpath(log.parent))
    for each in (folder, *folder.parents):
        if is_release(each):
            raise InputError(f"{log}: inside {each}, a release, which stays as it was published; choose another folder")
        if is_experiment(each) and not folder.is_relative_to(each / "logs"):
            raise InputError(f"{log}: inside {each}, an experiment; choose a folder outside of it, or its logs/")


def needs_configuring(layout: Layout, config: ExperimentConfig) -> bool:
    """Return whether the folder's config.yaml still has to be written from a configuration.

    Raises:
        InputError: the folder is a release, or is inside a release or an experiment; its config.yaml is neither the
            file recorded by the manifest of `configure` nor the one that would be written; another file is in the place
            of that manifest; or the folder of manifests or of marks is a link.
    """
    check_not_inside(layout.root)
    if is_release(layout.root):
        raise InputError(f"{layout.root}: a release, which stays as it was published; choose another name or folder")
    manifest = layout.manifest("configure")
    for folder in (manifest.parent, layout.running):
        if folder.is_symlink():
            raise InputError(f"{folder}: a link, through which files of others would be replaced; put a folder there")
    if os.path.lexists(manifest) and load_manifest(manifest).stage != "configure":
        raise InputError(f"{manifest}: not a manifest of `dhel-kcl configure`, and would be lost; move it away")
    if not os.path.lexists(layout.config):
        return True
    if os.path.lexists(manifest) and records_configuration(layout):
        return load_config(layout.config) != config
    # `configure` leaves it like this if it is killed before it writes the manifest.
    if not (layout.config.is_file() and read_regular(layout.config) == resolved_text(config).encode()):
        raise InputError(
            f"{layout.config}: not what `dhel-kcl configure` wrote there, and would be lost; "
            "move it away or choose another folder"
        )
    return True


def records_configuration(layout: Layout) -> bool:
    """Return whether config.yaml matches the record in the manifest of `configure`.

    Raises:
        InputError: the manifest is missing or malformed.
    """
    manifest = layout.manifest("configure")
    job = load_manifest(manifest)
    written = {os.path.realpath(manifest.parent / each.path): each.sha256 for each in job.outputs.values()}
    sha256 = written.get(os.path.realpath(layout.config))
    return job.stage == "configure" and layout.config.is_file() and sha256 == sha256_file(layout.config)
