"""What the rows of a study come to: which runs of a cell finished and which failed, and numbers over the finished."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.harness.cells import Cell, Run
from experiments.harness.layout import Layout, Measure, Row


class Outcome(NamedTuple):
    """How the runs of a cell ended.

    Attributes:
        cell: Which.
        finished: For each seed that finished, its rows.
        failed: The last row of each seed that failed.
    """

    cell: Cell
    finished: dict[int, list[Row]]
    failed: list[Row]

    def values(self, measure: Measure) -> list[float]:
        """A number of each finished run, where there is one, for readers."""
        found = [measure.of(rows) for rows in self.finished.values()]
        return [measure.factor * value for value in found if value is not None]


def by_run(rows: Iterable[Row], layout: Layout) -> dict[Run, list[Row]]:
    """Rows of each run, in order of first appearance."""
    runs: dict[Run, list[Row]] = {}
    for row in rows:
        runs.setdefault(layout.run_of(row), []).append(row)
    return runs


def outcomes(rows: Iterable[Row], layout: Layout) -> list[Outcome]:
    """Groups rows by cell and seed, in order of first appearance; runs that have not ended are left out."""
    found: dict[Cell, Outcome] = {}
    for (cell, seed), rows_of_run in by_run(rows, layout).items():
        outcome = found.setdefault(cell, Outcome(cell, {}, []))
        if rows_of_run[-1].failure:
            outcome.failed.append(rows_of_run[-1])
        elif layout.is_last(rows_of_run[-1]):
            outcome.finished[seed] = rows_of_run
    return list(found.values())


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and sample standard deviation of numbers, of one the number itself.

    Example:
        >>> spread([55.0, 60.0], 1), spread([0.25], 2), spread([], 2)
        ('57.5 ± 3.5', '0.25', '')
    """
    if not values:
        return ""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
