"""Contrasts between the trained networks of one data set: estimate, variance over seeds and over test images.

A *cell* is a loss at one hyperparameter setting and one level of the study's axis (the batch size), with one run for
each seed. The model is the value of a run = its cell + its seed + noise, fitted by ordinary least squares: seeds are
blocks, because a seed fixes initialisation and order for every cell, and the noise has one variance, pooled over cells.
A contrast is a sum over runs with weights that add up to 0 within each seed, so that the seeds' effects cancel.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.api import OLS

from dhel_kcl.experiment.config import STRENGTHS
from dhel_kcl.results.robustness import HYPERPARAMETERS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Weights = dict[int, float]
"""The weight of each run in a contrast, by the run's position in `Runs.table`."""

ABSENT = -math.inf


class Estimate(NamedTuple):
    """A contrast: its value, variance over seeds with its degrees of freedom, and variance over test images."""

    value: float
    seeds: float
    degrees: float
    images: float = 0.0

    @property
    def standard_error(self) -> float:
        """The standard error from both components."""
        return math.sqrt(self.seeds + self.images)

    @property
    def total_degrees(self) -> float:
        """Degrees of freedom of the summed variance (F. E. Satterthwaite, Biometrics Bulletin 2, 1946).

        The thousands of test images count as infinitely many degrees.
        """
        return self.degrees * (1 + self.images / self.seeds) ** 2 if self.seeds > 0 else self.degrees


@dataclass(frozen=True)
class Cells:
    """The cells of one loss.

    Attributes:
        settings: its hyperparameter settings, each the values of all `HYPERPARAMETERS`, `ABSENT` for those of others.
        planned: (settings, levels, seeds) position of each run in `Runs.table`, -1 where there is none.
        runs: the same, -1 where the cell is not complete: a run is missing or could not be measured.
    """

    settings: list[tuple[float, ...]]
    planned: Integers
    runs: Integers

    @cached_property
    def complete(self) -> NDArray[np.bool_]:
        """(settings, levels) whether the cell has a value at every seed."""
        return np.asarray((self.runs >= 0).all(axis=2))

    def ladder(self, centre: int) -> dict[int, int]:
        """Return the settings that differ from a centre in strength only, by their rank above (+) or below (-) it."""
        strength = _strength(self.settings[centre])
        apart = [[a == b for a, b in zip(each, self.settings[centre], strict=True)] for each in self.settings]
        rungs = [place for place, same in enumerate(apart) if all(same[:strength] + same[strength + 1 :])]
        rungs.sort(key=lambda place: self.settings[place][strength])
        return {rank - rungs.index(centre): place for rank, place in enumerate(rungs)}

    def at_strength(self, value: float) -> list[int]:
        """Return the settings with a strength."""
        return [place for place, setting in enumerate(self.settings) if setting[_strength(setting)] == value]


def _strength(setting: tuple[float, ...]) -> int:
    """Return the position of the hyperparameter that is a setting's strength."""
    places = [HYPERPARAMETERS.index(name) for name in STRENGTHS if setting[HYPERPARAMETERS.index(name)] != ABSENT]
    return places[0] if places else 0


class Shared(NamedTuple):
    """A cell that two losses have: its rank of strength and its level, and the run of each at one seed."""

    rank: int
    level: int
    ours: int
    theirs: int


class Runs:
    """The runs of one data set with one measured value each.

    Args:
        table: a row for each run: `loss`, every hyperparameter, `level` (of the axis), `seed`, `value` (NaN if it could
            not be measured), `validation` (of its accuracy, which chooses settings; NaN if there is none), `diverged`.
        hits: (runs, images) whether each run classified each test image correctly; None if the value has no test
            images, or if hits are not known.
        images: the number of test images, for the bound that replaces unknown hits; NaN if the value has none.
        centres: the strength at the centre of a loss's settings, where it was fixed beforehand.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        hits: NDArray[np.bool_] | None = None,
        images: float = math.nan,
        centres: Mapping[str, float] | None = None,
    ) -> None:
        self.table = table.reset_index(drop=True)
        self.hits, self.images, self.centres = hits, images, dict(centres or {})
        self.levels = sorted(self.table["level"].unique())
        self.seeds = sorted(self.table["seed"].unique())
        self.values: Floats = self.table["value"].to_numpy(float)
        self.validation: Floats = self.table["validation"].to_numpy(float)
        self.diverged = self.table["diverged"].to_numpy(bool)
        self.cells = {str(loss): self._cells(rows) for loss, rows in self.table.groupby("loss", sort=False)}
        self._centres: dict[tuple[str, int], int | None] = {}

    def _cells(self, rows: pd.DataFrame) -> Cells:
        settings = sorted({_comparable(setting) for setting in rows[HYPERPARAMETERS].to_numpy()})
        place = {setting: index for index, setting in enumerate(settings)}
        planned = np.full((len(settings), len(self.levels), len(self.seeds)), -1)
        for run, level, seed, *setting in rows[["level", "seed", *HYPERPARAMETERS]].itertuples():
            planned[place[_comparable(setting)], self.levels.index(level), self.seeds.index(seed)] = run
        runs = np.where(np.isnan(self.values[planned]), -1, planned)
        runs[(runs < 0).any(axis=2)] = -1
        return Cells(settings, planned, runs)

    def centre(self, loss: str, seed: int) -> int | None:
        """Return the setting at the centre of a loss's cells for one seed, or None if there is none.

        It is the one fixed beforehand, or else the one with the best validation accuracy on the *other* seeds, so that
        no run takes part in its own choice and a loss with more settings gains nothing by chance. The choice is among
        the settings that were run at the most levels, by the levels that all of them have; a tie goes to the smallest
        hyperparameters. With one seed, it is the choice of that seed. A run that could not be measured does not move
        the centre: its cell is not compared. Without a validation accuracy there is no centre.

        Args:
            loss: the loss.
            seed: position of the seed in `seeds`.
        """
        if (loss, seed) not in self._centres:
            self._centres[loss, seed] = self._centre(self.cells[loss], self.centres.get(loss), seed)
        return self._centres[loss, seed]

    def _centre(self, cells: Cells, strength: float | None, seed: int) -> int | None:
        there = np.asarray((cells.planned >= 0).any(axis=2))
        levels = there.sum(axis=1)
        if strength is not None:
            return max(cells.at_strength(strength), key=lambda place: levels[place], default=None)
        candidates = np.flatnonzero(levels == levels.max())
        if len(candidates) == 1:
            return int(candidates[0])
        others = [each for each in range(len(self.seeds)) if each != seed] or [seed]
        shared = there[candidates].all(axis=0)
        runs = cells.planned[candidates][:, shared if shared.any() else slice(None)][:, :, others]
        accuracies = np.where(runs < 0, np.nan, self.validation[runs]).reshape(len(candidates), -1)
        known = ~np.isnan(accuracies).all(axis=1)
        if not known.any():
            return None
        return int(candidates[known][np.argmax(np.nanmean(accuracies[known], axis=1))])

    def shared(self, loss: str, baseline: str, seed: int) -> Iterator[Shared]:
        """Yield the cells that two losses have at one seed: the same level, and the same rank around their centres."""
        centres = self.centre(loss, seed), self.centre(baseline, seed)
        if centres[0] is None or centres[1] is None:
            return
        ours, theirs = self.cells[loss], self.cells[baseline]
        rungs, others = ours.ladder(centres[0]), theirs.ladder(centres[1])
        for rank in sorted(rungs.keys() & others.keys()):
            both = ours.complete[rungs[rank]] & theirs.complete[others[rank]]
            for level in np.flatnonzero(both):
                yield Shared(
                    rank, int(level), ours.runs[rungs[rank], level, seed], theirs.runs[others[rank], level, seed]
                )

    def estimate(self, weights: Weights) -> Estimate:
        """Estimate a contrast from the weights of the runs; its variance is NaN with one seed."""
        places, weight = np.array(list(weights)), np.array(list(weights.values()))
        seeds, degrees = self._over_seeds(places, weight)
        return Estimate(float(weight @ self.values[places]), seeds, degrees, self._over_images(places, weight))

    def _over_seeds(self, places: Integers, weight: Floats) -> tuple[float, float]:
        """Return the variance of a contrast over seeds, and its degrees of freedom.

        It comes from the noise pooled over cells. A contrast of a cell in which some runs diverged, and others did not,
        has its own: pooled with the cells that trained, that spread would count as a fraction of itself, and a single
        diverged run would decide. Its variance is that of the contrasts of single seeds, whose sum it is.
        """
        if any(0 < self.diverged[self._cell_of[place]].mean() < 1 for place in places):
            count = len(self.seeds)
            of_seeds = np.bincount(self._seed_of[places], weight * self.values[places], count)
            return count * float(np.var(of_seeds, ddof=1)), count - 1.0
        variance, degrees = self._spread
        return variance * float(weight @ weight), degrees

    @cached_property
    def _spread(self) -> tuple[float, float]:
        """The variance of the noise, pooled over the cells in which no run diverged, and its degrees of freedom."""
        return residual_variance(self.values, self._trained, self._seed_of)

    @cached_property
    def _trained(self) -> list[Integers]:
        """The complete cells in which no run diverged, each the positions of its runs."""
        cells = [cell for cells in self.cells.values() for cell in cells.runs[cells.complete]]
        return [cell for cell in cells if not self.diverged[cell].any()]

    @cached_property
    def _cell_of(self) -> dict[int, Integers]:
        return {int(run): cell for cells in self.cells.values() for cell in cells.runs[cells.complete] for run in cell}

    @cached_property
    def _seed_of(self) -> Integers:
        return self.table["seed"].map(self.seeds.index).to_numpy()

    def _over_images(self, places: Integers, weight: Floats) -> float:
        """Return the variance of a contrast over draws of the test images, with the same networks.

        With hits it is the limit of a bootstrap over images: the variance over images of the weighted sum of the hits,
        divided by their number. Without, it is a bound: runs of one loss with weights of one sign are taken to fail on
        the same images, and all others to fail independently.
        """
        if math.isnan(self.images):
            return 0.0
        if self.hits is not None:
            return float(np.var(weight @ self.hits[places]) / self.hits.shape[1])
        share = np.abs(weight) * np.sqrt(self.values[places] * (1 - self.values[places]))
        groups = pd.Series(share).groupby([self.table["loss"].to_numpy()[places], np.sign(weight)]).sum()
        return float((groups**2).sum() / self.images)


def residual_variance(values: Floats, cells: Iterable[Integers], seed_of: Integers) -> tuple[Any, float]:
    """Return the variance of what cells and seeds leave of the values, and its degrees of freedom.

    Args:
        values: (runs,), or (runs, replicates) for as many variances.
        cells: the positions of the runs of each cell.
        seed_of: (runs,) the seed of each run, as its position among the seeds.

    Returns:
        The variance, or (replicates,) variances, and the degrees of freedom; NaN and 0 if there are none.
    """
    cells = list(cells)
    if not cells or len(cells[0]) < 2:
        return math.nan, 0.0
    rows = np.concatenate(cells)
    cell = np.repeat(np.arange(len(cells)), [len(each) for each in cells])
    blocks = pd.get_dummies(pd.Series(seed_of[rows]), drop_first=True, dtype=float).to_numpy()
    design = np.column_stack([np.eye(len(cells))[cell], blocks])
    fit = OLS(values[rows], design).fit()
    if fit.df_resid < 1:
        return math.nan, 0.0
    return (fit.resid**2).sum(axis=0) / fit.df_resid, float(fit.df_resid)


def _comparable(setting: Iterable[float]) -> tuple[float, ...]:
    """Return a setting with `ABSENT` for the hyperparameters that a loss does not have, because NaN equals nothing."""
    return tuple(ABSENT if math.isnan(value) else float(value) for value in setting)
