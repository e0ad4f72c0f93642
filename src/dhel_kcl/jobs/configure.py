"""The stage `configure`: check an experiment's configuration and write it with every default filled in."""

from pathlib import Path

from dhel_kcl.experiment.config import ExperimentConfig, write_resolved_config
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.ownership import needs_configuring
from dhel_kcl.jobs.stages import STAGES


def configure(config: ExperimentConfig, layout: Layout, source: Path | None) -> bool:
    """Write the configuration into the experiment's folder, unless it is already there.

    Args:
        config: the configuration.
        layout: the folder, which may be new.
        source: the file that it was read from; None if it was standard input.

    Returns:
        Whether it was written.

    Raises:
        InputError: the folder contains something that `dhel-kcl configure` did not write, or cannot be written.
    """
    if not needs_configuring(layout, config):
        return False
    job = Job(Experiment(config, layout), STAGES["configure"], config.name)
    with job.recorded(inputs={"source": source} if source else {}):
        write_resolved_config(config, layout.config)
    return True
