"""The rows of a study of sparse agents, and how they are read."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.agents.cells import Cell, grid
from experiments.common.agents.relative import relative_section
from experiments.harness.layout import Curve, Layout, Measure, Published, keys, last

NOTES = (
    "Returns are each seed's mean over its evaluation episodes; late is its mean return of the training episodes that"
    " ended in the last tenth of the steps, in which the agent explores. Brackets are 95 % percentile intervals of"
    " 2,000 bootstrap samples, in which the seeds of each game are redrawn among themselves (Agarwal et al., 2021)."
    " Zeros is the fraction of zeros in the weight matrices of the network that acts, at the end."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `results.csv`: a stretch of training, or how a run failed.

    Attributes:
        game: As given to the command line.
        algorithm: Name of the updater.
        sparsity: Target fraction of zeros, 0 for dense training.
        width: Factor on the channels of the network.
        seed: Of the run.
        step: Environment steps so far; of a failed run, those of its last row or of the stretch that broke it.
        episodes: That ended since the row before; empty if the run failed, like all measurements.
        training_return: Mean return of these episodes, in which the agent explores; empty if there were none.
        online_sparsity: Fraction of zeros in the weight matrices of the network that acts.
        target_sparsity: The same of the target network.
        final_return: Mean return of the evaluation after training; only in the last row of a run that finished.
        failure: Empty, or why the run ended early.
    """

    game: str
    algorithm: str
    sparsity: float
    width: int = 1
    seed: int
    step: int
    episodes: int | None = None
    training_return: float | None = None
    online_sparsity: float | None = None
    target_sparsity: float | None = None
    final_return: float | None = None
    failure: str = ""

    @property
    def cell(self) -> Cell:
        """The cell it belongs to."""
        return Cell(self.game, self.algorithm, self.sparsity, self.width)

    @property
    def is_last(self) -> bool:
        """Whether it says how its run ended."""
        return bool(self.failure) or self.final_return is not None


FINAL = Measure("return", last("final_return"), has_interval=True)


def layout(
    record: Mapping[str, Any],
    title: str,
    about: str,
    *,
    changes: tuple[int, int],
    deviations: Sequence[str],
    beside: Published | None,
    published: Published | None = None,
    further: Sequence[str] = (),
) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
        title: Of its report.
        about: What was trained.
        changes: Environment steps of the first and the last mask change.
        deviations: What differs from the papers' settings.
        beside: Numbers of a paper that stand beside ours relative to dense training.
        published: Numbers of a paper that stand beside our returns.
        further: What else the report says.
    """
    settings = record["settings"]
    every = grid(settings["games"], settings["algorithms"], settings["sparsities"], settings.get("width", (1,)))
    return Layout(
        title=title,
        about=about,
        row=Row,
        cell=Cell._fields,
        show=lambda key: Cell(*key).shown,
        cells=keys(record.get("cells", list(every))),
        seeds=tuple(settings["seeds"]),
        step="step",
        step_label="environment step",
        is_last=lambda row: row.is_last,
        scores=(FINAL, Measure("late", late_return, has_interval=True)),
        sparsity=Measure("zeros", last("online_sparsity"), digits=4),
        curve=Curve("return while training", "training_return"),
        changes=changes,
        published=published,
        deviations=tuple(deviations),
        notes=NOTES,
        sections=functools.partial(_sections, beside, further),
    )


def late_return(rows: Sequence[Row]) -> float | None:
    """Mean return of the episodes that ended in the last tenth of training; None if there were none."""
    late = [row for row in rows if row.episodes and row.step > 0.9 * rows[-1].step]
    total = math.fsum((row.training_return or 0.0) * (row.episodes or 0) for row in late)
    return total / sum(row.episodes or 0 for row in late) if late else None


def _sections(beside: Published | None, further: Sequence[str], found: Sequence[Any]) -> list[str]:
    return [relative_section(found, FINAL, beside), *further]
