"""Figures and tables of a small committed results table: their points to the digit, and that the page is not blank."""

import golden
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dhel_kcl import declarations
from dhel_kcl.paper.render import load_target, read_points

TARGETS = declarations.scripts(golden.SCRIPTS)


@pytest.mark.parametrize("name", TARGETS)
def test_the_points_are_those_committed(name: str, tmp_path) -> None:
    golden.write_points(golden.points(name), tmp_path / "points.csv")
    expected, made = (
        read_points(folder / file) for folder, file in ((golden.FOLDER, f"{name}.csv"), (tmp_path, "points.csv"))
    )
    pd.testing.assert_frame_equal(made, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, script in TARGETS.items() if script.is_figure])
def test_the_picture_is_not_blank(name: str) -> None:
    target = load_target(golden.SCRIPTS / f"{name}.py")
    assert target.draw
    canvas = FigureCanvasAgg(target.draw(read_points(golden.FOLDER / f"{name}.csv")))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    ink = (pixels < 250).any(axis=1)
    coloured = np.ptp(pixels[ink].astype(int), axis=1) > 40
    assert ink.mean() > 0.01
    assert coloured.mean() > 0.02
    assert not pd.read_csv(golden.FOLDER / f"{name}.csv").empty
