"""Write claims.md from the claims tables in results/: `python docs/write_claims.py`.

A test fails while the page is stale.
"""

from pathlib import Path

import pandas as pd

from dhel_kcl.experiment.grid import load_config
from dhel_kcl.paper.render import read_points
from dhel_kcl.results.claims import ALL, NOT_TESTABLE, THEORY, in_unit
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print

DOCS = Path(__file__).parent
EXPERIMENTS = sorted(table.parents[1].name for table in DOCS.glob("results/*/tables/table_claims.csv"))
THEORY_COMMAND = (
    "snakemake --cores 1 table_theory fig_minimisers fig_population_minimisers fig_minibatch_asymptotic "
    "fig_uniformity_measures"
)
INTRODUCTION = f"""# Claims and verdicts

This page lists every measurable claim of the paper's abstract, and its theorems, with what was measured here.
`docs/write_claims.py` writes it from the claims tables of the shipped results. Each experiment makes its own table,
`table_claims`, which is also the first section of its report.

A verdict applies only to the stated scale. The paper's scale (200 epochs, full width, four data sets) has not been
run: nothing below confirms or refutes the published numbers.

- The **margin** is positive where the claim holds. The claim is *supported* if the margin is above the tolerance, *not
  supported* if it is below minus the tolerance, and otherwise *{NOT_TESTABLE}*: these runs cannot decide it. Margins of
  accuracies and of their ranges are differences; margins of effective ranks are relative.
- The **baseline** is the best of InfoNCE, NT-Xent and DCL. Hyperparameters, and the baseline of an accuracy, are chosen
  on the validation split of the training set, never on the test set.
- With one seed, the **tolerance** of accuracies and ranges covers only the finite test set, not the effect of another
  training seed.
"""
PUBLISHED = """
## Published numbers

`table_published` puts our number beside each published number with the same protocol. No run here has such a protocol
yet, and each row says what differs.
"""


def page() -> str:
    """Return the text of claims.md."""
    tables = {name: read_points(DOCS / "results" / name / "tables" / "table_claims.csv") for name in EXPERIMENTS}
    parts = [INTRODUCTION, "## Verdicts\n", _markdown(_overview(tables)), *_theorems(tables[EXPERIMENTS[0]])]
    for name, table in tables.items():
        own = table[~table["dataset"].isin([THEORY, ALL])]
        for dataset, rows in own.groupby("dataset"):
            parts += [
                f"\n## {name} on {DATASET_NAMES[str(dataset)]}\n",
                f"{rows['scale'].iloc[0]}. [Results](results/{name}/README.md), "
                f"[table](results/{name}/tables/table_claims.md).\n",
                f"```bash\nsnakemake --cores all table_claims {_resources(name)}--configfile config/{name}.yaml\n```\n",
                _markdown(_details(rows)),
            ]
    return "\n".join([*parts, PUBLISHED])


def _resources(name: str) -> str:
    sharing = load_config(DOCS.parent / "config" / f"{name}.yaml").compute.runs_per_gpu
    return f"--resources gpu={sharing} " if sharing > 1 else ""


def _overview(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    keys = ["dataset", "claim", "loss"]
    columns = {}
    for name, table in tables.items():
        rows = table[table["dataset"] != THEORY]
        verdicts = rows["verdict"].where(rows["verdict"] != NOT_TESTABLE, "not testable")
        columns[f"[{name}](results/{name}/README.md)"] = pd.Series(
            verdicts.to_numpy(), pd.MultiIndex.from_frame(rows[keys])
        )
    order = {claim: claim for table in tables.values() for claim in table["claim"]}
    names = {"dataset": {**DATASET_NAMES, ALL: ALL}, "claim": order, "loss": LOSS_NAMES}
    overview = for_print(pd.DataFrame(columns).reset_index(), names).fillna("not run")
    return overview.rename(columns={"dataset": "Data set", "claim": "Claim", "loss": "Loss"})


def _theorems(table: pd.DataFrame) -> list[str]:
    rows = table[table["dataset"] == THEORY]
    limits = [f"{value:.0e}, {how}" for value, how in zip(rows["tolerance"], rows["tolerance_is"], strict=True)]
    shown = {
        "Theorem": rows["claim"],
        "Losses": rows["loss"].map(lambda cell: ", ".join(LOSS_NAMES[loss] for loss in cell.split(";"))),
        "Measured": rows["measured"],
        "Error nearest to the tolerance": [f"{value:.0e}" for value in rows["margin"]],
        "Tolerance": limits,
        "Where": rows["scale"],
        "Verdict": rows["verdict"],
    }
    return [
        "\n## Theorems\n",
        "[Results, and the local minima that the theorems do not cover](results/theory/README.md).\n",
        f"```bash\n{THEORY_COMMAND}\n```\n",
        _markdown(pd.DataFrame(shown)),
    ]


def _details(rows: pd.DataFrame) -> pd.DataFrame:
    reasons = [f": {reason}" if isinstance(reason, str) else "" for reason in rows["reason"]]
    return pd.DataFrame(
        {
            "Claim": rows["claim"],
            "Loss": rows["loss"].map(LOSS_NAMES),
            "Measured": rows["measured"].fillna(""),
            "Margin": [in_unit(value, unit, "+") for value, unit in zip(rows["margin"], rows["unit"], strict=True)],
            "Tolerance": list(map(in_unit, rows["tolerance"], rows["unit"])),
            "Verdict": [verdict + reason for verdict, reason in zip(rows["verdict"], reasons, strict=True)],
            "Shown in": ["`" + targets.replace(" ", "`, `") + "`" for targets in rows["evidence"]],
        }
    )


def _markdown(table: pd.DataFrame) -> str:
    return str(table.to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    (DOCS / "claims.md").write_text(page(), encoding="utf-8")
