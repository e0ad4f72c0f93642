"""Independent definitions in plain loops over unit rows, one scalar operation at a time, in float64."""

import torch
from torch import Tensor


def unit(z: Tensor) -> list[Tensor]:
    return [row / row.dot(row).sqrt() for row in z]


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros((), dtype=torch.float64)) / len(values)


def log_sum(exponents: list[Tensor]) -> Tensor:
    largest = max(e.detach() for e in exponents)
    return largest + sum(((e - largest).exp() for e in exponents), start=torch.zeros((), dtype=torch.float64)).log()


def attraction(u: list[Tensor], v: list[Tensor], t: float) -> Tensor:
    return mean([-a.dot(b) / t for a, b in zip(u, v, strict=True)])


def infonce_one_way(u: list[Tensor], v: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    return attraction(u, v, t), mean([log_sum([a.dot(b) / t for b in v]) for a in u])


def infonce(u: list[Tensor], v: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    return attraction(u, v, t), mean([infonce_one_way(u, v, t)[1], infonce_one_way(v, u, t)[1]])


def ntxent(u: list[Tensor], v: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    z = u + v
    return attraction(u, v, t), mean(
        [log_sum([z[a].dot(z[b]) / t for b in range(len(z)) if b != a]) for a in range(len(z))]
    )


def dcl(u: list[Tensor], v: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    z, m = u + v, len(u)
    return attraction(u, v, t), mean(
        [log_sum([z[a].dot(z[b]) / t for b in range(2 * m) if b % m != a % m]) for a in range(2 * m)]
    )


def repulsion(u: list[Tensor], t: float) -> Tensor:
    return mean([log_sum([u[i].dot(u[j]) / t for j in range(len(u)) if j != i]) for i in range(len(u))])


def dhel(u: list[Tensor], v: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    return attraction(u, v, t), repulsion(u, t) + repulsion(v, t)


def dhel_one_view(u: list[Tensor], v: list[Tensor], t: float) -> tuple[Tensor, Tensor]:
    return attraction(u, v, t), repulsion(u, t)


def kcl(u: list[Tensor], v: list[Tensor], positive_kernel, energy_kernel, gamma: float) -> tuple[Tensor, Tensor]:
    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).dot(x - y).sqrt()

    def energy(w: list[Tensor]) -> Tensor:
        return mean([energy_kernel(distance(w[i], w[j])) for j in range(len(w)) for i in range(j)])

    positives = mean([positive_kernel(distance(a, b)) for a, b in zip(u, v, strict=True)])
    return -2 * positives, gamma * (energy(u) + energy(v))


def gaussian(t: float):
    return lambda r: (-t * r**2).exp()


def log(t: float):
    return lambda r: -(1 + t * r**2).log()


def imq(c: float):
    return lambda r: c / (c**2 + r**2).sqrt()


def riesz(s: float):
    return lambda r: (1 if s > 0 else -1) * r ** (-s)
