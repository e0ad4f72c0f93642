"""Whose a folder is, told by what lies in it: a command writes where nothing is, or into what this package made."""

import os
from pathlib import Path

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ExperimentConfig, load_config, resolved_text
from dhel_kcl.files import sha256_file
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest

SUMS = "SHA256SUMS"
"""The file by which a release is told from an experiment; it lists the sha256 of every file."""


def is_release(folder: Path) -> bool:
    """Whether a folder is a release, be it damaged or not."""
    return os.path.lexists(folder / SUMS) and os.path.lexists(Layout(folder).config)


def is_experiment(folder: Path) -> bool:
    """Whether `dhel-kcl configure` made a folder; a release has these files too."""
    layout = Layout(folder)
    return os.path.lexists(layout.config) and os.path.lexists(layout.manifest("configure"))


def check_not_inside(folder: Path) -> None:
    """Refuse a folder inside an experiment or a release, which hold what they record and nothing else.

    Raises:
        InputError: the folder, which need not exist yet, is inside one.
    """
    for each in Path(os.path.realpath(folder)).parents:
        if is_release(each) or is_experiment(each):
            kind = "a release" if is_release(each) else "an experiment"
            raise InputError(f"{folder}: inside {each}, {kind}; choose a folder outside of it")


def check_open_to_jobs(layout: Layout) -> None:
    """Refuse a folder that is not an experiment's own, before a job writes into it.

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


def needs_configuring(layout: Layout, config: ExperimentConfig) -> bool:
    """Whether the folder's config.yaml has yet to be written from a configuration.

    Raises:
        InputError: the folder is a release, or lies inside one or inside an experiment, or its config.yaml is neither
            the file that the manifest of `configure` records nor the one that would be written.
    """
    check_not_inside(layout.root)
    if is_release(layout.root):
        raise InputError(f"{layout.root}: a release, which stays as it was published; choose another name or folder")
    if not os.path.lexists(layout.config):
        return True
    if os.path.lexists(layout.manifest("configure")) and records_configuration(layout):
        return load_config(layout.config) != config
    # As `configure` leaves it when it is killed before it writes the manifest.
    if not (layout.config.is_file() and layout.config.read_bytes() == resolved_text(config).encode()):
        raise InputError(
            f"{layout.config}: not what `dhel-kcl configure` wrote there, and would be lost; "
            "move it away or choose another folder"
        )
    return True


def records_configuration(layout: Layout) -> bool:
    """Whether the manifest of `configure` records config.yaml as it is.

    Raises:
        InputError: the manifest is missing or malformed.
    """
    manifest = layout.manifest("configure")
    job = load_manifest(manifest)
    written = {os.path.realpath(manifest.parent / each.path): each.sha256 for each in job.outputs.values()}
    sha256 = written.get(os.path.realpath(layout.config))
    return job.stage == "configure" and layout.config.is_file() and sha256 == sha256_file(layout.config)
