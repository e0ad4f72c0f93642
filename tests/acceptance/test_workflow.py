"""The workflow: what it makes, what it makes again, and what it refuses."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from workspace import FINISHED, REPOSITORY, TINY, keep_targets, make_workspace, run, snakemake

from dhel_kcl.declarations import scripts
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.paper.explorer import read_rows

LAYOUT = Layout(Path("results/tiny"))
SCRIPTS = scripts(REPOSITORY / "paper_figures")
FIGURES = [name for name in FINISHED if name.startswith("fig_")]
OF_THEORY = [name for name, script in SCRIPTS.items() if script.tables == ("theory",)]


def planned(folder: Path, *targets: str, config: Path = TINY) -> dict[str, int]:
    """How many jobs of each rule a dry run would execute."""
    outcome = snakemake(*targets, "--dry-run", cwd=folder, config=config)
    assert outcome.returncode == 0, outcome.stderr
    table = outcome.stdout.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def test_every_target_produces_its_files(finished: Path) -> None:
    for target in FINISHED:
        for path in LAYOUT.products(target):
            assert (finished / path).stat().st_size > 50, path
    for figure in FIGURES:
        png, pdf, _ = (finished / path for path in LAYOUT.products(figure))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
    report = (finished / LAYOUT.report).read_text(encoding="utf-8")
    assert report.count("data:image/png;base64,") == len(FIGURES)
    assert (finished / LAYOUT.audit).exists()


def test_a_second_run_does_nothing(copy_of_finished: Path) -> None:
    files = [path for path in copy_of_finished.glob("results/**/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    outcome = snakemake(cwd=copy_of_finished)
    assert outcome.returncode == 0
    assert "Nothing to be done" in outcome.stdout + outcome.stderr
    assert before == {path: path.stat().st_mtime_ns for path in files}


def test_deleting_a_figure_and_asking_for_it_rebuilds_that_figure_only(copy_of_finished: Path) -> None:
    png = copy_of_finished / LAYOUT.figures / "fig_batch_size.png"
    original = png.read_bytes()
    png.unlink()
    others = {
        path: path.stat().st_mtime_ns
        for path in copy_of_finished.glob("results/tiny/**/*")
        if path.is_file() and "fig_batch_size" not in path.name
    }
    outcome = snakemake("fig_batch_size", cwd=copy_of_finished)
    assert outcome.returncode == 0, outcome.stderr
    assert png.read_bytes() == original
    assert others == {path: path.stat().st_mtime_ns for path in others}


def test_a_figure_drawn_again_leaves_the_report_behind_until_the_workflow_runs_again(copy_of_finished: Path) -> None:
    (copy_of_finished / LAYOUT.figures / "fig_spectrum.png").unlink()
    assert snakemake("fig_spectrum", cwd=copy_of_finished).returncode == 0
    audited = run("dhel-kcl", "audit", "results/tiny", cwd=copy_of_finished)
    status, output = audited.returncode, audited.stdout + audited.stderr
    assert status == 1
    assert all(line.startswith(("error: results/tiny", "warning: ")) for line in output.splitlines()), output
    assert "render-fig_spectrum.json: changed since results/tiny/manifests/report.json recorded it" in output
    assert "if that job was rerun, run the workflow again" in output
    assert snakemake(cwd=copy_of_finished).returncode == 0
    assert run("dhel-kcl", "audit", "results/tiny", cwd=copy_of_finished).returncode == 0


def test_each_target_and_group_has_a_rule_of_its_name(finished: Path) -> None:
    named = snakemake("--list-target-rules", cwd=finished).stdout.split()
    assert {*FINISHED, "figures", "tables", "explorer", "report", "audit", "all"} <= set(named)


def test_a_changed_setting_reruns_what_depends_on_it_and_nothing_else(copy_of_finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["analysis"] = {"similarity_bins": 50}
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(values), encoding="utf-8")
    rules = planned(copy_of_finished, config=changed)
    assert {"measure", "collect", "explorer", "report", "audit", "fig_spectrum"} <= set(rules)
    assert not set(rules) & {"data", "pretrain"}


def test_features_that_are_not_kept_are_measured_in_the_job_that_computes_them(copy_of_finished: Path) -> None:
    runs = list(load_config(TINY).runs)
    files = [file(run_id) for file in (LAYOUT.evaluation, LAYOUT.classifier, LAYOUT.representation) for run_id in runs]
    before = {file: (copy_of_finished / file).read_bytes() for file in files}
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["compute"]["keep_features"] = False
    values["evaluation"] |= {"augmented_images": False, "corruptions": False}
    config = copy_of_finished / "discarding.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    rules = planned(copy_of_finished, config=config)
    assert rules["measure"] == len(runs)
    assert not set(rules) & {"data", "pretrain"}
    one = snakemake(str(LAYOUT.run_manifest("analyse", runs[0])), cwd=copy_of_finished, config=config)
    assert one.returncode == 0, one.stdout[-3000:] + one.stderr[-3000:]
    assert not (copy_of_finished / LAYOUT.features(runs[0])).exists(), "also of a job that was asked for"
    outcome = snakemake(cwd=copy_of_finished, config=config)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    assert before == {file: (copy_of_finished / file).read_bytes() for file in files}, "as in jobs of their own"
    for run_id in runs:
        assert not (copy_of_finished / LAYOUT.features(run_id)).exists()
        (features,) = load_manifest(copy_of_finished / LAYOUT.run_manifest("features", run_id)).outputs.values()
        (read,) = load_manifest(copy_of_finished / LAYOUT.run_manifest("analyse", run_id)).inputs.values()
        assert read.sha256 == features.sha256
    assert (copy_of_finished / LAYOUT.audit).exists()
    assert not planned(copy_of_finished, config=config), "nothing is left to do"
    values["analysis"] = {"similarity_bins": 50}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    rules = planned(copy_of_finished, config=config)
    assert rules["measure"] == len(runs)
    assert not set(rules) & {"data", "pretrain"}


def test_a_changed_check_of_the_theory_touches_no_run(copy_of_finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["theory"]["temperature"] = 0.3
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(values), encoding="utf-8")
    rules = planned(copy_of_finished, config=changed)
    reading = [name for name in FINISHED if "theory" in SCRIPTS[name].tables]
    assert set(rules) == {"theory", *reading, "report", "audit", "all"}


def test_the_targets_of_the_theory_need_neither_data_nor_runs(workspace: Path) -> None:
    config = REPOSITORY / "config" / "config.yaml"
    rules = planned(workspace, *OF_THEORY, config=config)
    assert rules == dict.fromkeys(["theory", *OF_THEORY], 1)


def test_a_larger_grid_keeps_the_runs_that_it_already_has(copy_of_finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["seeds"] = [0, 1]
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(values), encoding="utf-8")
    rules = planned(copy_of_finished, config=changed)
    assert rules["pretrain"] == rules["measure"] == len(load_config(TINY).runs)
    assert "data" not in rules


def test_an_edited_figure_script_redraws_without_retraining(copy_of_finished: Path) -> None:
    script = copy_of_finished / "paper_figures" / "fig_spectrum.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    rules = planned(copy_of_finished)
    assert "fig_spectrum" in rules
    assert not set(rules) & {"pretrain", "measure", "collect", "fig_batch_size"}


def test_the_paper_grid_is_planned_in_full(workspace: Path) -> None:
    config = REPOSITORY / "config" / "config.yaml"
    rules = planned(workspace, config=config)
    assert rules["pretrain"] == rules["measure"] == len(load_config(config).runs)
    assert rules["data"] == 4 * 2 + 1, "train and test of each, and STL-10's images for pretraining"
    assert set(SCRIPTS) <= set(rules)


def test_without_a_configuration_file_the_paper_grid_is_meant(workspace: Path) -> None:
    beton = "results/paper/data/cifar10/test.beton"
    outcome = run("snakemake", beton, "--dry-run", cwd=workspace)
    assert outcome.returncode == 0, outcome.stderr
    assert re.search(r"^data +1$", outcome.stdout, re.MULTILINE)
    assert "Using workflow specific profile profiles/default" in outcome.stderr, "where Snakemake looks for it"


def test_a_bad_configuration_stops_the_workflow_with_a_line_for_each_problem(workspace: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["sedes"] = [0]
    values["batch_sizes"] = [1]
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = snakemake("--dry-run", cwd=workspace, config=bad)
    assert outcome.returncode != 0
    output = outcome.stdout + outcome.stderr
    lines = [line.strip() for line in output.splitlines() if "bad.yaml: " in line]
    assert len(lines) == 2, output
    assert "bad.yaml: batch_sizes.0: Input should be greater than or equal to 2 (given: 1)" in lines[0]
    assert "bad.yaml: sedes: unknown key; see config/README.md for the keys" in lines[1]
    assert "Traceback" not in output


def test_a_configuration_without_a_name_is_not_taken_for_the_papers(workspace: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    del values["name"]
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = snakemake("--dry-run", cwd=workspace, config=bad)
    assert outcome.returncode != 0
    assert "name: Field required" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (
            "name: tiny\nname: other\n",
            [],
            "line 2, column 1: not valid YAML: key 'name' is given twice, first in line 1",
        ),
        ("name: lonely\n", [], "datasets: Field required"),
        (None, ["seeds=[010]"], "seeds.0: Input should be a valid integer (given: '010')"),
        (None, ["seeds=[1:40]"], "seeds.0: Input should be a valid integer (given: '1:40')"),
        (
            None,
            ["evaluation={corruptions: yes}"],
            "evaluation.corruptions: Input should be a valid boolean (given: 'yes')",
        ),
        (None, ["name=a", "name=b"], "--config name: given twice"),
        (None, ["compute={threads: 1, threads: 2}"], "key 'threads' is given twice"),
    ],
)
def test_snakemake_reads_a_configuration_as_strictly_as_the_command_line_does(
    workspace: Path, tmp_path: Path, text: str | None, arguments: list[str], said: str
) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text(text or TINY.read_text(encoding="utf-8"), encoding="utf-8")
    given = ["--config", *arguments] if arguments else []
    outcome = run("snakemake", "--dry-run", "--configfile", str(path), *given, cwd=workspace)
    assert outcome.returncode != 0
    assert said in outcome.stdout + outcome.stderr


def test_config_replaces_a_key_as_a_whole_also_for_jobs_in_processes_of_their_own(workspace: Path) -> None:
    given = ["theory={minimise: {starts: 1}, uniform: {batch_sizes: [2, 4], embeddings: 256}}", "name=replaced"]
    arguments = ["results/replaced/theory.csv", "--cores", "1", "--configfile", str(TINY), "--config", *given]
    outcome = run("snakemake", *arguments, cwd=workspace)
    assert outcome.returncode == 0, outcome.stderr
    theory = load_config(workspace / "results" / "replaced" / "config.yaml").theory
    assert (theory.minimise.starts, theory.uniform.embeddings) == (1, 256)
    assert theory.mini_batches == type(theory)().mini_batches, "not the value of the file"


def test_a_failing_job_says_why_keeps_what_was_computed_and_can_be_mended(copy_of_finished: Path) -> None:
    run_id, other = "digits-dhel-temperature0.3-bs128-seed0", "digits-dhel-temperature0.3-bs256-seed0"
    keep_targets(copy_of_finished, targets := ("table_corruptions", "table_linear_accuracy"))
    shutil.copy(REPOSITORY / "paper_figures" / "table_corruptions.py", copy_of_finished / "paper_figures")
    encoder = copy_of_finished / LAYOUT.encoder(run_id)
    kept = encoder.read_bytes()
    encoder.write_bytes(kept[:1000])
    later = [LAYOUT.features(run_id), LAYOUT.evaluation(run_id), LAYOUT.representation(run_id)]
    later += [LAYOUT.evaluation(other)]
    later += [LAYOUT.run_manifest(*job) for job in (("evaluate", run_id), ("analyse", run_id), ("evaluate", other))]
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["evaluation"] |= {"augmented_images": False, "corruptions": False}
    config = copy_of_finished / "cached_features_only.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    later += [LAYOUT.results, LAYOUT.explorer, LAYOUT.report, LAYOUT.audit]
    later += [file for target in targets for file in LAYOUT.products(target)]
    for path in later:
        (copy_of_finished / path).unlink(missing_ok=True)
    failed = snakemake(cwd=copy_of_finished, config=config)
    assert failed.returncode != 0
    said = (copy_of_finished / LAYOUT.log("measure", run_id)).read_text(encoding="utf-8").splitlines()
    assert said[-1].startswith(f"error: {LAYOUT.encoder(run_id)}: damaged")
    assert said[-1] in failed.stdout + failed.stderr, "the reason is on the terminal too"
    assert (copy_of_finished / LAYOUT.evaluation(other)).exists(), "the other runs are finished all the same"
    encoder.unlink()
    mended = snakemake(cwd=copy_of_finished, config=config)
    assert mended.returncode == 0, mended.stdout[-2000:] + mended.stderr[-2000:]
    assert encoder.read_bytes() == kept, "pretraining again gives the same bytes"
    for product in (LAYOUT.report, LAYOUT.tables / "table_corruptions.md"):
        shown = (copy_of_finished / product).read_text(encoding="utf-8")
        assert "No run was evaluated on corrupted images" in shown, "where the optional stage was not asked for"


def test_a_run_that_diverges_is_a_result_and_the_others_are_finished(workspace: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["datasets"][0]["optimizer"]["learning_rate"] = {128: 0.1, 256: 1e9}
    values["losses"] = values["losses"][:1]
    keep_targets(workspace, ("table_robustness",))
    config = tmp_path / "diverging.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = snakemake(cwd=workspace, config=config)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    assert (workspace / LAYOUT.audit).exists()
    results = pd.read_parquet(workspace / LAYOUT.results)
    diverged, finished = ("digits-dhel-temperature0.3-bs256-seed0", "digits-dhel-temperature0.3-bs128-seed0")
    rows = results[results["metric"] == "diverged"].set_index("run")["value"]
    assert rows.to_dict() == {diverged: 1, finished: 0}
    for metric in ("linear_top1", "corrupted_top1"):
        assert metric not in set(results.loc[results["run"] == diverged, "metric"])
        assert metric in set(results.loc[results["run"] == finished, "metric"])
    table = pd.read_csv(workspace / LAYOUT.tables / "table_robustness.csv")
    assert (table["diverged"] == 1).all()
    shown = {row["run"]: row["state"] for row in read_rows(workspace / LAYOUT.explorer)}
    assert shown == {diverged: "diverged", finished: "finished"}


def test_the_workflow_passes_snakemakes_own_linter(workspace: Path) -> None:
    outcome = run("snakemake", "--lint", "--configfile", str(TINY), cwd=workspace)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_an_experiment_on_images_of_one_class_runs_to_its_end_and_says_what_it_could_not_measure(
    workspace: Path,
) -> None:
    images = load_digits().images[:120]
    for number, image in enumerate(images):
        folder = workspace / "images" / ("train" if number < 80 else "test") / "digit"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((15 * image).astype("uint8")).convert("RGB").save(folder / f"{number:03}.png")
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values |= {"name": "one_class", "batch_sizes": [40], "losses": values["losses"][:1]}
    values["datasets"][0] |= {"name": "one_class", "data": {"kind": "imagefolder", "root": "images"}, "epochs": 1}
    keep_targets(workspace, ("table_linear_accuracy", "fig_heatmap"))
    (workspace / "one_class.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    outcome = snakemake(cwd=workspace, config=workspace / "one_class.yaml")
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    layout = Layout(workspace / "results" / "one_class")
    results = pd.read_parquet(layout.results)
    reasons = results[results["metric"] == "not_measured"]
    stages = ("evaluation.json", "augmented_probe.json", "corruptions.json")
    assert {source.rpartition("/")[2] for source in reasons["source"]} == {*stages}
    assert {"effective_rank", "training_loss"} <= {*results["metric"]}
    assert not {"linear_top1", "knn_top1", "augmented_top1", "corrupted_top1"} & {*results["metric"]}
    table = (layout.tables / "table_linear_accuracy.md").read_text(encoding="utf-8")
    assert "No run has linear_top1" in table
    assert layout.audit.exists()
    assert [row["state"] for row in read_rows(layout.explorer)] == ["finished, not wholly measured"]
    shown = run("dhel-kcl", "show", str(layout.root), cwd=workspace)
    assert shown.returncode == 0, shown.stderr


def test_a_clone_in_a_folder_that_snakemake_would_take_for_a_pattern_is_one_line(tmp_path: Path) -> None:
    clone = tmp_path / "a{b}"
    clone.mkdir()
    outcome = snakemake("--dry-run", cwd=make_workspace(clone))
    assert outcome.returncode != 0
    said = f"{clone}: has {{ or }} in its path, which Snakemake takes for wildcards; move the clone to another folder"
    assert said in (outcome.stdout + outcome.stderr).splitlines()
