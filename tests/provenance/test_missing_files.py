"""What is gone from a finished experiment, or read otherwise than before, is made again; what was never done is not."""

import shutil
from pathlib import Path

import pytest
import yaml
from made_up import make_up
from workspace import TINY

from dhel_kcl.experiment.config import parse_config
from dhel_kcl.jobs.experiment import SCRIPTS, Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.provenance.staleness import explain, stale_jobs

RUN = "digits-dhel-temperature0.3-bs128-seed0"
REPOSITORY = TINY.parents[1]


def opened(**changes: object) -> Experiment:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8")) | changes
    return Experiment(parse_config(values, "test"), Layout(Path("results/tiny")))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    shutil.copytree(REPOSITORY / SCRIPTS, tmp_path / SCRIPTS)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
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
        ("figures/fig_heatmap.pdf", "render of fig_heatmap"),
        ("tables/table_claims.md", "render of table_claims"),
        ("manifests/render-fig_heatmap.json", "render of fig_heatmap"),
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


def test_what_was_never_done_is_left_to_snakemake(experiment: Experiment) -> None:
    shutil.rmtree(experiment.layout.root)
    assert said(experiment) == []


def test_runs_that_are_new_are_left_to_snakemake(experiment: Experiment) -> None:
    assert not [line for line in said(opened(seeds=[0, 1])) if "seed1" in line]


def test_the_report_follows_the_scripts_that_there_are(experiment: Experiment) -> None:
    script = SCRIPTS / "fig_heatmap.py"
    shutil.copy(script, SCRIPTS / "fig_other.py")
    assert said(opened()) == ["report of tiny is stale: it now reads fig_other.csv"]
    (SCRIPTS / "fig_other.py").unlink()
    script.unlink()
    assert said(opened()) == ["report of tiny is stale: it no longer reads fig_heatmap.csv"]
