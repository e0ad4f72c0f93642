"""Check the theorems on the losses themselves: minimisers, all mini-batches of a population, uniform embeddings.

Everything is computed in float64 and in one thread, and depends only on the settings and their seed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from dhel_kcl.experiment.config import TheoryConfig
from dhel_kcl.experiment.grid import loss_label
from dhel_kcl.jobs.job import Job
from dhel_kcl.losses import PairLoss, build_loss  # the package, so that this stage's digest includes every loss
from dhel_kcl.results.table import write_results
from dhel_kcl.seeding import derive_seed
from dhel_kcl.theory.asymptotics import asymptote, growth
from dhel_kcl.theory.configurations import cross_polytope, simplex
from dhel_kcl.theory.minima import minimum

MOST_REPLICATES = 256
FEWEST_REPLICATES = 4

Row = dict[str, Any]
Check = Callable[[], list[Row]]
Values = Mapping[str, float | Sequence[float]]


def verify(config: TheoryConfig) -> pd.DataFrame:
    """Compute what the theorems predict and what the losses give.

    - `minimise`: each loss, minimised over free views u and v from random starts. Metrics `loss` (x = iteration),
      `minimum` (predicted), `alignment` (mean |u_i - v_i|^2 at the end), `gram` and `minimiser_gram` (cosines of u at
      the end and of the predicted minimiser, x = row * batch_size + column).
    - `mini_batches`: mean loss over all mini-batches of `batch_size` pairs of one arbitrary population, which is the
      whole population for the largest `batch_size`. Metrics `loss` and `growth`.
    - `uniform`: loss of aligned, uniformly distributed embeddings. Metrics `loss` (x = replicate), `growth` and
      `asymptote` (predicted).

    Args:
        config: the losses' hyperparameters and the sizes of the checks.

    Returns:
        Columns ``run``, ``check``, ``loss``, ``temperature``, ``t``, ``c``, ``gamma``, ``batch_size``,
        ``embedding_dim``, ``seed``, ``metric``, ``x`` (NaN for a scalar) and ``value``.
    """
    torch.set_num_threads(1)
    with threadpool_limits(1):
        checks = [*_minimise(config), *_mini_batches(config), *_uniform(config)]
        shown = track(checks, description="theory", console=Console(stderr=True))
        return pd.DataFrame([row for check in shown for row in check()])


def _losses(config: TheoryConfig) -> list[dict[str, Any]]:
    temperature = [{"name": name, "temperature": config.temperature} for name in ("infonce", "ntxent", "dcl", "dhel")]
    return [*temperature, *_kernel_losses(config)]


def _kernel_losses(config: TheoryConfig) -> list[dict[str, Any]]:
    kernels: list[dict[str, Any]] = [
        {"kernel": "gaussian", "t": config.t},
        {"kernel": "log", "t": config.t},
        {"kernel": "imq", "c": config.c},
    ]
    return [{"name": "kcl", **kernel, "gamma": config.gamma} for kernel in kernels]


def _rows(
    check: str,
    loss: dict[str, Any],
    batch_size: int,
    embedding_dim: int,
    seed: int,
    values: Values,
) -> list[Row]:
    """Return the tidy rows of one run; a metric's value is a number or a sequence indexed by x = 0, 1, ..."""
    numbers = {name: loss.get(name, math.nan) for name in ("temperature", "t", "c", "gamma")}
    settings = [f"{name}{value:g}" for name, value in numbers.items() if not math.isnan(value)]
    name = "-".join([check, loss_label(loss), *settings, f"bs{batch_size}", f"d{embedding_dim}", f"seed{seed}"])
    keys = {"run": name, "check": check, "loss": loss_label(loss), **numbers}
    keys |= {"batch_size": batch_size, "embedding_dim": embedding_dim, "seed": seed}
    return [
        {**keys, "metric": metric, "x": float(x), "value": float(value)}
        for metric, content in values.items()
        for x, value in (enumerate(content) if isinstance(content, Sequence) else [(math.nan, content)])
    ]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _minimise(config: TheoryConfig) -> Iterator[Check]:
    d = config.minimise.embedding_dim
    cases = [(loss, simplex(d + 1, d)) for loss in _losses(config)]
    cases += [(loss, cross_polytope(d)) for loss in _kernel_losses(config)]
    for loss, minimiser in cases:
        for start in range(config.minimise.starts):
            yield partial(_descend, loss, minimiser, config.seed + start, config.minimise.max_iterations)


def _descend(loss: dict[str, Any], minimiser: Tensor, seed: int, max_iterations: int) -> list[Row]:
    m, d = minimiser.shape
    start = _normal(2, m, d, seed=derive_seed(seed, "minimise", m, d))
    objective = partial(_value_and_gradient, build_loss(loss), (2, m, d))
    path = [objective(start.flatten().numpy())[0]]

    def remember(intermediate_result: OptimizeResult) -> None:
        path.append(intermediate_result.fun)

    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxcor": 20, "ftol": 0, "gtol": 1e-13}
    found = minimize(
        objective, start.flatten().numpy(), jac=True, method="L-BFGS-B", callback=remember, options=options
    )
    u, v = functional.normalize(torch.from_numpy(found.x).view(2, m, d), dim=-1)
    values: Values = {
        "loss": path,
        "minimum": minimum(loss, m, d),
        "alignment": float((u - v).square().sum(dim=1).mean()),
        "gram": _antipodes_adjacent(u @ u.T).flatten().tolist(),
        "minimiser_gram": (minimiser @ minimiser.T).flatten().tolist(),
    }
    return _rows("minimise", loss, m, d, seed, values)


def _value_and_gradient(loss: PairLoss, shape: tuple[int, int, int], point: np.ndarray) -> tuple[float, np.ndarray]:
    views = torch.from_numpy(point.copy()).view(shape).requires_grad_()
    value = loss(*views)
    (gradient,) = torch.autograd.grad(value, views)
    return value.item(), gradient.flatten().numpy()


def _antipodes_adjacent(gram: Tensor) -> Tensor:
    """Reorder points so that each is followed by the most opposite of the remaining points."""
    left, order = list(range(len(gram))), []
    while left:
        first = left.pop(0)
        order.append(first)
        if left:
            order.append(left.pop(int(gram[first, left].argmin())))
    return gram[order][:, order]


def _mini_batches(config: TheoryConfig) -> Iterator[Check]:
    n, d = config.mini_batches.population, config.mini_batches.embedding_dim
    population = _normal(2, n, d, seed=derive_seed(config.seed, "population", n, d))
    for loss, m in itertools.product(_losses(config), range(2, n + 1)):
        yield partial(_all_mini_batches, loss, population, m, config.seed)


def _all_mini_batches(loss: dict[str, Any], population: Tensor, m: int, seed: int) -> list[Row]:
    _, n, d = population.shape
    evaluate = build_loss(loss)
    batches = itertools.combinations(range(n), m)
    mean = math.fsum(evaluate(*population[:, list(batch)]).item() for batch in batches) / math.comb(n, m)
    return _rows("mini_batches", loss, m, d, seed, {"loss": mean, "growth": growth(loss, m)})


def _uniform(config: TheoryConfig) -> Iterator[Check]:
    for loss, m in itertools.product(_losses(config), config.uniform.batch_sizes):
        replicates = min(max(config.uniform.embeddings // m, FEWEST_REPLICATES), MOST_REPLICATES)
        yield partial(_uniform_batches, loss, m, config.uniform.embedding_dim, replicates, config.seed)


def _uniform_batches(loss: dict[str, Any], m: int, d: int, replicates: int, seed: int) -> list[Row]:
    evaluate = build_loss(loss)
    batches = (_normal(m, d, seed=derive_seed(seed, "uniform", m, d, replicate)) for replicate in range(replicates))
    sampled = [evaluate(z, z).item() for z in batches]  # a normal vector has a uniform direction
    values: Values = {"loss": sampled, "growth": growth(loss, m), "asymptote": asymptote(loss, d)}
    return _rows("uniform", loss, m, d, seed, values)


def run(job: Job) -> str:
    """Check the theorems and write the outcome as a tidy table."""
    with job.recorded({"run": job.config.theory.seed}):
        table = verify(job.config.theory)
        write_results(table, job.writes["parquet"])
    return f"{job.writes['parquet']}: {len(table)} rows from {table['run'].nunique()} runs"
