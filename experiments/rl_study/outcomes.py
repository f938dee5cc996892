"""What the rows of a study come to: scores per cell, and per algorithm relative to dense training."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.rl_study.cells import DENSE, Cell
from experiments.rl_study.record import Row
from experiments.statistics import Array, Statistic, interval, mean


class Estimate(NamedTuple):
    """A statistic of scores and its 95 % interval."""

    point: float
    low: float
    high: float


class Outcome(NamedTuple):
    """How the runs of a cell ended.

    Attributes:
        cell: The cell.
        finished: For each seed that finished, its rows.
        failed: The last row of each seed that failed.
    """

    cell: Cell
    finished: dict[int, list[Row]]
    failed: list[Row]

    @property
    def scores(self) -> list[float]:
        """Final returns, one for each finished seed."""
        return [float(rows[-1].final_return or 0.0) for rows in self.finished.values()]

    @property
    def late_returns(self) -> list[float]:
        """Mean returns of the episodes that ended in the last tenth of training, one for each seed with any."""
        return [late for late in map(_late_return, self.finished.values()) if not math.isnan(late)]

    @property
    def measured_sparsity(self) -> float:
        """Mean fraction of zeros at the end, over the finished seeds; NaN if there are none."""
        ends = [rows[-1].online_sparsity for rows in self.finished.values()]
        return statistics.fmean(end for end in ends if end is not None) if ends else math.nan


class Relative(NamedTuple):
    """Scores of an algorithm at a sparsity, divided by the mean dense score of each game.

    Attributes:
        name: Algorithm, and width if it is not 1.
        sparsity: Target fraction of zeros.
        by_game: Scores of the finished seeds.
    """

    name: str
    sparsity: float
    by_game: dict[str, list[float]]


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """Groups rows by cell and seed, in order of first appearance; runs that have not ended are left out."""
    runs: dict[tuple[Cell, int], list[Row]] = defaultdict(list)
    for row in rows:
        runs[row.cell, row.seed].append(row)
    found: dict[Cell, Outcome] = {}
    for (cell, seed), own in runs.items():
        outcome = found.setdefault(cell, Outcome(cell, {}, []))
        if own[-1].failure:
            outcome.failed.append(own[-1])
        elif own[-1].is_last:
            outcome.finished[seed] = own
    return list(found.values())


def comparable_games(found: Sequence[Outcome]) -> list[str]:
    """Games whose mean dense score is above 0, so that scores relative to it mean something."""
    return [game for game, level in _dense_means(found).items() if level > 0]


def relative(found: Sequence[Outcome]) -> list[Relative]:
    """Relative scores of each algorithm and sparsity over all comparable games on which a seed finished."""
    dense = _dense_means(found)
    grouped: dict[tuple[str, float], Relative] = {}
    for outcome in found:
        cell = outcome.cell
        if dense.get(cell.game, 0) > 0 and outcome.finished:
            group = grouped.setdefault((cell.name, cell.sparsity), Relative(cell.name, cell.sparsity, {}))
            group.by_game[cell.game] = [score / dense[cell.game] for score in outcome.scores]
    return list(grouped.values())


def estimate(scores_by_task: Sequence[Sequence[float]], statistic: Statistic) -> Estimate:
    """A statistic of all scores, with the interval of a bootstrap stratified by task."""
    point = float(statistic(np.concatenate(scores_by_task)))
    return Estimate(point, *interval(scores_by_task, statistic))


def curve(outcome: Outcome) -> tuple[Array, Array]:
    """Steps, int[n], and by them the mean training return over the seeds with its interval, float[3, n].

    Stretches in which no episode of any seed ended are left out.
    """
    by_step: dict[int, list[float]] = defaultdict(list)
    for rows in outcome.finished.values():
        for row in rows:
            if row.training_return is not None:
                by_step[row.step].append(row.training_return)
    steps = sorted(by_step)
    return np.array(steps), np.array([estimate([by_step[step]], mean) for step in steps]).reshape(-1, 3).T


def _dense_means(found: Sequence[Outcome]) -> dict[str, float]:
    """By game, those of the narrowest dense network."""
    dense = sorted((o for o in found if o.cell.algorithm == DENSE and o.finished), key=lambda o: -o.cell.width)
    return {o.cell.game: statistics.fmean(o.scores) for o in dense}


def _late_return(rows: Sequence[Row]) -> float:
    late = [row for row in rows if row.episodes and row.step > 0.9 * rows[-1].step]
    count = sum(row.episodes or 0 for row in late)
    return sum((row.training_return or 0.0) * (row.episodes or 0) for row in late) / count if count else math.nan
