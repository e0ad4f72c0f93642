"""Measure forward and backward time and peak memory of each loss, against its peers."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from implementations import BUILDERS, COMPILED, OURS, Loss
from measure import FULL, QUICK, Effort, attempt, isolated, machine, peak_mib, rounds, summary
from torch import Tensor

from dhel_kcl.files import atomic_path, write_json
from dhel_kcl.seeding import derive_seed

EMBEDDING_DIM = 128
BATCH_SIZES = [256, 1024, 4096, 8192]
QUICK_BATCH_SIZES = [64, 128]
# Reordered float32 sums differ by less; NT-Xent and DCL, the two closest formulas, differ by more at M = 8192.
VALUE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
COLUMNS = [
    *["loss", "batch_size", "implementation", "status", "rounds", "milliseconds", "ratio", "ratio_low", "ratio_high"],
    *["memory_mib", "value_difference", "gradient_difference"],
]


def views(batch_size: int) -> tuple[Tensor, Tensor]:
    """Make two (batch_size, 128) float32 views that require gradients; the cosine of positives is about 0.7."""
    generator = torch.Generator().manual_seed(derive_seed(0, "benchmark", batch_size))
    z1, noise = torch.randn(2, batch_size, EMBEDDING_DIM, generator=generator)
    return z1.requires_grad_(), (z1.detach() + noise).requires_grad_()


def forward_backward(loss: Loss, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its (2, M, d) gradient."""
    value = loss(z1, z2)
    return value.detach(), torch.stack(torch.autograd.grad(value, (z1, z2)))


def memory(loss: str, implementation: str, batch_size: int) -> float:
    """Measure the peak memory of a forward and backward pass above its inputs, including gradients, in MiB."""
    run = BUILDERS[loss][implementation]()
    z1, z2 = views(batch_size)
    return peak_mib(partial(_pass, run, z1, z2))


def times(loss: str, implementations: list[str], batch_size: int, effort: Effort) -> pd.DataFrame:
    """Compare the values and gradients of the implementations with ours, then time those that agree.

    Returns:
        A row for each implementation: `status` ("ok" or "another value"), `value_difference` (absolute; the losses
        are of order 1 to 10), `gradient_difference` (relative to the largest entry), and the columns of `summary`.
    """
    z1, z2 = views(batch_size)
    expected, expected_gradient = forward_backward(BUILDERS[loss][OURS](), z1, z2)
    checks: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name in implementations:
        run = BUILDERS[loss][name]()
        value, gradient = forward_backward(run, z1, z2)
        value_difference = abs(float(value - expected))
        gradient_difference = float((gradient - expected_gradient).abs().max() / expected_gradient.abs().max())
        agrees = value_difference <= VALUE_TOLERANCE and gradient_difference <= GRADIENT_TOLERANCE
        if agrees:
            calls[name] = partial(_pass, run, z1, z2)
        checks[name] = {
            "status": "ok" if agrees else "another value",
            "value_difference": value_difference,
            "gradient_difference": gradient_difference,
        }
    timed = rounds(calls, OURS, effort, seed=derive_seed(0, "order", batch_size))
    return pd.DataFrame.from_dict(checks, orient="index").join(summary(timed, OURS))


def _pass(loss: Loss, z1: Tensor, z2: Tensor) -> None:
    torch.autograd.grad(loss(z1, z2), (z1, z2))


def measure(loss: str, batch_size: int, implementations: list[str], effort: Effort) -> pd.DataFrame:
    """Return a row for each implementation; measure memory in separate processes, then the time of those that ran."""
    peaks = {name: attempt(memory, loss, name, batch_size) for name in implementations}
    if peaks[OURS][1] != "ok":
        raise RuntimeError(f"{loss} at batch size {batch_size}: {OURS} {peaks[OURS][1]}")
    able = [name for name, (_, status) in peaks.items() if status == "ok"]
    rows = isolated(times, loss, able, batch_size, effort).reindex(implementations)
    rows["memory_mib"] = [math.nan if peak is None else peak for peak, _ in peaks.values()]
    rows["status"] = rows["status"].fillna({name: status for name, (_, status) in peaks.items()})
    rows["rounds"] = rows["rounds"].fillna(0).astype(int)
    return rows.rename_axis("implementation").reset_index().assign(loss=loss, batch_size=batch_size)[COLUMNS]


def main(
    output: Annotated[Path, typer.Option(help="Folder for losses.csv and machine.json.")] = Path("docs/benchmarks"),
    loss: Annotated[list[str] | None, typer.Option(help="A loss to measure; repeatable; default: all.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=2, help="Number of positive pairs; repeatable.")] = None,
    quick: Annotated[bool, typer.Option(help="Small batches, few rounds, no torch.compile: about a minute.")] = False,
) -> None:
    """Measure each loss at each batch size and write losses.csv."""
    unknown = set(loss or []) - set(BUILDERS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; the losses are {', '.join(BUILDERS)}")
    start = time.monotonic()
    parts: list[pd.DataFrame] = []
    for name in loss or BUILDERS:
        implementations = [each for each in BUILDERS[name] if not (quick and each == COMPILED)]
        for size in batch_size or (QUICK_BATCH_SIZES if quick else BATCH_SIZES):
            part = measure(name, size, implementations, QUICK if quick else FULL)
            shown = part[["loss", "batch_size", "implementation", "status", "milliseconds", "ratio", "memory_mib"]]
            typer.echo(shown.to_string(index=False, header=not parts, float_format="{:.4g}".format, na_rep="-"))
            parts.append(part)
    with atomic_path(output / "losses.csv") as path:
        pd.concat(parts).to_csv(path, index=False, float_format="%.6g")
    minutes = (time.monotonic() - start) / 60
    write_json(output / "machine.json", {**machine(), "measuring the losses": f"{minutes:.0f} minutes"})


if __name__ == "__main__":
    typer.run(main)
