"""An experiment may leave out the theorems, which do not depend on its runs."""

from pathlib import Path

import pytest
import yaml
from workspace import TINY

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import parse_config
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.job import Job, jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.stages import STAGES, stages_of
from dhel_kcl.results import theory


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8")) | {"theory": None}
    return Experiment(parse_config(values, "test"), Layout(tmp_path / "tiny"), Path(TINY.parents[1] / SCRIPTS))


def test_neither_the_stage_nor_its_figures_nor_its_table_are_made(experiment: Experiment) -> None:
    assert stages_of("theory", experiment.config) == ()
    assert {"table_claims", "fig_spectrum"} <= set(experiment.targets)
    assert not {"table_theory", "fig_minimisers", "fig_population_minimisers"} & set(experiment.targets)
    every = jobs(experiment)
    read = {path for job in every.values() for path in job.reads.values()}
    assert experiment.layout.results in read
    assert experiment.layout.theory not in read
    assert experiment.layout.manifest("theory") not in every


def test_the_command_says_why_it_does_nothing(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="theory: null leaves the theorems out; remove it to check them"):
        theory.run(Job(experiment, STAGES["theory"], "tiny"))
