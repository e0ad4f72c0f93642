"""Make an explorer page from a synthetic table."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dhel_kcl.paper.explorer import write_explorer
from dhel_kcl.paper.render import RESULT_COLUMNS


def run_table(
    loss: str, batch_size: int, *, diverged: bool = False, epochs: int = 3, h: int = 8, z: int = 4
) -> pd.DataFrame:
    """Return the tidy rows of one run, with random values."""
    random = np.random.default_rng(batch_size + len(loss))
    rows: list[tuple[str, str, float, float]] = [("diverged", "", 7.0, float(diverged))]
    rows += [("training_loss", "", epoch, random.random()) for epoch in range(1, epochs + 1)]
    if diverged:
        del rows[-1]  # nothing is logged for an unfinished epoch
    else:
        rows += [(metric, "h", math.nan, random.random()) for metric in ("linear_top1", "knn_top1")]
        for representation, dimension in (("h", h), ("z", z)):
            rows.append(("effective_rank", representation, math.nan, dimension * random.random()))
            values = np.sort(random.random(dimension))[::-1]
            rows += [("singular_value", representation, float(i), v) for i, v in enumerate(values, start=1)]
    measured = pd.DataFrame(rows, columns=["metric", "representation", "x", "value"])
    keys = {"run": f"cifar10-{loss}-bs{batch_size}-seed0", "loss": loss, "batch_size": batch_size, "seed": 0}
    keys |= {"dataset": "cifar10", "backbone": "resnet18", "width": 0.25, "epochs": epochs, "train_images": 50_000}
    keys |= {"temperature": 0.5, "t": math.nan, "c": math.nan, "gamma": math.nan, "learning_rate": 1.0}
    return measured.assign(**keys, corruption="", test_hits=None, source="file", source_sha256="0")[RESULT_COLUMNS]


class Page:
    """A page with its table, manifests and files."""

    def __init__(self, folder: Path, make_manifest: Callable[..., Path]) -> None:
        self.results, self.output = folder / "results.parquet", folder / "explorer.html"
        self.make_manifest = make_manifest
        self.manifests: dict[str, Path] = {}

    def write(self, *runs: pd.DataFrame) -> str:
        table = pd.concat(runs, ignore_index=True)
        table.to_parquet(self.results)
        for run in table["run"].unique():
            files = {"inputs": ["train.beton"], "outputs": ["encoder.safetensors"]}
            self.manifests[run] = self.make_manifest("pretrain", run.replace("<", "").replace("/", ""), **files)
        return self.write_again()

    def write_again(self) -> str:
        write_explorer(self.results, self.manifests, self.output, ("pretrain", "features", "corruptions"))
        return self.output.read_text(encoding="utf-8")

    def specification(self) -> dict[str, Any]:
        text = re.search(
            r"const spec = \{\.\.\.(.*), datasets: \{runs: data\}\};", self.output.read_text(encoding="utf-8")
        )
        assert text is not None
        return json.loads(text[1])
