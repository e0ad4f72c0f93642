"""Measure time and peak memory of the costly representation metrics, against public and textbook formulas."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import scipy.stats
import torch
import typer
from measure import QUICK, Effort, isolated, peak_mib, rounds, summary
from torch import Tensor

from dhel_kcl.files import atomic_path
from dhel_kcl.metrics import effective_rank, wasserstein_uniformity
from dhel_kcl.seeding import derive_seed

OURS = "dhel-kcl"
SAMPLES, QUICK_SAMPLES = 10_000, 1_000
EMBEDDING_DIM = 128
IDEAL_SAMPLES = 10_000
FULL = Effort(least=3, most=100, seconds=4.0)
# The public formula draws its ideal law at random; the others are one definition in float32 and float64.
TOLERANCE = {"wasserstein_uniformity": 0.01, "effective_rank": 1e-3}
COLUMNS = [
    *["metric", "samples", "implementation", "rounds", "milliseconds", "ratio", "ratio_low", "ratio_high"],
    *["memory_mib", "value"],
]


def public_wasserstein(u: Tensor) -> float:
    """Estimate Wasserstein uniformity like the paper's repository: all similarities against a random ideal law."""
    unit = torch.nn.functional.normalize(u)
    first, second = torch.triu_indices(len(u), len(u), offset=1)
    similarities = (unit @ unit.T)[first, second].numpy()
    random = np.random.default_rng(derive_seed(0, "ideal law"))
    ideal = 2 * random.beta((u.shape[1] - 1) / 2, (u.shape[1] - 1) / 2, size=IDEAL_SAMPLES) - 1
    return float(scipy.stats.wasserstein_distance(similarities, ideal))


def torch_effective_rank(x: Tensor) -> float:
    """Compute RankMe (Garrido et al. 2023, arXiv 2210.02885) from torch's float32 singular values."""
    p = torch.linalg.svdvals(x)
    p = p / p.sum()
    return float((-(p * p.log()).sum()).exp())


def numpy_effective_rank(x: Tensor) -> float:
    """Compute RankMe from NumPy's float64 singular values."""
    p = np.linalg.svd(x.numpy().astype(np.float64), compute_uv=False)
    p /= p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


Metric = Callable[[Tensor], float]
IMPLEMENTATIONS: dict[str, dict[str, Metric]] = {
    "wasserstein_uniformity": {OURS: wasserstein_uniformity, "public formula": public_wasserstein},
    "effective_rank": {
        OURS: effective_rank,
        "torch SVD, float32": torch_effective_rank,
        "NumPy SVD, float64": numpy_effective_rank,
    },
}


def embeddings(samples: int) -> Tensor:
    """Draw (samples, 128) float32 Gaussian rows, far from collapse, where every formula is accurate."""
    generator = torch.Generator().manual_seed(derive_seed(0, "embeddings"))
    return torch.randn(samples, EMBEDDING_DIM, generator=generator)


def memory(metric: str, implementation: str, samples: int) -> float:
    """Measure the peak memory of one call above its input, in MiB."""
    return peak_mib(partial(IMPLEMENTATIONS[metric][implementation], embeddings(samples)))


def times(metric: str, samples: int, effort: Effort) -> pd.DataFrame:
    """Return the value of each implementation and the columns of `summary`.

    Raises:
        RuntimeError: two implementations give different values.
    """
    x = embeddings(samples)
    calls = {name: partial(implementation, x) for name, implementation in IMPLEMENTATIONS[metric].items()}
    values = pd.Series({name: call() for name, call in calls.items()})
    if (values - values[OURS]).abs().max() > TOLERANCE[metric]:
        raise RuntimeError(f"{metric}: the implementations disagree, {values.to_dict()}")
    return summary(rounds(calls, OURS, effort, seed=derive_seed(0, "order")), OURS).assign(value=values)


def main(
    output: Annotated[Path, typer.Option(help="Folder for metrics.csv.")] = Path("docs/benchmarks"),
    samples: Annotated[int | None, typer.Option(min=2, help=f"Number of embeddings; default: {SAMPLES}.")] = None,
    quick: Annotated[bool, typer.Option(help=f"{QUICK_SAMPLES} embeddings, few rounds: seconds.")] = False,
) -> None:
    """Measure each metric and write metrics.csv."""
    samples = samples or (QUICK_SAMPLES if quick else SAMPLES)
    parts = []
    for metric, implementations in IMPLEMENTATIONS.items():
        rows = isolated(times, metric, samples, QUICK if quick else FULL)
        rows["memory_mib"] = [isolated(memory, metric, name, samples) for name in implementations]
        rows = rows.rename_axis("implementation").reset_index().assign(metric=metric, samples=samples)[COLUMNS]
        typer.echo(rows.to_string(index=False, float_format="{:.4g}".format))
        parts.append(rows)
    with atomic_path(output / "metrics.csv") as path:
        pd.concat(parts).to_csv(path, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
