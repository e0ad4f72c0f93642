"""A config mapping names a loss; whatever it cannot mean is refused with the valid choices."""

import subprocess
import sys

import pytest

from dhel_kcl import declarations
from dhel_kcl.losses import IMQ, Gaussian, GaussianRiesz, Log, Riesz, build_loss


@pytest.mark.parametrize(
    ("config", "described"),
    [
        ({"name": "infonce", "temperature": 0.5}, "InfoNCE(temperature=0.5, symmetric=True)"),
        ({"name": "infonce", "temperature": 1, "symmetric": False}, "InfoNCE(temperature=1.0, symmetric=False)"),
        ({"name": "ntxent", "temperature": 0.5}, "NTXent(temperature=0.5)"),
        ({"name": "dcl", "temperature": 0.5}, "DCL(temperature=0.5)"),
        ({"name": "dhel", "temperature": 0.3}, "DHEL(temperature=0.3, both_views=True)"),
        ({"name": "dhel", "temperature": 0.3, "both_views": False}, "DHEL(temperature=0.3, both_views=False)"),
        (
            {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0},
            "KCL(kernel=Gaussian(t=2.0), gamma=16.0, reference_weighting=False)",
        ),
        (
            {"name": "kcl", "kernel": "log", "t": 2, "gamma": 16, "reference_weighting": True},
            "KCL(kernel=Log(t=2.0), gamma=16.0, reference_weighting=True)",
        ),
    ],
)
def test_config_becomes_a_loss(config: dict, described: str) -> None:
    assert repr(build_loss(config)) == described


@pytest.mark.parametrize(
    ("name", "parameter", "kernel"),
    [
        ("gaussian", "t", Gaussian(0.5)),
        ("log", "t", Log(0.5)),
        ("imq", "c", IMQ(0.5)),
        ("riesz", "s", Riesz(0.5)),
        ("gaussian_riesz", "s", GaussianRiesz(0.5)),
    ],
)
def test_every_kernel_by_name(name: str, parameter: str, kernel) -> None:
    assert build_loss({"name": "kcl", "kernel": name, parameter: 0.5, "gamma": 1.0}).kernel == kernel


def test_the_config_is_left_as_it_was() -> None:
    config = {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0}
    build_loss(config)
    assert config == {"name": "kcl", "kernel": "gaussian", "t": 2.0, "gamma": 16.0}


NAMES = f"name must be one of {', '.join(sorted(declarations.losses()))}"
KERNELS = f"kernel must be one of {', '.join(sorted(declarations.kernels()))}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, f"{NAMES}; got None"),
        ({"temperature": 0.5}, NAMES),
        ({"name": "simclr", "temperature": 0.5}, f"{NAMES}; got 'simclr'"),
        ({"name": ["dhel"], "temperature": 0.5}, NAMES),
        ({"name": "dhel"}, "missing temperature for dhel; valid keys are name, temperature, both_views"),
        ({"name": "dhel", "temperature": 0.5, "tau": 1}, "unknown tau for dhel; valid keys are name, temperature"),
        ({"name": "ntxent", "temperature": 0.5, "symmetric": True}, "unknown symmetric for ntxent"),
        ({"name": "ntxent", "temperature": 0.5, 3: 1}, "unknown 3 for ntxent"),
        ({"name": "dhel", "temperature": 0.0}, "temperature must be a positive finite number, got 0.0"),
        ({"name": "dhel", "temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"name": "kcl", "gamma": 16.0, "t": 2.0}, f"{KERNELS}; got None"),
        ({"name": "kcl", "kernel": "rbf", "gamma": 16.0, "t": 2.0}, f"{KERNELS}; got 'rbf'"),
        (
            {"name": "kcl", "kernel": "imq", "gamma": 16.0, "t": 2.0},
            "unknown t for kcl/imq; valid keys are name, kernel, c, gamma, reference_weighting",
        ),
        ({"name": "kcl", "kernel": "imq", "gamma": 16.0}, "missing c for kcl/imq"),
        ({"name": "kcl", "kernel": "imq", "c": 1.0}, "missing gamma for kcl/imq"),
        ({"name": "kcl", "kernel": "gaussian", "t": -2.0, "gamma": 16.0}, "t must be a positive finite number"),
        ({"name": "kcl", "kernel": "riesz", "s": 0, "gamma": 16.0}, "s must be a non-zero finite number, got 0"),
    ],
)
def test_errors_list_what_is_valid_in_one_line(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_loss(config)
    assert "\n" not in str(error.value)


def test_losses_import_nothing_heavier_than_torch() -> None:
    probe = "import sys, torch; before = set(sys.modules); import dhel_kcl.losses; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & {"scipy", "sklearn", "pandas", "torchvision", "numba"}
