"""Minima in closed form against the losses: attained, and never undercut."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_configs import ALL, COMPLETELY_MONOTONE, TEMPERATURE, LossConfig, name_of

from dhel_kcl.losses import build_loss
from dhel_kcl.theory import cross_polytope, minimum, simplex


@pytest.mark.parametrize("config", ALL, ids=name_of)
@pytest.mark.parametrize(("m", "d"), [(2, 1), (2, 3), (3, 3), (4, 3), (17, 16), (9, 128)])
def test_aligned_views_on_a_simplex_attain_it(config: LossConfig, m: int, d: int) -> None:
    points = simplex(m, d)
    assert minimum(config, m, d) == pytest.approx(build_loss(config)(points, points).item(), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("config", COMPLETELY_MONOTONE, ids=name_of)
@pytest.mark.parametrize("d", [1, 2, 3, 16])
def test_aligned_views_on_a_cross_polytope_attain_it(config: LossConfig, d: int) -> None:
    points = cross_polytope(d)
    assert minimum(config, 2 * d, d) == pytest.approx(build_loss(config)(points, points).item(), rel=1e-10, abs=1e-10)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    config=st.sampled_from(ALL),
    d=st.integers(2, 6),
    noise=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_no_batch_undercuts_it(config: LossConfig, d: int, noise: float, seed: int, data: st.DataObject) -> None:
    sizes = list(range(2, d + 2)) + ([2 * d] if config in COMPLETELY_MONOTONE else [])
    m = data.draw(st.sampled_from(sizes))
    minimiser = simplex(m, d) if m <= d + 1 else cross_polytope(d)
    generator = torch.Generator().manual_seed(seed)
    u, v = minimiser + noise * torch.randn(2, m, d, generator=generator, dtype=torch.float64)
    least = minimum(config, m, d)
    assert build_loss(config)(u, v).item() >= least - 1e-12 * max(1, abs(least))
    assert build_loss(config)(u, u).item() >= least - 1e-12 * max(1, abs(least))


def test_riesz_kernels_that_grow_faster_than_the_square_are_known_for_two_pairs_only() -> None:
    config = {"name": "kcl", "kernel": "riesz", "s": -3.0, "gamma": 1.0}
    assert minimum(config, 2, 3) == -2 * 2.0**3
    three = simplex(3, 3)
    poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 1e-3, 1.0]], dtype=torch.float64)
    loss = build_loss(config)
    assert loss(poles, poles) < loss(three, three), "so the simplex is not its minimiser"
    with pytest.raises(ValueError, match=r"riesz with s = -3 for m = 3 .* it is known for m = 2"):
        minimum(config, 3, 3)


@pytest.mark.parametrize("config", TEMPERATURE, ids=name_of)
def test_more_than_d_plus_one_pairs_are_refused(config: LossConfig) -> None:
    with pytest.raises(ValueError, match=r"m = 8 pairs in d = 4 dimensions is not known; it is known for m <= d \+ 1"):
        minimum(config, 8, 4)


@pytest.mark.parametrize(
    ("config", "m", "d", "said"),
    [
        ({"name": "kcl", "kernel": "gaussian", "t": 1.0, "gamma": 1.0}, 7, 4, r"gaussian for m = 7 .* m = 2d"),
        ({"name": "kcl", "kernel": "riesz", "s": 1.0, "gamma": 1.0}, 3, 4, "s = 1 > 0 has no minimum"),
        ({"name": "dhel", "temperature": 0.3}, 1, 4, "m >= 2 pairs in d >= 1 dimensions, got m = 1, d = 4"),
        ({"name": "dhel", "temperature": 0.3}, 2, 0, "got m = 2, d = 0"),
        ({"name": "dhel", "temperature": -1.0}, 2, 2, "temperature must be a positive finite number"),
        ({"name": "triplet"}, 2, 2, "name must be one of"),
    ],
)
def test_what_is_not_known_is_refused(config: LossConfig, m: int, d: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        minimum(config, m, d)


def test_the_theory_imports_no_more_than_it_needs() -> None:
    import subprocess
    import sys

    heavy = {"pandas", "matplotlib", "sklearn", "ffcv", "torchvision", "pydantic", "snakemake"}
    probe = f"import sys, dhel_kcl.theory; print(sorted({heavy!r} & set(sys.modules)))"
    outcome: Any = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
