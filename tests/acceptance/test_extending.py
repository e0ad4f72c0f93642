"""A loss, a kernel, a data set and a figure are each one file and at most one entry of a configuration.

A stage is a file, a row of the table and a rule. All are those of `docs/extending.md`.
"""

import html
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from workspace import REPOSITORY, TINY, keep_targets, make_workspace, run, snakemake

from dhel_kcl import declarations
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import load_config, write_resolved_config
from dhel_kcl.files import sha256_json
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
from dhel_kcl.paper.render import RESULT_COLUMNS
from dhel_kcl.provenance.seal import read_seal

LAYOUT = Layout(Path("results/extended"))
RUNS = [
    "even_digits-align_uniform-t2-weight0.5-bs128-seed0",
    "even_digits-align_uniform-t2-weight1-bs128-seed0",
    "even_digits-dhel-temperature0.3-bs128-seed0",
    "even_digits-kcl_cauchy-t2-gamma16-bs128-seed0",
]


def files_of_the_page() -> dict[str, str]:
    """Every code block of the page by the file that its title names; blocks of one file are its parts."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    files: dict[str, str] = {}
    for name, content in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL):
        files[name] = files.get(name, "") + content
    return files


FILES = files_of_the_page()
CONFIG = "config/extended.yaml"
TARGETS = (
    *("fig_knn_linear", "fig_training", "fig_batch_size", "fig_temperature", "fig_alignment_uniformity"),
    "table_linear_accuracy",
)


def make_clone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a copy of the package, which the programs run in it import."""
    make_workspace(folder)
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    return folder


def extend(clone: Path) -> None:
    for name, content in FILES.items():
        assert not (clone / name).exists(), "an extension edits no file"
        (clone / name).write_text(content, encoding="utf-8")


def add_stage(clone: Path) -> None:
    """Add the page's row to the table and its rule to the workflow."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    row, rule = re.findall(r"^```python\n(.*?)^```$", page.partition("## A stage")[2], re.MULTILINE | re.DOTALL)
    table, rules = clone / "src" / "dhel_kcl" / "jobs" / "stages.py", clone / "workflow" / "rules" / "evaluation.smk"
    before, collect, after = table.read_text(encoding="utf-8").partition('    Stage(\n        name="collect"')
    table.write_text(f"{before}    {row.strip()},\n{collect}{after}", encoding="utf-8")
    rules.write_text(f"{rules.read_text(encoding='utf-8')}\n\n{rule}", encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_clone(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone with the files of the page, in which the whole workflow has run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        clone = make_clone(tmp_path_factory.mktemp("extended"), monkeypatch)
        extend(clone)
        add_stage(clone)
        keep_targets(clone, TARGETS)
        outcome = snakemake(cwd=clone, config=clone / CONFIG)
        assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    return clone


def test_the_page_adds_one_file_for_each() -> None:
    assert sorted(FILES) == [
        CONFIG,
        "paper_figures/fig_knn_linear.py",
        "src/dhel_kcl/data/sources/even_digits.py",
        "src/dhel_kcl/evaluation/encoder_size.py",
        "src/dhel_kcl/losses/align_uniform.py",
        "src/dhel_kcl/losses/cauchy.py",
    ]


def test_the_results_have_the_new_runs_and_a_column_for_the_new_hyperparameter(extended: Path) -> None:
    results = pd.read_parquet(extended / LAYOUT.results)
    assert sorted(results["run"].unique()) == RUNS
    weights = results.drop_duplicates("run").set_index("run")["weight"]
    assert weights[RUNS[:2]].tolist() == [0.5, 1.0]
    assert weights[RUNS[2:]].isna().all()
    assert {"linear_top1", "effective_rank", "training_loss"} <= set(results.loc[results["run"] == RUNS[0], "metric"])


def test_the_new_figure_and_the_old_ones_show_the_new_losses(extended: Path) -> None:
    assert all((extended / path).stat().st_size > 50 for path in LAYOUT.products("fig_knn_linear"))
    for name in ("fig_knn_linear", "fig_training", "fig_batch_size", "fig_alignment_uniformity"):
        points = pd.read_csv(extended / LAYOUT.figures / f"{name}.csv")
        assert set(points["loss"]) == {"align_uniform", "dhel", "kcl_cauchy"}, name
    varied = pd.read_csv(extended / LAYOUT.figures / "fig_temperature.csv")
    assert varied[["hyperparameter", "hyperparameter_value"]].to_numpy().tolist() == [["weight", 0.5], ["weight", 1.0]]


def test_the_report_and_the_tables_name_the_new_losses_data_set_and_figure(extended: Path) -> None:
    report = (extended / LAYOUT.report).read_text(encoding="utf-8")
    for shown in (
        "Align + uniform",
        "KCL (Cauchy)",
        "Even digits",
        "Linear accuracy against the accuracy of nearest neighbours",
    ):
        assert shown in report
    table = (extended / LAYOUT.tables / "table_linear_accuracy.md").read_text(encoding="utf-8")
    assert "| Even digits | linear top-1 | Align + uniform |" in re.sub(" +", " ", table)


def test_the_new_figure_passes_the_audit_and_leads_back_to_its_runs(extended: Path) -> None:
    assert (extended / LAYOUT.audit).exists()
    manifest = json.loads((extended / LAYOUT.manifest("render", "fig_knn_linear")).read_text(encoding="utf-8"))
    assert "results" in manifest["inputs"]
    points = pd.read_csv(extended / LAYOUT.figures / "fig_knn_linear.csv")
    assert sorted(points["runs"]) == RUNS


@pytest.fixture
def copy_of_extended(extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(extended, copy, symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(copy / "src"))
    return copy


def test_the_new_stage_is_known_to_all_that_look_at_stages(copy_of_extended: Path) -> None:
    folder, size = str(LAYOUT.root), copy_of_extended / LAYOUT.run(RUNS[0]) / "encoder_size.json"
    manifest = load_manifest(copy_of_extended / LAYOUT.run_manifest("encoder_size", RUNS[0]))
    assert (manifest.stage, manifest.subject, [*manifest.inputs]) == ("encoder_size", RUNS[0], ["encoder.safetensors"])
    sealed = read_seal(copy_of_extended / LAYOUT.audit).sha256
    assert str(size.relative_to(copy_of_extended / LAYOUT.root)) in sealed

    def told(*command: str) -> str:
        outcome = run("dhel-kcl", *command, cwd=copy_of_extended)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    assert "dhel-kcl encoder-size FOLDER RUN\n    Count the parameters" in told("stages")
    assert f"encoder_size of {RUNS[0]}" in told("trace", folder, str(size.relative_to(copy_of_extended)))
    assert "encoder_size" in (copy_of_extended / LAYOUT.report).read_text(encoding="utf-8")
    told("crate", folder)
    crate = json.loads((copy_of_extended / LAYOUT.crate).read_text(encoding="utf-8"))
    assert f"#encoder_size/{RUNS[0]}" in {entity["@id"] for entity in crate["@graph"]}
    number = json.loads(size.read_text(encoding="utf-8"))["parameters"]
    assert number > 1000
    size.write_bytes(bytes(size.stat().st_size))
    refused = run("dhel-kcl", "audit", folder, cwd=copy_of_extended)
    assert refused.returncode == 1
    assert "encoder_size.json" in refused.stderr
    assert "encoder_size.json: damaged" in run("dhel-kcl", "repair", folder, cwd=copy_of_extended).stderr
    planned = snakemake("--dry-run", cwd=copy_of_extended, config=copy_of_extended / CONFIG)
    assert re.search(r"^encoder_size +1$", planned.stdout, re.MULTILINE)
    told("encoder-size", folder, RUNS[0])
    assert json.loads(size.read_text(encoding="utf-8")) == {"parameters": number}


def test_snakemakes_own_report_has_every_caption(extended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(extended / "src"))
    outcome = snakemake("--report", "report.html", cwd=extended, config=extended / CONFIG)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    report = (extended / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'"(results/[^"]+)": \{"name": .*?"caption": ("(?:[^"\\]|\\.)*")', report)
    captions = {path: html.unescape(re.sub("<[^>]+>", "", json.loads(caption))).strip() for path, caption in found}
    for name, script in declarations.scripts(extended / "paper_figures").items():
        for product in LAYOUT.products(name):
            assert captions[str(product)] == script.caption


def digests(clone: Path, config: Path) -> dict[str, str]:
    """The digest of every job of the runs and betons, as a program that runs in the clone sees it."""
    program = f"""
import json
from pathlib import Path
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.job import jobs
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest
every = jobs(Experiment(load_config(Path({str(config)!r})), Layout(Path("results/x")))).values()
chosen = [job for job in every if job.stage.each == "run" or job.subject.endswith("/train")]
print(json.dumps({{f"{{job.stage.name}} {{job.subject}}": job.identity for job in chosen}}))
"""
    outcome = run("python", "-c", program, cwd=clone)
    assert outcome.returncode == 0, outcome.stderr
    return dict(json.loads(outcome.stdout))


def test_adding_and_editing_a_loss_or_a_kind_of_data_outdates_no_other_run(clone: Path) -> None:
    before = digests(clone, TINY)
    extend(clone)
    assert digests(clone, TINY) == before
    mine = digests(clone, clone / CONFIG)
    for name in ("losses/align_uniform.py", "losses/cauchy.py", "losses/dhel.py", "data/sources/even_digits.py"):
        path = clone / "src" / "dhel_kcl" / name
        path.write_text(path.read_text(encoding="utf-8") + "\nEDITED = True\n", encoding="utf-8")
        after = digests(clone, clone / CONFIG)
        changed = {job for job in mine if mine[job] != after[job]}
        loss = path.stem.replace("cauchy", "kcl_cauchy")
        own, stages = [run for run in RUNS if f"-{loss}-" in run], ("pretrain", "analyse")
        expected = {f"{stage} {run}" for stage in stages for run in own} or {"data even_digits/train"}
        assert changed == expected, name
        mine = after


def drawing_digests(clone: Path) -> dict[str, str]:
    """The digest of every figure and table and of the explorer, as a program that runs in the clone sees it."""
    program = """
import json
from dhel_kcl import declarations
from dhel_kcl.jobs.experiment import SCRIPTS
from dhel_kcl.jobs.job import code_digest, script_digest
found = {name: script_digest(script.path) for name, script in declarations.scripts(SCRIPTS).items()}
print(json.dumps(found | {"explorer": code_digest("explorer")}))
"""
    outcome = run("python", "-c", program, cwd=clone)
    assert outcome.returncode == 0, outcome.stderr
    return dict(json.loads(outcome.stdout))


def test_an_edit_outdates_the_figures_and_tables_that_import_it(clone: Path) -> None:
    before = drawing_digests(clone)
    figures = {name for name in before if name.startswith("fig_")}
    for name, expected in {
        "src/dhel_kcl/results/claims.py": {"fig_claims", "table_claims", "table_comparisons"},
        "src/dhel_kcl/results/theorems.py": {"fig_population_minimisers", "table_theory"},
        "src/dhel_kcl/results/published.py": {"table_published"},
        "src/dhel_kcl/paper/looks.py": {*figures, "explorer"},
        "src/dhel_kcl/training/pretrain.py": set(),
        "paper_figures/fig_batch_size.py": {"fig_batch_size"},
    }.items():
        path = clone / name
        path.write_text(path.read_text(encoding="utf-8") + "\nEDITED = True\n", encoding="utf-8")
        after = drawing_digests(clone)
        assert {target for target in before if before[target] != after[target]} == expected, name
        before = after


LOSS = FILES["src/dhel_kcl/losses/align_uniform.py"]
KIND = FILES["src/dhel_kcl/data/sources/even_digits.py"]
FIGURE = FILES["paper_figures/fig_knn_linear.py"]
OPEN = KIND[KIND.index("    def open") :]


@pytest.mark.parametrize(
    ("find", "text", "old", "new", "said"),
    [
        (declarations.losses, LOSS, "name: ", "label: ", 'AlignUniform needs name = "..."'),
        (declarations.losses, LOSS, '"align_uniform"', '"Align-Uniform"', 'AlignUniform needs name = "..."'),
        (declarations.losses, LOSS, '"align_uniform"', '"dhel"', "name 'dhel' is also in"),
        (declarations.losses, LOSS, "AlignUniform", "DHEL", "class DHEL is also in"),
        (declarations.losses, LOSS, LOSS[LOSS.index('    """The') : LOSS.index("    name")], "", "has no docstring"),
        (declarations.losses, LOSS, "def unit_terms", "def terms_", "AlignUniform does not define unit_terms"),
        (declarations.losses, LOSS, "t: float,", "t,", "parameter t of AlignUniform must be annotated float"),
        (declarations.losses, LOSS, "weight: float", "epochs: float", "parameter epochs of AlignUniform has a name"),
        (
            declarations.losses,
            LOSS,
            "float = 1.0",
            "float = T",
            "weight of AlignUniform has a default that is not a plain number",
        ),
        (declarations.losses, LOSS, "class AlignUniform(", "class AlignUniform(((", "not Python, line"),
        (declarations.kernels, FILES["src/dhel_kcl/losses/cauchy.py"], '"cauchy"', '"imq"', "name 'imq' is also in"),
        (declarations.kinds, KIND, "    kind:", "    name:", 'EvenDigits needs kind = "..."'),
        (declarations.kinds, KIND, '"even_digits"', '"digits"', "kind 'digits' is also in"),
        (declarations.kinds, KIND, "    title:", '    splits = ("test",)\n    title:', "splits of EvenDigits must be"),
        (declarations.kinds, KIND, "    title:", '    needs = ("url",)\n    title:', "needs of EvenDigits must be"),
        (declarations.kinds, KIND, OPEN, "", "EvenDigits does not define open"),
        (
            declarations.scripts,
            FIGURE,
            FIGURE[: FIGURE.index("import")],
            "",
            "no docstring; its first line is the title",
        ),
        (declarations.scripts, FIGURE, "METRICS = (", "METRICS = ((", "not Python, line"),
        (declarations.scripts, FIGURE, "METRICS =", 'DATA = "a.csv"\nMETRICS =', "DATA must be a tuple of paths"),
        (
            declarations.scripts,
            FIGURE,
            "METRICS =",
            'TABLES = ("runs",)\nMETRICS =',
            "TABLES must be a tuple of results, theory, verdicts",
        ),
    ],
)
def test_a_faulty_file_is_named_in_one_line(tmp_path: Path, find, text: str, old: str, new: str, said: str) -> None:
    there = {declarations.losses: declarations.LOSSES, declarations.kernels: declarations.LOSSES}
    folder = there.get(find, declarations.KINDS if find is declarations.kinds else REPOSITORY / "paper_figures")
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    added = copy / "fig_zz_mine.py" if find is declarations.scripts else copy / "zz_mine.py"
    assert old in text
    added.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        find(copy)
    assert str(refused.value).startswith(f"{added}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_faulty_file_stops_the_programs_with_that_line(clone: Path) -> None:
    faulty = clone / "src" / "dhel_kcl" / "losses" / "mine.py"
    faulty.write_text("class Mine(PairLoss:\n", encoding="utf-8")
    for outcome in (run("dhel-kcl", "configure", str(TINY), cwd=clone), snakemake("--dry-run", cwd=clone)):
        assert outcome.returncode == 1
        said = outcome.stdout + outcome.stderr
        assert f"{faulty}: not Python, line 1: " in said
        assert "Traceback" not in said
    assert run("dhel-kcl", "--help", cwd=clone).returncode == 0


def test_a_configuration_is_held_to_what_the_new_classes_declare(clone: Path) -> None:
    extend(clone)
    values = yaml.safe_load(FILES[CONFIG])
    values["losses"] = [{"name": "align_uniform", "t": [2.0]}]
    (clone / "default.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert run("dhel-kcl", "configure", "default.yaml", cwd=clone).returncode == 0
    resolved = yaml.safe_load((clone / LAYOUT.config).read_text(encoding="utf-8"))
    assert resolved["losses"] == [{"name": "align_uniform", "t": [2.0], "weight": [1.0]}]
    values["losses"] = [{"name": "align_uniform", "t": [-1.0], "wieght": [1.0]}]
    values["datasets"][0]["data"]["kind"] = "odd_digits"
    (clone / "bad.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    refused = run("dhel-kcl", "configure", "bad.yaml", cwd=clone).stderr.splitlines()
    assert len(refused) == 3
    assert "datasets.0.data.kind: unknown kind; there are cifar10, cifar100, digits, even_digits," in refused[0]
    assert "losses.0.align_uniform.t.0: Input should be greater than 0 (given: -1.0)" in refused[1]
    assert "losses.0.align_uniform.wieght: unknown key" in refused[2]


@pytest.mark.parametrize("name", ["align_uniform", "cauchy"])
def test_the_new_losses_equal_their_definitions(clone: Path, name: str) -> None:
    extend(clone)
    setting = {
        "align_uniform": {"name": "align_uniform", "t": 2.0, "weight": 0.5},
        "cauchy": {"name": "kcl", "kernel": "cauchy", "t": 2.0, "gamma": 3.0},
    }[name]
    program = f"""
import torch
from dhel_kcl.losses import build_loss
z = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
assert torch.autograd.gradcheck(build_loss({setting}), tuple(z.requires_grad_().unbind()))
print(build_loss({setting})(*z).item())
"""
    outcome = run("python", "-c", program, cwd=clone)
    assert outcome.returncode == 0, outcome.stderr
    z = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, v = torch.nn.functional.normalize(z, dim=2)

    def mean(kernel, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.combinations(torch.arange(len(x)))
        return kernel((x[pairs[:, 0]] - x[pairs[:, 1]]).square().sum(1)).mean()

    positives = (u - v).square().sum(1)
    if name == "align_uniform":
        uniformity = [mean(lambda r2: (-2 * r2).exp(), x).log() for x in (u, v)]
        expected = positives.mean() + 0.5 * sum(uniformity) / 2
    else:
        energy = sum(mean(lambda r2: 1 / (1 + 2 * r2), x) for x in (u, v))
        expected = -2 * (1 / (1 + 2 * positives)).mean() + 3 * energy
    assert float(outcome.stdout) == pytest.approx(expected.item(), rel=1e-12)


def test_a_hyperparameter_cannot_hide_another_column_of_the_results() -> None:
    assert {"name", "kernel", "batch_sizes", *RESULT_COLUMNS} - set(
        declarations.hyperparameters()
    ) == declarations.TAKEN


@pytest.mark.parametrize(("config", "runs"), [("quickstart", "1902e4a3cad0"), ("config", "2b54af45ddff")])
def test_the_papers_losses_and_data_sets_are_resolved_and_named_as_when_the_code_spelled_them_out(
    tmp_path: Path, config: str, runs: str
) -> None:
    path = REPOSITORY / "config" / f"{config}.yaml"
    experiment = load_config(path)
    write_resolved_config(experiment, tmp_path / "config.yaml")
    written, resolved = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (path, tmp_path / "config.yaml"))
    assert resolved["losses"] == written["losses"]
    assert [list(loss) for loss in resolved["losses"]] == [list(loss) for loss in written["losses"]]
    assert sha256_json(list(experiment.runs)).startswith(runs)
    assert declarations.hyperparameters() == ["temperature", "t", "c", "gamma"]
