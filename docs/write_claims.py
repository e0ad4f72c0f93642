"""Write claims.md from the results in results/: `python docs/write_claims.py`.

A test fails while the page is stale.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from dhel_kcl.experiment.config import StudyConfig
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.paper.cells import p_value
from dhel_kcl.paper.render import load_results
from dhel_kcl.results.claims import ALL, CLAIMS, ONE_SEED, summarise
from dhel_kcl.results.decision import CONTRADICTED, SUPPORTED
from dhel_kcl.results.judge import read_and_judge
from dhel_kcl.results.names import DATASET_NAMES, LOSS_NAMES, for_print
from dhel_kcl.results.power import Design, power_of_no_effect, smallest_effect
from dhel_kcl.results.theorems import theorems

DOCS = Path(__file__).parent
EXPERIMENTS = sorted(table.parent.name for table in DOCS.glob("results/*/results.parquet"))
THEORY_COMMAND = (
    "snakemake --cores 1 table_theory fig_minimisers fig_population_minimisers fig_minibatch_asymptotic "
    "fig_uniformity_measures"
)
INTRODUCTION = """# Claims and verdicts

This page lists every measurable claim of the paper's abstract, and its theorems, with what was measured here.
`docs/write_claims.py` judges the shipped results by [one rule](adr/0011-verdicts-from-intervals.md). Each experiment
makes its own table, `table_claims`, which is also the first section of its report.

A verdict applies only to the stated scale. The paper's scale (200 epochs, full width, four data sets) has not been
run: nothing below confirms or refutes the published numbers. The rule was written after these results had been seen, so
its verdicts on them are not those of a study that was planned beforehand.

- **Measured** is positive (a ratio: above 1) where the claim holds, against each baseline that was run: a difference of
  accuracies in points, or a ratio of effective ranks, with its interval.
- **supported**: every interval is above no effect; **contradicted**: at least one is below; **equivalent**: all lie
  within the smallest effect of interest on both sides; **inconclusive**: none of these; **not run**: nothing compared.
- With one seed nothing about trained networks is judged; the values are shown.
- Confirmatory claims of an experiment are one family, corrected by Holm's method. Exploratory ones were decided on
  after such data had been seen; they are not corrected.
- An interval of accuracies allows for other seeds and for other test images. These results were measured before hits
  were stored, so the second part is a bound that takes the losses to fail on images independently, which is cautious.
"""
PUBLISHED = """
## Published numbers

`table_published` puts our number beside each published number with the same protocol. No run here has such a protocol
yet, and each row says what differs.
"""
POWER = """
## What a study can find

The smallest effect that is found with a probability of 80 % against one baseline, in points of accuracy: the spread
over seeds is 0.5 / 0.8 points, pooled over 35 cells (five losses; three strengths at the smallest and the largest
batch size, and the middle one at a third), before the uncertainty of the test images. It depends on how many
hypotheses are left for Holm's method to reject: one, or all of a family of 20. The last row is the power to support
that accuracy does not depend on the batch size, with a smallest effect of one point, if it does not.
`results/power.py` has the formula, and a simulation tests it.
"""
WEIGHTS = {
    "accuracy": 2 / 3,
    "batch_size": 4 / 3,
    "small_batches": 2.0,
    "hyperparameters": 2 * (1 / 2 + 1 / 4),
    "both": 2 * (1 + 1 / 6),
}
"""Sum of the squared weights of the cells in each contrast, on the grid that `POWER` describes."""


def page() -> str:
    """Return the text of claims.md."""
    studies = {name: load_config(DOCS / "results" / name / "config.yaml").study for name in EXPERIMENTS}
    tables = {name: _verdicts(name, study) for name, study in studies.items()}
    parts = [INTRODUCTION, "## Verdicts\n", _markdown(_overview(tables)), *_theorems()]
    for name, table in tables.items():
        for dataset, rows in table[table["dataset"] != ALL].groupby("dataset"):
            parts += [
                f"\n## {name} on {DATASET_NAMES[str(dataset)]}\n",
                f"{rows['scale'].iloc[0]}. [Results](results/{name}/README.md).\n",
                f"```bash\nsnakemake --cores all table_claims {_resources(name)}--configfile config/{name}.yaml\n```\n",
                _markdown(_details(rows)),
            ]
    return "\n".join([*parts, POWER, _markdown(_power()), PUBLISHED])


def _verdicts(name: str, study: StudyConfig) -> pd.DataFrame:
    return pd.DataFrame(summarise(read_and_judge(Layout(DOCS / "results" / name).results, study)))


def _resources(name: str) -> str:
    sharing = load_config(DOCS.parent / "config" / f"{name}.yaml").compute.runs_per_gpu
    return f"--resources gpu={sharing} " if sharing > 1 else ""


def _said(table: pd.DataFrame) -> list[str]:
    """Return each state, with what has to be known of it."""
    exploratory = table["role"].map({"exploratory": "exploratory"}).fillna("")
    notes = [", ".join(filter(None, pair)) for pair in zip(exploratory, table["reason"], strict=True)]
    return [f"{state} ({note})" if note else state for state, note in zip(table["state"], notes, strict=True)]


def _overview(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    keys = ["dataset", "claim", "loss"]
    columns = {}
    for name, table in tables.items():
        one_seed = table["reason"].str.contains(ONE_SEED).map({True: ONE_SEED, False: ""})
        said = _said(table.assign(reason=one_seed))
        columns[f"[{name}](results/{name}/README.md)"] = pd.Series(said, pd.MultiIndex.from_frame(table[keys]))
    order = {claim.statement: claim.statement for claim in CLAIMS.values()}
    names = {"dataset": {**DATASET_NAMES, ALL: ALL}, "claim": order, "loss": LOSS_NAMES}
    overview = for_print(pd.DataFrame(columns).reset_index(), names).fillna("not run")
    return overview.rename(columns={"dataset": "Data set", "claim": "Claim", "loss": "Loss"})


def _theorems() -> list[str]:
    """List each theorem with all its losses, and the case that is nearest to the tolerance."""
    checked = theorems(load_results(Layout(DOCS / "results" / "theory").theory, table="theory"))
    shown = []
    for theorem, rows in checked.groupby("claim", sort=False):
        holding = rows["verdict"] == "holds"
        ratio = rows["error"] / rows["tolerance"]
        nearest = rows.iloc[int(np.argmax(ratio.where(~rows["differs"], 1 / ratio)))]
        limit = "to be exceeded" if nearest["differs"] else "not to be exceeded"
        shown.append(
            {
                "Theorem": theorem,
                "Losses": ", ".join(LOSS_NAMES[loss] for loss in rows["loss"].unique()),
                "Measured": f"holds in {holding.sum()} of {len(rows)} cases; nearest error {nearest['error']:.0e}",
                "Tolerance": f"{nearest['tolerance']:.0e}, {limit}",
                "Where": f"{nearest['setting']} ({LOSS_NAMES[nearest['loss']]})",
                "Verdict": SUPPORTED if holding.all() else CONTRADICTED,
            }
        )
    return [
        "\n## Theorems\n",
        "[Results, and the local minima that the theorems do not cover](results/theory/README.md).\n",
        f"```bash\n{THEORY_COMMAND}\n```\n",
        _markdown(pd.DataFrame(shown)),
    ]


def _details(rows: pd.DataFrame) -> pd.DataFrame:
    shown = {
        "Claim": rows["claim"],
        "Loss": rows["loss"].map(LOSS_NAMES),
        "Measured": rows["measured"],
        "Smallest effect": rows["smallest_effect"],
        "p": rows["p_holm"].map(p_value),
        "Verdict": _said(rows),
        "Interval includes": rows["contains"],
        "Shown in": ["`" + targets.replace(" ", "`, `") + "`" for targets in rows["evidence"]],
    }
    return pd.DataFrame(shown)


def _power() -> pd.DataFrame:
    seeds, spreads, families = (3, 4, 5, 10), (0.5, 0.8), (1, 20)
    rows = []
    for key, weight in WEIGHTS.items():
        row = {"Claim": CLAIMS[key].statement}
        for number in seeds:
            found = [
                " / ".join(f"{smallest_effect(Design(weight, 35, number, spread), family=m):.1f}" for spread in spreads)
                for m in families
            ]
            row[f"{number} seeds: one left, 20 left"] = ", ".join(found)
        rows.append(row)
    row = {"Claim": CLAIMS["no_batch_size"].statement}
    for number in seeds:
        found = [
            " / ".join(f"{power_of_no_effect(Design(2 / 3, 35, number, s), 1.0, family=m):.2f}" for s in spreads)
            for m in families
        ]
        row[f"{number} seeds: one left, 20 left"] = ", ".join(found)
    return pd.DataFrame([*rows, row])


def _markdown(table: pd.DataFrame) -> str:
    return str(table.to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    (DOCS / "claims.md").write_text(page(), encoding="utf-8")
