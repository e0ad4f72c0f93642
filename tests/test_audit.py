"""The audit passes on what the workflow made and fails, saying where, on anything else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from workspace import REPOSITORY, snakemake
from workspace import run as run_program

from dhel_kcl import declarations
from dhel_kcl.artifacts import read_json, sha256_file, write_json
from dhel_kcl.explorer import read_rows
from dhel_kcl.layout import Layout
from dhel_kcl.provenance import load_manifest, locate

LAYOUT = Layout(Path("results/tiny"))
RUN = "digits-dhel-temperature0.3-bs128-seed0"


def audit(folder: Path) -> tuple[int, str]:
    outcome = run_program("dhel-kcl", "audit", "results/tiny", cwd=folder)
    return outcome.returncode, outcome.stdout + outcome.stderr


def test_an_untouched_experiment_passes_and_the_counts_are_kept(copy_of_finished: Path) -> None:
    status, said = audit(copy_of_finished)
    assert status == 0, said
    assert "audit passed" in said
    counts = read_json(copy_of_finished / LAYOUT.audit)
    assert counts["measurements"] == len(pd.read_parquet(copy_of_finished / LAYOUT.results))
    assert counts["manifests"] == 3 + 4 * 6 + 2 + len(declarations.scripts(REPOSITORY / "paper_figures")) + 2


def _append_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _replace_text(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (LAYOUT.encoder(RUN), Path.unlink, "encoder.safetensors: missing, but recorded in"),
        (LAYOUT.encoder(RUN), _append_byte, "encoder.safetensors: changed since"),
        (LAYOUT.features(RUN), _append_byte, "features.safetensors: changed since"),
        (LAYOUT.evaluation(RUN), _append_byte, "evaluation.json: changed since"),
        (LAYOUT.classifier(RUN), _append_byte, "classifier.safetensors: changed since"),
        (LAYOUT.corruptions(RUN), _append_byte, "corruptions.json: changed since"),
        (LAYOUT.beton("digits", "train"), _append_byte, "train.beton: changed since"),
        (LAYOUT.results, _append_byte, "results.parquet: changed since"),
        (LAYOUT.theory, _append_byte, "theory.parquet: changed since"),
        (LAYOUT.manifest("theory"), Path.unlink, "manifests/theory.json: missing"),
        (LAYOUT.figures / "fig_spectrum.png", _append_byte, "fig_spectrum.png: changed since"),
        (LAYOUT.tables / "table_robustness.csv", _append_byte, "table_robustness.csv: changed since"),
        (LAYOUT.explorer, _append_byte, "explorer.html: changed since"),
        (LAYOUT.report, Path.unlink, "report.html: missing"),
        (LAYOUT.run_manifest("pretrain", RUN), Path.unlink, "pretrain.manifest.json: missing"),
        (LAYOUT.config, _replace_text("epochs: 2", "epochs: 3"), "made under other settings"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else getattr(value, "__name__", None),
)
def test_anything_changed_or_missing_is_listed(
    copy_of_finished: Path, file: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(copy_of_finished / file)
    status, output = audit(copy_of_finished)
    assert status == 1
    assert any(line.startswith("error: ") and said in line for line in output.splitlines()), output


def test_a_stale_input_is_found_even_when_every_file_matches_its_own_manifest(copy_of_finished: Path) -> None:
    other = "digits-dhel-temperature0.3-bs256-seed0"
    for path in (LAYOUT.encoder, LAYOUT.training_log, LAYOUT.throughput):
        shutil.copy(copy_of_finished / path(other), copy_of_finished / path(RUN))
    manifest = copy_of_finished / LAYOUT.run_manifest("pretrain", RUN)
    recorded = load_manifest(manifest)
    recorded.outputs = load_manifest(copy_of_finished / LAYOUT.run_manifest("pretrain", other)).outputs
    write_json(manifest, recorded.model_dump())
    status, output = audit(copy_of_finished)
    assert status == 1
    assert f"features of {RUN} used another version" in output


def test_a_figure_drawn_again_leaves_the_report_behind_until_the_workflow_runs_again(copy_of_finished: Path) -> None:
    (copy_of_finished / LAYOUT.figures / "fig_training.png").unlink()
    assert snakemake("fig_training", cwd=copy_of_finished).returncode == 0
    status, output = audit(copy_of_finished)
    assert status == 1
    assert "render-fig_training.json: changed since results/tiny/manifests/report.json recorded it" in output
    assert "if that job was done again, run the workflow again" in output
    assert snakemake(cwd=copy_of_finished).returncode == 0
    assert audit(copy_of_finished)[0] == 0


def _forge_hashes(folder: Path) -> None:
    """Replace every hash in the manifests of the whole experiment, those of the manifests themselves last."""
    for _ in range(2):
        for path in (folder / LAYOUT.root / "manifests").glob("*.json"):
            manifest = load_manifest(path)
            for artifact in [*manifest.inputs.values(), *manifest.outputs.values()]:
                artifact.sha256 = sha256_file(locate(path, artifact))
            write_json(path, manifest.model_dump())


def _forge(folder: Path, file: Path, table: pd.DataFrame) -> None:
    table.to_parquet(folder / file, index=False)
    _forge_hashes(folder)


def test_a_forged_value_is_found_even_when_every_hash_was_forged_with_it(copy_of_finished: Path) -> None:
    table = pd.read_parquet(copy_of_finished / LAYOUT.results)
    table.loc[(table["run"] == RUN) & (table["metric"] == "linear_top1"), "value"] = 0.999
    _forge(copy_of_finished, LAYOUT.results, table)
    status, output = audit(copy_of_finished)
    assert status == 1
    assert f"linear_top1 of {RUN} is not what runs/{RUN}/evaluation.json says" in output
    assert "table_linear_accuracy.csv: results.parquet gives other values" in output


def test_a_forged_point_of_the_explorer_is_found_even_when_every_hash_was_forged_with_it(
    copy_of_finished: Path,
) -> None:
    page = copy_of_finished / LAYOUT.explorer
    value = next(row["linear_top1"] for row in read_rows(page) if row["run"] == RUN)
    _replace_text(f'"linear_top1":{value}', '"linear_top1":0.999')(page)
    _forge_hashes(copy_of_finished)
    status, output = audit(copy_of_finished)
    assert status == 1
    assert "explorer.html: results.parquet gives other values; make explorer again" in output


def test_a_theorem_that_a_forged_table_contradicts_is_found(copy_of_finished: Path) -> None:
    table = pd.read_parquet(copy_of_finished / LAYOUT.theory)
    table.loc[(table["loss"] == "dhel") & (table["metric"] == "minimum"), "value"] -= 0.5
    _forge(copy_of_finished, LAYOUT.theory, table)
    status, output = audit(copy_of_finished)
    assert status == 1
    assert "minimum of the loss (simplex) (dhel" in output
    assert "fig_minimisers.csv: theory.parquet gives other values" in output


def test_a_chain_with_a_missing_link_is_found(copy_of_finished: Path) -> None:
    manifest = copy_of_finished / LAYOUT.run_manifest("features", RUN)
    recorded = load_manifest(manifest)
    recorded.inputs = {}
    write_json(manifest, recorded.model_dump())
    status, output = audit(copy_of_finished)
    assert status == 1
    assert f"{RUN}/evaluation.json: its manifests do not lead back to" in output
    assert not (copy_of_finished / LAYOUT.audit).exists(), "an old pass must not outlive a failure"


def test_a_figure_can_be_traced_to_its_checkpoint_beton_and_configuration(finished: Path) -> None:
    outcome = run_program("dhel-kcl", "trace", "results/tiny", "results/tiny/figures/fig_batch_size.png", cwd=finished)
    assert outcome.returncode == 0, outcome.stderr
    for part in (
        "fig_batch_size.png",
        "results.parquet",
        "evaluation.json",
        "features",
        "encoder",
        "train.beton",
        "config.yaml",
    ):
        assert part in outcome.stdout
    assert run_program("dhel-kcl", "trace", "results/tiny", "README.md", cwd=finished).returncode == 1


def test_a_theorem_can_be_traced_to_its_seed_and_configuration(finished: Path) -> None:
    outcome = run_program("dhel-kcl", "trace", "results/tiny", "results/tiny/tables/table_theory.md", cwd=finished)
    assert outcome.returncode == 0, outcome.stderr
    for part in ("table_theory.md", "theory.parquet", "(theory of tiny, run seed 0)", "config.yaml"):
        assert part in outcome.stdout
    assert "encoder" not in outcome.stdout


def test_a_manifest_says_what_a_reader_needs_to_repeat_the_job(finished: Path) -> None:
    manifest = load_manifest(finished / LAYOUT.run_manifest("pretrain", RUN))
    assert manifest.command[0] == "dhel-kcl"
    assert manifest.command[-3:] == ["pretrain", "results/tiny", RUN]
    assert manifest.settings["loss"] == {"name": "dhel", "temperature": 0.3}
    assert manifest.settings["batch_size"] == 128
    assert set(manifest.seeds) == {"run", "initialisation", "order", "augmentation"}
    assert {"python", "torch", "ffcv", "numpy", "snakemake"} <= set(manifest.packages)
    assert {"cpu", "cores", "memory_gib", "system"} <= set(manifest.hardware)
    assert manifest.seconds > 0
