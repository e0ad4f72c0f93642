"""How long each command imports before it works, as a multiple of PyTorch's own import, measured in turns.

Writes docs/benchmarks/imports.csv and docs/benchmarks_imports.md. With `--against`, the same stages of another checkout
are measured in the same turns.
"""

import itertools
import os
import subprocess  # nosec B404 # for new interpreters
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from dhel_kcl.files import atomic_path
from dhel_kcl.jobs.stages import STAGES

HERE = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "sklearn", "numba", "cv2", "ffcv", "pandas", "matplotlib", "altair")
OTHERS = {"--help": "dhel_kcl.cli", "show": "dhel_kcl.provenance.show", "audit": "dhel_kcl.provenance.audit"}
REFERENCE = "import torch"

PROGRAM = """
import sys, time
begun = time.perf_counter()
for module in sys.argv[1].split(","):
    try:
        __import__(module)
    except ModuleNotFoundError:
        sys.exit(print("nan"))
print(time.perf_counter() - begun, *[name for name in {heavy!r} if name in sys.modules])
"""

PAGE = """# Import times

Seconds that a new process spends on imports before a command starts to work, as a multiple of `import torch`:
the median of {repetitions} turns on {cores} cores. `python benchmarks/imports.py` measures this again, with
`--against CHECKOUT` for another column.

{table}

`measure` does features, evaluate and analyse (and, if asked for, corruptions and augmented_probe) in one process, so a
run pays for one set of imports instead of up to five. Nothing imports torchvision, scikit-learn, numba, OpenCV or FFCV
unless it needs them; torchvision, which builds the encoder, imports torch's compiler, most of what it costs.
"""


def commands() -> dict[str, str]:
    """Each command with the modules that it imports, separated by commas."""
    stages = {name: f"dhel_kcl.cli,{stage.module}" for name, stage in STAGES.items() if name != "configure"}
    measured = (stage.module for stage in STAGES.values() if stage.rule == "measure")
    together = ",".join(["dhel_kcl.cli", *measured])
    others = {name: f"dhel_kcl.cli,{module}" for name, module in OTHERS.items()}
    return {**others, **stages, "measure": together}


def once(modules: str, source: Path) -> tuple[float, str]:
    """Import modules in a new process; return the seconds (NaN without them), and which heavy packages are loaded."""
    program = PROGRAM.format(heavy=HEAVY)
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    outcome = subprocess.run(  # nosec B603 # this interpreter, on modules of ours
        [sys.executable, "-c", program, modules],
        env=environment,
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, *loaded = outcome.stdout.split()
    return float(seconds), " ".join(loaded)


def commit(checkout: Path) -> str:
    """Return the short name of a checkout's commit."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    outcome = subprocess.run(asked, capture_output=True, text=True, check=True)  # nosec B603 # git, which only reads
    return outcome.stdout.strip()


def measure(checkouts: dict[str, Path], repetitions: int) -> pd.DataFrame:
    """Import each command's modules `repetitions` times from each checkout, in turns; a row for each."""
    rows = []
    for turn, (checkout, source) in itertools.product(range(repetitions), checkouts.items()):
        for command, modules in {REFERENCE: "torch", **commands()}.items():
            seconds, loaded = once(modules, source)
            rows.append({"checkout": checkout, "command": command, "turn": turn, "seconds": seconds, "loaded": loaded})
    return pd.DataFrame(rows)


def page(measured: pd.DataFrame) -> str:
    """Render the measurements as Markdown."""
    medians = measured.groupby(["checkout", "command"])["seconds"].median()
    checkouts = list(measured["checkout"].unique())
    lines = [f"| command | {' | '.join(checkouts)} | imports |", f"|---|{'---|' * len(checkouts)}---|"]
    for command, rows in measured[measured["command"] != REFERENCE].groupby("command", sort=False):
        ratios = [f"{medians[name, command] / medians[name, REFERENCE]:.2f}".replace("nan", "") for name in checkouts]
        loaded = rows.loc[rows["checkout"] == checkouts[0], "loaded"].iloc[0]
        lines.append(f"| `{command}` | {' | '.join(ratios)} | {loaded or 'none of the heavy packages'} |")
    return PAGE.format(table="\n".join(lines), repetitions=measured["turn"].nunique(), cores=os.cpu_count())


def main(
    against: Annotated[
        Path | None, typer.Option(help="Another checkout of this repository; what it lacks is left empty.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path, typer.Option(help="The table; the page goes next to its folder.")] = HERE
    / "docs/benchmarks/imports.csv",
) -> None:
    """Measure the import time of each command."""
    checkouts = {"now": HERE} | ({f"commit {commit(against)}": against} if against else {})
    measured = measure(checkouts, repetitions)
    with atomic_path(output) as temporary:
        measured.to_csv(temporary, index=False, float_format="%.4g")
    with atomic_path(output.parent.parent / f"benchmarks_{output.stem}.md") as temporary:
        temporary.write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
