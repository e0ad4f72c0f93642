"""Losses look different to every reader, those that are added later too."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from dhel_kcl.declarations import loss_titles
from dhel_kcl.paper import looks
from dhel_kcl.results.names import BASELINES, PROPOSED, paper_first

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009:
# severity 1, on linear RGB.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = np.array([0.95047, 1, 1.08883])


def seen(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* of a colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_white_is_white() -> None:
    np.testing.assert_allclose(seen("white", "all cones"), [100, 0, 0], atol=0.05)


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_of_two_losses_differ_to_every_kind_of_eye(vision: str) -> None:
    colours = {look.name: seen(look.colour, vision) for look in looks.LOSSES.values()}
    distances = {
        pair: np.linalg.norm(colours[pair[0]] - colours[pair[1]]) for pair in itertools.combinations(colours, 2)
    }
    assert min(distances.values()) > 20, min(distances, key=lambda pair: distances[pair])


def test_each_loss_has_a_marker_of_its_own() -> None:
    markers = [look.marker for look in looks.LOSSES.values()]
    assert len(set(markers)) == len(markers)


def test_losses_of_one_family_have_dashes_of_their_own() -> None:
    for family in (BASELINES, PROPOSED[1:]):
        assert len({str(looks.LOSSES[loss].dash) for loss in family}) == 3


def test_the_reserve_of_looks_has_no_two_alike() -> None:
    titles = loss_titles() | {f"mine{number:02}": f"Mine {number}" for number in range(30)}
    more = looks._looks(paper_first(titles, (*BASELINES, *PROPOSED)))
    assert len({(look.colour, look.marker) for look in more.values()}) == len(titles)
    assert list(more)[:7] == ["infonce", "ntxent", "dcl", "dhel", "kcl_gaussian", "kcl_log", "kcl_imq"]
    assert {label: more[label] for label in looks.LOSSES} == looks.LOSSES, "the paper's losses keep theirs"
