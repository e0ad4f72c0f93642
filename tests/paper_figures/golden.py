"""A small results table and a small theory table, with the points that each figure and table must make of them.

They lie in the folder `golden`. After a change that is meant to change them, write them again and read the difference:
`python tests/paper_figures/golden.py`.
"""

from pathlib import Path

import pandas as pd

from dhel_kcl import declarations
from dhel_kcl.paper.render import load_target, write_points

SCRIPTS = Path(__file__).parents[2] / "paper_figures"
FOLDER = Path(__file__).parent / "golden"


def tables() -> dict[str, pd.DataFrame]:
    """Each tidy table by its name."""
    read = {name: pd.read_csv(FOLDER / f"{name}.csv") for name in declarations.TABLES}
    text = ["representation", "corruption"]
    read["results"][text] = read["results"][text].fillna("")
    return read


def points(name: str) -> pd.DataFrame:
    """What a script makes of the tables."""
    target = load_target(SCRIPTS / f"{name}.py")
    return target.points(*(tables()[table] for table in target.tables))


def write() -> None:
    """Write the tables and the points."""
    from conftest import whole_experiment, whole_theory

    FOLDER.mkdir(exist_ok=True)
    results = whole_experiment(
        ("cifar10",),
        ("ntxent", "dhel", "kcl_gaussian"),
        (32, 256),
        scales=(2.0,),
        epochs=2,
        dimensions=(4, 3),
        diverged=lambda **run: run["loss"] == "dhel" and run.get("temperature") == 0.1 and run["batch_size"] == 32,
    )
    curve = results["metric"] == "similarity_density"
    results = results[~curve | (results.groupby(["run", "metric", "representation"]).cumcount() % 8 == 0)]
    theory = whole_theory(2, 2, 4, (2, 16, 128))
    for name, table in {"results": results, "theory": theory}.items():
        table.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.6g")
    for name in declarations.scripts(SCRIPTS):
        write_points(points(name), FOLDER / f"{name}.csv")


if __name__ == "__main__":
    write()
