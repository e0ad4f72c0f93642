"""With several processes a loss is that of the concatenated batch, in value and gradient, on every process."""

from pathlib import Path

import pytest
import torch
from distributed import launch
from loss_cases import CASES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dhel_kcl.losses import DHEL, KCL, GaussianRiesz, PairLoss
from dhel_kcl.losses.streaming import tiles

ROWS_EACH, DIM = 5, 4


def batch(processes: int) -> tuple[Tensor, Tensor]:
    z1, z2 = torch.randn(2, processes * ROWS_EACH, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z1, z2


def losses_of_own_rows(rank: int, processes: int) -> dict:
    own = slice(rank * ROWS_EACH, (rank + 1) * ROWS_EACH)
    results = {}
    for tile_rows in (640, 3):
        tiles.CPU_TILE_ROWS = tile_rows
        for name, (loss, _) in CASES.items():
            z1, z2 = (z[own].clone().requires_grad_() for z in batch(processes))
            value = loss(z1, z2)
            results[name, tile_rows] = (value.detach(), *torch.autograd.grad(value, (z1, z2)))
    return results


@pytest.mark.parametrize("processes", [2, 3])
def test_values_and_gradients_equal_those_of_one_process(processes: int, tmp_path: Path) -> None:
    ranks = launch(losses_of_own_rows, processes, tmp_path)
    for name, (loss, _) in CASES.items():
        z1, z2 = (z.requires_grad_() for z in batch(processes))
        value = loss(z1, z2)
        gradients = torch.autograd.grad(value, (z1, z2))
        for tile_rows in (640, 3):
            for rank, results in enumerate(ranks):
                own = slice(rank * ROWS_EACH, (rank + 1) * ROWS_EACH)
                expected = (value.detach(), *(gradient[own] for gradient in gradients))
                torch.testing.assert_close(results[name, tile_rows], expected, rtol=1e-10, atol=1e-10)


def encoder() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(DIM, 3).double()


def gradient_under_data_parallelism(rank: int, processes: int) -> Tensor:
    own = slice(rank * ROWS_EACH, (rank + 1) * ROWS_EACH)
    model = DistributedDataParallel(encoder())
    z1, z2 = model(torch.stack([x[own] for x in batch(processes)]))
    (processes * DHEL(0.3)(z1, z2)).backward()
    return model.module.weight.grad


def test_training_data_parallel_equals_one_process_when_the_loss_is_multiplied_by_their_number(tmp_path: Path) -> None:
    model = encoder()
    DHEL(0.3)(*model(torch.stack(batch(2)))).backward()
    for gradient in launch(gradient_under_data_parallelism, 2, tmp_path):
        torch.testing.assert_close(gradient, model.weight.grad, rtol=1e-10, atol=1e-10)


def message(*views: Tensor, loss: PairLoss | None = None) -> str:
    try:
        (loss or DHEL(0.3))(*views)
    except ValueError as error:
        return str(error)
    return ""


def errors(rank: int, processes: int) -> list[str]:
    zero_row = torch.ones(4, DIM)
    zero_row[2] = 0
    good = torch.eye(4, DIM)
    return [
        message(*torch.ones(2, 4 + rank, DIM)),
        message(*torch.ones(2, 4, DIM + rank)),
        message(zero_row if rank == 1 else good, good),
        message(good[:1], good[:1]) if rank == 0 else message(good, good),
        message(good, good, loss=KCL(GaussianRiesz(1.0), 1.0)),  # each process has distinct images, the same ones
        message(good, good),
    ]


def test_a_fault_of_one_process_is_an_error_on_all_and_none_waits(tmp_path: Path) -> None:
    first, second = launch(errors, 2, tmp_path)
    assert "process 0 has 4 pairs of dimension 4 and process 1 has 5 of 4; every process needs the same" in first[0]
    assert "process 1 has 5 pairs of dimension 4 and process 0 has 4 of 4" in second[0]
    assert "process 1 has 4 of 5" in first[1]
    assert "process 1 was given projections that have no loss" in first[2]
    assert "row 2 of z1 is zero" in second[2]
    assert "at least 2 positive pairs, got 1" in first[3]
    assert "process 0 was given projections that have no loss" in second[3]
    assert any("Riesz kernel with s = 1.0 > 0 diverges" in rank[4] for rank in (first, second))
    assert all(rank[4] for rank in (first, second))
    assert first[5] == second[5] == ""
