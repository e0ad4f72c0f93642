"""An opened experiment: its configuration, the paths of its files, and its figures and tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import ExperimentConfig, load_config
from dhel_kcl.jobs.layout import Layout

SCRIPTS = Path("paper_figures")
"""The folder of the figure and table scripts in a clone; each script is a target of the same name."""


@dataclass(frozen=True)
class Experiment:
    """An experiment, as seen by every stage and by all code that examines stages.

    Attributes:
        config: the runs and their settings.
        layout: the paths of its files.
        scripts: the folder of the figure and table scripts.
        chosen: the scripts to use; None for all.
    """

    config: ExperimentConfig
    layout: Layout
    scripts: Path = SCRIPTS
    chosen: Mapping[str, declarations.Script] | None = None

    @classmethod
    def open(cls, folder: Path, scripts: Path = SCRIPTS) -> Self:
        """Open the folder of an experiment or a release.

        Args:
            folder: the folder, such as ``results/quickstart``.
            scripts: the folder of the figure and table scripts.

        Raises:
            InputError: the folder holds no experiment, or its configuration cannot be read.
        """
        layout = Layout(folder)
        if not layout.config.exists():
            raise InputError(f"{layout.config}: missing; {_others(folder)}")
        return cls(load_config(layout.config), layout, scripts)

    @cached_property
    def targets(self) -> Mapping[str, declarations.Script]:
        """The figure and table scripts, by name; without those of the theory if the configuration leaves it out.

        Raises:
            InputError: there are no scripts, or one cannot be read.
        """
        scripts = declarations.scripts(self.scripts) if self.chosen is None else self.chosen
        return {name: each for name, each in scripts.items() if self.config.theory or "theory" not in each.tables}

    @property
    def discarded(self) -> set[Path]:
        """The files that the workflow deletes after use."""
        runs = () if self.config.compute.keep_features else self.config.runs
        return {self.layout.features(run) for run in runs}


def _others(folder: Path) -> str:
    """Say what to do if a folder is not an experiment: name experiments beside it, else say how to make one."""
    beside = sorted(
        {path.parent for parent in {folder.parent, Path("results")} for path in parent.glob("*/config.yaml")}
    )
    if beside:
        return f"experiments here: {', '.join(map(str, beside))}"
    return "create it with `dhel-kcl configure config/quickstart.yaml`"
