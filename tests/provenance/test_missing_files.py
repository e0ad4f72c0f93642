"""What is gone from a finished experiment, or read otherwise than before, is made again; what was never done is not."""

import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from made_up import make_up
from workspace import TINY, make_workspace, snakemake

from dhel_kcl.experiment.grid import parse_config
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.job import jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.provenance.repair import repair
from dhel_kcl.provenance.staleness import explain, stale_jobs

RUN = "digits-dhel-temperature0.3-bs128-seed0"


def opened(**changes: object) -> Experiment:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8")) | changes
    return Experiment(parse_config(values, "test"), Layout(Path("results/tiny")))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(make_workspace(tmp_path))
    made = opened()
    make_up(made)
    return made


def said(experiment: Experiment) -> list[str]:
    return list(explain(stale_jobs(experiment), experiment))


def test_of_an_experiment_that_is_whole_nothing_is_stale(experiment: Experiment) -> None:
    assert said(experiment) == []


@pytest.mark.parametrize(
    ("gone", "job"),
    [
        ("figures/fig_spectrum.pdf", "render of fig_spectrum"),
        ("tables/table_claims.md", "render of table_claims"),
        ("manifests/render-fig_spectrum.json", "render of fig_spectrum"),
        (f"runs/{RUN}/evaluation.json", f"evaluate of {RUN}"),
        (f"runs/{RUN}/evaluate.manifest.json", f"evaluate of {RUN}"),
        (f"runs/{RUN}/pretrain.manifest.json", f"pretrain of {RUN}"),
        (f"runs/{RUN}/encoder.safetensors", f"pretrain of {RUN}"),
        ("data/digits/test.beton", "data of digits/test"),
        ("data/digits/test.beton.json", "data of digits/test"),
        ("results.csv", "collect of tiny"),
        ("manifests/collect.json", "collect of tiny"),
        ("theory.csv", "theory of tiny"),
        ("explorer.html", "explorer of tiny"),
        ("manifests/explorer.json", "explorer of tiny"),
        ("report.html", "report of tiny"),
        ("manifests/report.json", "report of tiny"),
        ("config.yaml", "audit of tiny"),
        ("manifests/configure.json", "audit of tiny"),
    ],
)
def test_the_job_is_stale_that_wrote_what_is_gone(experiment: Experiment, gone: str, job: str) -> None:
    path = experiment.layout.root / gone
    path.unlink()
    assert f"{job} is stale: {path.name} is missing" in said(experiment)


def test_a_whole_job_may_be_gone(experiment: Experiment) -> None:
    layout = experiment.layout
    for path in [layout.results, layout.results.with_suffix(".csv"), layout.manifest("collect")]:
        path.unlink()
    assert "collect of tiny is stale: collect.json is missing" in said(experiment)


def test_features_that_the_workflow_discards_are_not_missing(experiment: Experiment) -> None:
    shutil.rmtree(experiment.layout.root)
    discarding = opened(compute={**experiment.config.compute.model_dump(mode="json"), "keep_features": False})
    make_up(discarding)
    assert not discarding.layout.features(RUN).exists()
    assert said(discarding) == []
    discarding.layout.run_manifest("features", RUN).unlink()
    assert said(discarding) == [f"features of {RUN} is stale: features.manifest.json is missing"]


def test_a_stage_of_a_rule_that_ended_is_missed_also_where_nothing_was_collected_yet(experiment: Experiment) -> None:
    layout = experiment.layout
    for gathering in ("collect", "explorer", "report"):
        layout.manifest(gathering).unlink()
    for name in ("evaluate", "corruptions"):
        layout.run_manifest(name, RUN).unlink()
    reasons = said(experiment)
    for name in ("evaluate", "corruptions"):
        assert f"{name} of {RUN} is stale: {name}.manifest.json is missing" in reasons


def test_what_was_never_done_is_left_to_snakemake(experiment: Experiment) -> None:
    shutil.rmtree(experiment.layout.root)
    assert said(experiment) == []


def test_runs_that_are_new_are_left_to_snakemake(experiment: Experiment) -> None:
    assert not [line for line in said(opened(seeds=[0, 1])) if "seed1" in line]


def test_the_report_follows_the_scripts_that_there_are(experiment: Experiment) -> None:
    script = SCRIPTS / "fig_spectrum.py"
    shutil.copy(script, SCRIPTS / "fig_other.py")
    assert said(opened()) == ["report of tiny is stale: it now reads fig_other.csv"]
    (SCRIPTS / "fig_other.py").unlink()
    script.unlink()
    assert said(opened()) == ["report of tiny is stale: it no longer reads fig_spectrum.csv"]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_crash_damaged_is_planned_again(experiment: Experiment, seed: int) -> None:
    chance, every = random.Random(seed), [job for job in jobs(experiment).values() if job.stage.name != "configure"]
    hit = chance.sample(every, k=chance.randrange(1, 6))
    for job in hit:
        for path in chance.sample(files := [*job.writes.values(), job.manifest], k=chance.randint(1, len(files))):
            path.write_bytes(bytes(path.stat().st_size))
    if seed % 2:
        experiment.layout.audit.unlink()
    repair(experiment.layout)
    outcome = snakemake("--dry-run", cwd=Path.cwd())
    assert outcome.returncode == 0, outcome.stderr
    planned = set(re.findall(r"^(\w+) +\d+$", outcome.stdout, re.MULTILINE))
    assert planned >= {job.subject if job.stage.each == "target" else job.rule for job in hit}
