"""The loss of mini-batches is that of the run, over partitions of the images, and changes with M as the theory says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhel_kcl.evaluation import mini_batch_losses as module
from dhel_kcl.evaluation.mini_batch_losses import mini_batch_losses
from dhel_kcl.losses import build_loss
from dhel_kcl.theory import growth

NTXENT = {"name": "ntxent", "temperature": 0.5}
DHEL = {"name": "dhel", "temperature": 0.5}
KCL = {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0}
LOG = {"name": "kcl", "kernel": "log", "t": 2.0, "gamma": 16.0}
LOSSES = [NTXENT, DHEL, KCL, LOG]


def two_views(pairs: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    first = torch.randn(pairs, dim, generator=generator)
    return first, first + 0.3 * torch.randn(pairs, dim, generator=generator)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_is_that_of_a_loop_over_disjoint_mini_batches(loss: dict[str, Any]) -> None:
    view1, view2 = two_views(100)
    measured = mini_batch_losses(view1, view2, loss)
    assert measured["x"] == [16, 64]
    assert measured["growth"] == [growth(loss, 16), growth(loss, 64)]
    for size, value, error in zip(measured["x"], measured["value"], measured["standard_error"], strict=True):
        batches = module._batches(100, int(size))
        values = [float(build_loss(loss)(view1.double()[batch], view2.double()[batch])) for batch in batches]
        assert value == pytest.approx(sum(values) / len(values), rel=1e-12)
        assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-9)


@pytest.mark.parametrize(
    ("pairs", "size", "number"), [(100, 16, 6), (64, 16, 4), (100, 64, 4), (100, 100, 4), (10_000, 4096, 4)]
)
def test_mini_batches_are_parts_of_random_partitions_and_there_are_at_least_four(
    pairs: int, size: int, number: int
) -> None:
    batches = module._batches(pairs, size)
    assert [len(batch) for batch in batches] == [size] * number
    of_a_partition = pairs // size
    for start in range(0, number, of_a_partition):
        drawn = torch.cat(batches[start : start + of_a_partition]).tolist()
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(range(pairs))
        assert drawn != sorted(drawn), "images may be sorted by class"
    assert len({tuple(batch.tolist()) for batch in batches}) == number


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mini_batch_of_all_pairs_is_the_full_loss(loss: dict[str, Any]) -> None:
    view1, view2 = two_views(256)
    measured = mini_batch_losses(view1, view2, loss)
    assert measured["x"][-1] == 256
    assert measured["value"][-1] == pytest.approx(float(build_loss(loss)(view1.double(), view2.double())), rel=1e-12)
    assert measured["standard_error"][-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_loss_of_kcl_is_the_same_at_every_size(loss: dict[str, Any]) -> None:
    view1, view2 = two_views(1024)
    measured = mini_batch_losses(view1, view2, loss)
    means, errors = np.array(measured["value"]), np.array(measured["standard_error"])
    apart = np.abs(means[:-1] - means[-1]) / errors[:-1]
    if loss["name"] == "kcl":
        assert apart.max() < 3
    else:
        assert apart.min() > 20
        assert (np.diff(means) > 0).all()
        np.testing.assert_allclose(np.diff(means), np.diff(np.array(measured["growth"])), rtol=0.2)


def test_the_same_views_give_the_same_numbers() -> None:
    views = two_views(300)
    assert mini_batch_losses(*views, KCL) == mini_batch_losses(*views, KCL)


def test_the_loss_is_computed_in_float64_without_gradients() -> None:
    view1, view2 = (view.requires_grad_() for view in two_views(64))
    single, double = mini_batch_losses(view1, view2, NTXENT), mini_batch_losses(view1.double(), view2.double(), NTXENT)
    assert single == double


@pytest.mark.parametrize(("pairs", "sizes"), [(2, []), (15, []), (16, [16]), (63, [16]), (64, [16, 64])])
def test_a_size_above_the_number_of_images_is_left_out(pairs: int, sizes: list[int]) -> None:
    measured = mini_batch_losses(*two_views(pairs), DHEL)
    assert measured["x"] == sizes
    assert len(measured["value"]) == len(measured["standard_error"]) == len(measured["growth"]) == len(sizes)


def test_a_loss_of_unknown_growth_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "build_loss", lambda loss: build_loss(NTXENT))
    measured = mini_batch_losses(*two_views(64), {"name": "somebody's"})
    assert measured == mini_batch_losses(*two_views(64), NTXENT) | {"growth": None}


def test_a_loss_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "build_loss", lambda loss: lambda view1, view2: torch.tensor(math.nan))
    with pytest.raises(ValueError, match="the loss of mini-batches of 16 pairs is NaN or infinite"):
        mini_batch_losses(*two_views(20), KCL)


def test_views_without_direction_are_refused() -> None:
    view1, view2 = two_views(20)
    with pytest.raises(ValueError, match="zero"):
        mini_batch_losses(view1 * 0, view2, KCL)
