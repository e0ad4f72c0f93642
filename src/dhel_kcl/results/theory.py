"""Check the theorems on the losses themselves, and measures of uniformity on laws whose deviation is known.

Everything is computed in float64 and in one thread, and depends only on the settings and their seed.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import TheoryConfig
from dhel_kcl.experiment.grid import loss_label
from dhel_kcl.jobs.job import Job
from dhel_kcl.losses import PairLoss, build_loss  # the package, so that this stage's digest includes every loss
from dhel_kcl.metrics.alignment_uniformity import uniformity
from dhel_kcl.metrics.wasserstein import wasserstein_uniformity
from dhel_kcl.results.table import write_results
from dhel_kcl.seeding import derive_seed
from dhel_kcl.theory.asymptotics import asymptote
from dhel_kcl.theory.batch_size import growth
from dhel_kcl.theory.configurations import cross_polytope, simplex
from dhel_kcl.theory.laws import LAWS, Law, deviation, sample
from dhel_kcl.theory.limits import limit_functional
from dhel_kcl.theory.minima import minimum
from dhel_kcl.theory.population import Minimiser, descend, mean_over_batches

MOST_REPLICATES = 4096
FEWEST_REPLICATES = 4
SHARES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

Row = dict[str, Any]
Check = Callable[[], list[Row]]
Values = Mapping[str, float | Sequence[float] | Mapping[float, float]]


def verify(config: TheoryConfig) -> pd.DataFrame:
    """Compute what the theorems predict and what the losses give.

    - `minimise`: each loss, minimised over free views u and v from random starts. Metrics `loss` (x = iteration),
      `minimum` (predicted), `alignment` (mean |u_i - v_i|^2 at the end), `gram` and `minimiser_gram` (cosines of u at
      the end and of the predicted minimiser, x = row * batch_size + column).
    - `mini_batches`: mean loss over all mini-batches of `batch_size` pairs of one arbitrary population, which is the
      whole population for the largest `batch_size`. Metrics `loss` and `growth`.
    - `uniform`: loss of aligned, uniformly distributed embeddings. Metrics `loss` (x = replicate), `growth` and
      `asymptote` (predicted).
    - `gradients`: `distance` of the mean gradient over all mini-batches of the same population from the gradient of the
      whole population, relative to the latter's norm.
    - `population`: the mean loss over all mini-batches of `batch_size` out of `pairs` pairs, minimised over free views
      from random starts, the last start being the best minimiser of the full loss. Metrics `mini_batch_loss` and
      `full_loss` at the end of each descent (x = start), `mini_batch_loss_of_full_minimiser`, `full_minimum`, `pairs`.
    - `limit_functional`: the limit functional of the von Mises-Fisher law, `mises_fisher` (x = concentration), and of
      the uniform law on a sub-sphere, `sub_sphere` (x = its dimension), with the `asymptote` of the uniform law.
    - `w1_of_minimisers`: `wasserstein` uniformity of an aligned minimiser of `batch_size` pairs, and of the uniform
      random points where the descent started, `random_wasserstein`.
    - `uniformity_of_laws`: measures of `batch_size` points of a law, `LAW_wasserstein` and `LAW_uniformity`, and the
      exact values, `LAW_exact_wasserstein` and `LAW_exact_uniformity` (x = the law's parameter). It has no loss.

    Args:
        config: the losses' hyperparameters and the sizes of the checks.

    Returns:
        Columns ``run``, ``check``, ``loss``, ``temperature``, ``t``, ``c``, ``gamma``, ``batch_size``,
        ``embedding_dim``, ``seed``, ``metric``, ``x`` (NaN for a scalar) and ``value``.
    """
    torch.set_num_threads(1)
    with threadpool_limits(1):
        of_losses = (_minimise, _mini_batches, _uniform, _population, _limit_functional, _w1_of_minimisers)
        checks = [check for checks in (*of_losses, _uniformity_of_laws) for check in checks(config)]
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
    detail: str | None = None,
) -> list[Row]:
    """Return the tidy rows of one run; a metric's value is a number, a sequence indexed by x = 0, 1, ..., or x: value.

    `loss` is empty for a check without one. `detail` tells apart runs that would have the same name.
    """
    numbers = {name: loss.get(name, math.nan) for name in ("temperature", "t", "c", "gamma")}
    settings = [f"{name}{value:g}" for name, value in numbers.items() if not math.isnan(value)]
    label = loss_label(loss) if loss else ""
    sizes = [f"bs{batch_size}", f"d{embedding_dim}", f"seed{seed}"]
    name = "-".join(filter(None, [check, label, *settings, detail, *sizes]))
    keys = {"run": name, "check": check, "loss": label, **numbers}
    keys |= {"batch_size": batch_size, "embedding_dim": embedding_dim, "seed": seed}
    return [
        {**keys, "metric": metric, "x": float(x), "value": float(value)}
        for metric, content in values.items()
        for x, value in _points(content)
    ]


def _points(content: float | Sequence[float] | Mapping[float, float]) -> Iterable[tuple[float, float]]:
    if isinstance(content, Mapping):
        return content.items()
    return enumerate(content) if isinstance(content, Sequence) else [(math.nan, content)]


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
    value, gradient = 0.0, torch.zeros_like(population)
    for batch in itertools.combinations(range(n), m):
        members = population[:, list(batch)].requires_grad_()
        loss_of_batch = evaluate(*members)
        gradient[:, list(batch)] += torch.autograd.grad(loss_of_batch, members)[0]
        value += loss_of_batch.item()
    batches = math.comb(n, m)
    whole = population.clone().requires_grad_()
    (full,) = torch.autograd.grad(evaluate(*whole), whole)
    distance = (gradient / batches - full).norm() / full.norm()
    rows = _rows("mini_batches", loss, m, d, seed, {"loss": value / batches, "growth": growth(loss, m)})
    return rows + _rows("gradients", loss, m, d, seed, {"distance": float(distance)})


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


def _population(config: TheoryConfig) -> Iterator[Check]:
    for size, loss in itertools.product(config.population.sizes, _losses(config)):
        yield partial(_minimise_mini_batches, loss, size.pairs, size.embedding_dim, config)


def _minimise_mini_batches(loss: dict[str, Any], n: int, d: int, config: TheoryConfig) -> list[Row]:
    starts = [
        _normal(2, n, d, seed=derive_seed(config.seed, "population", n, d, start)).numpy()
        for start in range(config.population.starts)
    ]
    iterations = config.population.max_iterations
    losses = {m: mean_over_batches(loss, n, m) for m in range(2, n + 1)}
    ends = {m: [descend(losses[m], start, iterations) for start in starts] for m in losses}
    lowest = [min(found, key=_value) for found in ends.values()]
    full = min((descend(losses[n], end.views, iterations) for end in lowest), key=_value)
    rows = []
    for m, mean_loss in losses.items():
        found = [*ends[m], descend(mean_loss, full.views, iterations)]
        values: Values = {
            "mini_batch_loss": [end.value for end in found],
            "full_loss": [losses[n](end.views)[0] for end in found],
            "mini_batch_loss_of_full_minimiser": mean_loss(full.views)[0],
            "full_minimum": full.value,
            "pairs": n,
        }
        rows += _rows("population", loss, m, d, config.seed, values, detail=f"n{n}")
    return rows


def _value(minimiser: Minimiser) -> float:
    return minimiser.value


def _limit_functional(config: TheoryConfig) -> Iterator[Check]:
    for loss in _losses(config):
        yield partial(_families, loss, config)


def _families(loss: dict[str, Any], config: TheoryConfig) -> list[Row]:
    d, concentrations = config.limit_functional.embedding_dim, [0.0, *config.limit_functional.concentrations]
    values: Values = {
        "mises_fisher": {kappa: limit_functional(loss, d, kappa) for kappa in sorted(concentrations)},
        "sub_sphere": {k: asymptote(loss, k) for k in range(2, d + 1)},
        "asymptote": asymptote(loss, d),
    }
    return _rows("limit_functional", loss, 0, d, config.seed, values)


def _w1_of_minimisers(config: TheoryConfig) -> Iterator[Check]:
    for loss, n in itertools.product(_losses(config), config.w1_of_minimisers.pairs):
        yield partial(_aligned_minimiser, loss, n, config)


def _aligned_minimiser(loss: dict[str, Any], n: int, config: TheoryConfig) -> list[Row]:
    d = config.w1_of_minimisers.embedding_dim
    start = _normal(1, n, d, seed=derive_seed(config.seed, "w1_of_minimisers", n, d)).numpy()
    loss_of_views = mean_over_batches(loss, n, n)

    def aligned(views: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss_of_views(np.concatenate((views, views)))
        return value, gradient.sum(axis=0, keepdims=True)

    end = descend(aligned, start, config.w1_of_minimisers.max_iterations)
    values: Values = {
        "wasserstein": wasserstein_uniformity(end.views[0]),
        "random_wasserstein": wasserstein_uniformity(start[0]),
    }
    return _rows("w1_of_minimisers", loss, n, d, config.seed, values)


def _uniformity_of_laws(config: TheoryConfig) -> Iterator[Check]:
    for d, law in itertools.product(config.uniformity_of_laws.embedding_dims, LAWS):
        yield partial(_measure_law, law, d, config)


def _measure_law(law: Law, d: int, config: TheoryConfig) -> list[Row]:
    n = config.uniformity_of_laws.embeddings
    halves = [2**power for power in range(1, d.bit_length()) if 2**power < d]
    parameters = [float(k) for k in (*halves, d)] if law == "sub_sphere" else list(SHARES)
    points = {p: sample(law, d, p, n, derive_seed(config.seed, law, d, n)) for p in parameters}
    exact = {p: deviation(law, d, p) for p in parameters}
    values: Values = {
        f"{law}_wasserstein": {p: wasserstein_uniformity(points[p]) for p in parameters},
        f"{law}_uniformity": {p: uniformity(points[p]) for p in parameters},
        f"{law}_exact_wasserstein": {p: exact[p].wasserstein for p in parameters},
        f"{law}_exact_uniformity": {p: exact[p].uniformity for p in parameters},
    }
    return _rows("uniformity_of_laws", {}, n, d, config.seed, values, detail=law)


def run(job: Job) -> str:
    """Check the theorems and write the outcome as a tidy table."""
    theory = job.config.theory
    if theory is None:
        raise InputError(f"{job.layout.config}: theory: null leaves the theorems out; remove it to check them")
    with job.recorded({"run": theory.seed}):
        table = verify(theory)
        write_results(table, job.writes["parquet"])
    return f"{job.writes['parquet']}: {len(table)} rows from {table['run'].nunique()} runs"
