"""A digest changes with what may change a number and with nothing else: real edits of the real sources."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from workspace import REPOSITORY, TINY, run

from dhel_kcl.jobs import digests

PACKAGE = REPOSITORY / "src" / "dhel_kcl"
VIEWS = {"pretrain", "features", "augmented_probe", "corruptions"}

SAYING = {
    "docstring": ("metrics/wasserstein.py", "W1 distance between the law", "Wasserstein distance between the law"),
    "comment": ("metrics/wasserstein.py", "# the last bin holds similarities of exactly 1", "# one more for 1"),
    "format": ("metrics/wasserstein.py", "BINS = 2**17", "BINS = (\n    2**17\n)"),
    "error": ("metrics/similarity.py", "the ideal similarity law needs embedding", "choose another"),
    "error of a metric": ("metrics/knn.py", "train and test must share d, got", "d differs:"),
    "error of a stage": ("training/pretrain.py", "of {self.total_steps} as asked; ", "as asked; "),
    "constant's docstring": ("losses/streaming/tiles.py", "about the size of a core's cache", "as measured"),
    "epoch's line": ("training/progress.py", "k-NN accuracy {row", "kNN {row"),
    "step's line": ("training/progress.py", "step {step}/{self._total}: loss", "after step {step}, loss"),
    "TensorBoard's tag": ("training/progress.py", 'f"epoch/{name}"', 'f"epochs/{name}"'),
    "printed line": ("training/pretrain.py", "resuming after step", "going on after step"),
    "printed advice": ("training/pretrain.py", "Check the loss's hyperparameters", "Choose other hyperparameters"),
    "printed join": ("training/devices.py", "of the GPUs {', '.join(devices)}", "of {' '.join(devices)}"),
    "bar of a loop": ("evaluation/augmented_probe.py", '"linear probe on augmented images"', '"fitting"'),
    "bar of the theory": ("results/theory.py", 'description="theory"', 'description="theorems"'),
    "bar of a beton": ("data/progress.py", 'f"checking {name}"', 'f"reading {name}"'),
    "help": ("cli.py", "help=\"The experiment's folder,", 'help="The folder of the experiment,'),
    "public names": ("metrics/__init__.py", '    "rank",\n', ""),
}

COMPUTING = {
    "number": ("metrics/wasserstein.py", "BINS = 2**17", "BINS = 2**16", {"analyse", "theory"}),
    "operator": ("metrics/wasserstein.py", "(d - 1) / 2", "(d + 1) / 2", {"analyse", "theory"}),
    "default": ("metrics/alignment_uniformity.py", "t: float = 2)", "t: float = 3)", {"analyse", "theory"}),
    "spectrum": ("metrics/spectrum.py", "squares[0] > 1e-8", "squares[0] > 1e-9", {"analyse", "pretrain"}),
    "k-NN": ("metrics/knn.py", "TEMPERATURE = 0.07", "TEMPERATURE = 0.1", {"evaluate", "pretrain"}),
    "tiles": (
        "losses/streaming/tiles.py",
        "CPU_TILE_ROWS = 640",
        "CPU_TILE_ROWS = 320",
        {"pretrain", "analyse", "theory"},
    ),
    "loss of the run": (
        "losses/dhel.py",
        "energy + mean_logsumexp(v",
        "energy - mean_logsumexp(v",
        {"pretrain", "analyse", "theory"},
    ),
    "another loss": ("losses/dcl.py", "itself, positive = 0, len(u)", "itself, positive = 1, len(u)", {"theory"}),
    "kernel": ("losses/kernels.py", "weight: ClassVar[float] = 0.5", "weight: ClassVar[float] = 0.25", {"theory"}),
    "asymptote": ("theory/asymptotics.py", "12 / math.sqrt(d)", "9 / math.sqrt(d)", {"theory"}),
    "augmentation": ("data/augment.py", "WEIGHT_BITS = 32 - 8 - 2", "WEIGHT_BITS = 32 - 8 - 3", VIEWS),
    "decoded data": ("data/sources/digits.py", "(255 / 16)", "(255 / 17)", {"data"}),
    "optimiser": ("training/optimizer.py", "return 0.5 * (1", "return 0.4 * (1", {"pretrain"}),
    "recorded event": ("training/pretrain.py", '{"weights": math.nan}', '{"weight": math.nan}', {"pretrain"}),
    "neighbours": ("evaluation/evaluate.py", "{min(k, len(train))", "{max(k, len(train))", {"evaluate"}),
    "mini-batches": ("evaluation/mini_batch_losses.py", "FEWEST_BATCHES = 4", "FEWEST_BATCHES = 8", {"analyse"}),
    "log": ("training/log.py", "math.fsum(values) / len(values)", "max(values)", {"pretrain"}),
}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The stages whose digest each edit changes, in a copy of the package."""
    copy = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("src") / "dhel_kcl")
    edits = {name: edit[:3] for name, edit in (SAYING | COMPUTING).items()}
    program = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(copy.parent)!r})
from dhel_kcl import declarations
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs import digests, job
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.stages import STAGES
assert Path(digests.__file__).is_relative_to({str(copy)!r})
experiment = Experiment(load_config(Path({str(TINY)!r})), Layout(Path("results/tiny")))

def all_stages():
    for cached in [*vars(digests).values(), *vars(job).values(), *vars(declarations).values()]:
        getattr(cached, "cache_clear", lambda: None)()
    first = {{stage.name: job.Job(experiment, stage, stage.subjects(experiment)[0]) for stage in STAGES.values()}}
    plugins = {{name: each.stage.plugins(experiment, each.subject) for name, each in first.items()}}
    return {{name: job.code_digest(name, *named) for name, named in plugins.items()}}

before, changed = all_stages(), {{}}
for name, (file, old, new) in json.loads(sys.argv[1]).items():
    path = Path({str(copy)!r}, file)
    text = path.read_text(encoding="utf-8")
    assert old in text, (name, old)
    path.write_text(text.replace(old, new), encoding="utf-8")
    after = all_stages()
    changed[name] = [stage for stage in before if before[stage] != after[stage]]
    path.write_text(text, encoding="utf-8")
print(json.dumps(changed))
"""
    outcome = run("python", "-c", program, json.dumps(edits), cwd=REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    return dict(json.loads(outcome.stdout))


@pytest.mark.parametrize("edit", SAYING)
def test_what_is_said_is_in_no_digest(changed: dict[str, list[str]], edit: str) -> None:
    assert changed[edit] == []


@pytest.mark.parametrize("edit", COMPUTING)
def test_what_is_computed_is_in_the_digests_of_the_stages_that_compute_it(
    changed: dict[str, list[str]], edit: str
) -> None:
    assert set(changed[edit]) == COMPUTING[edit][3]


def digest(folder: Path, source: str) -> str | None:
    path = folder / f"{len(list(folder.iterdir()))}.py"
    path.write_text(source, encoding="utf-8")
    return digests._tree_digest(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f():\n    return 1", 'def f():\n    """Return 1."""\n    # one\n    return (1)'),
        ("if x:\n    y = 1", 'if x:\n    console.print(f"{x:g} of {n}")\n    y = 1'),
        ("def f(): ...", 'def f():\n    console.print("called", style="bold")'),
        ("raise ValueError", 'raise ValueError(f"not {x}")'),
        ('raise InputError("a") from error', 'raise InputError(f"b: {error}") from error'),
        ("for x in track(xs, 'a'): y += x", "for x in xs: y += x"),
    ],
)
def test_these_compute_the_same(tmp_path: Path, one: str, other: str) -> None:
    assert digest(tmp_path, one) == digest(tmp_path, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("x = 'None'", "x = None"),
        ("x = f(None)", "x = f()"),
        ("x = f(*a)", "x = f(**a)"),
        ("if a: x = 1", "if a: pass\nelse: x = 1"),
        ("x = a - b", "x = b - a"),
        ("x, y = z", "y, x = z"),
        ("async def f(): pass", "def f(): pass"),
        ("console.print(next(images))", ""),
        ("console.print(x := 3)", ""),
        ("x = console.print('a')", "x = console.print('b')"),
        ("images.print('a')", "images.print('b')"),
        ("raise Diverged(3)", "raise Diverged(4)"),
        ("raise OSError(28, 'a')", "raise OSError(5, 'a')"),
        ("raise ValueError('a')", "raise TypeError('a')"),
        ("return 'not measured: a'", "return 'not measured: b'"),
    ],
)
def test_these_do_not(tmp_path: Path, one: str, other: str) -> None:
    assert digest(tmp_path, one) != digest(tmp_path, other)


def test_every_module_that_is_left_out_exists() -> None:
    for module in digests.NOT_COMPUTING:
        assert digests._source(module).is_file(), module


def test_a_package_does_nothing_but_give_names_again_or_is_imported_by_its_own_name() -> None:
    packages = {path for path in PACKAGE.rglob("__init__.py") if digests._tree_digest(path) is not None}
    assert packages == {PACKAGE / "__init__.py", PACKAGE / "data" / "sources" / "__init__.py"}
    graph = digests._import_graph()
    inside = [module for module in graph.modules if module.startswith("dhel_kcl.data.sources.")]
    assert inside
    for module in inside:
        assert "dhel_kcl.data.sources" in graph.find_modules_directly_imported_by(module), module


def test_what_is_called_track_only_shows_progress() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_bytes())
        if any(isinstance(node, ast.Name) and node.id == "track" for node in ast.walk(tree)):
            assert "from rich.progress import track\n" in path.read_text(encoding="utf-8"), path
