"""Several processes train as one would with the whole batch."""

from pathlib import Path

import pytest
import torch
from distributed import launch
from torch import Tensor

from dhel_kcl.experiment.config import EncoderConfig, OptimizerConfig
from dhel_kcl.losses import build_loss
from dhel_kcl.training.encoder import Encoder, build_encoder
from dhel_kcl.training.optimizer import build_optimizer
from dhel_kcl.training.pretrain import train_step
from dhel_kcl.training.processes import Processes, synchronise_batch_norm

CPU = torch.device("cpu")
SMALL = EncoderConfig(width=0.0625, embedding_dim=16)
LOSSES = (
    {"name": "ntxent", "temperature": 0.3},
    {"name": "dhel", "temperature": 0.3},
    {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0},
)
STEPS, BATCH_SIZE = 4, 12


def train(rank: int, processes: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """A few steps of each loss in float64 on this process's share of the same batches."""
    place = Processes(rank, rank, processes)
    terms = []
    for loss in LOSSES:
        encoder: Encoder = build_encoder(SMALL, seed=0).double().train()
        synchronise_batch_norm(encoder, place, CPU)
        optimizer = build_optimizer(encoder, OptimizerConfig(learning_rate=0.1), 0.1)
        parallel = place.data_parallel(encoder, CPU)
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            views = torch.rand(2, BATCH_SIZE, 3, 8, 8, generator=generator, dtype=torch.float64)
            view1, view2 = views[:, rank::processes]
            terms.append(train_step(parallel, build_loss(loss), optimizer, view1, view2, world_size=processes))
    return terms, encoder.state_dict()


@pytest.mark.parametrize("processes", [2, 3])
def test_losses_gradients_weights_and_statistics_are_those_of_one_process(processes: int, tmp_path: Path) -> None:
    expected_terms, expected_state = train(0, 1)
    for terms, state in launch(train, processes, tmp_path):
        torch.testing.assert_close(terms, expected_terms, rtol=1e-8, atol=1e-8)
        assert state.keys() == expected_state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, expected_state[name], rtol=1e-8, atol=1e-8, msg=name)
