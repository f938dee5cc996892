"""The rows of a study of sparse agents, and how they are read."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from experiments.common.agents.relative import relative_section
from experiments.harness.cells import grid
from experiments.harness.layout import Curve, Layout, Measure, Published, Record, Row, last

NOTES = (
    "Returns are each seed's mean over its evaluation episodes; late is its mean return of the training episodes that"
    " ended in the last tenth of the steps, in which the agent explores. Brackets are 95 % percentile intervals of"
    " 2,000 bootstrap samples, in which the seeds of each game are redrawn among themselves (Agarwal et al., 2021)."
    " Zeros is the fraction of zeros in the weight matrices of the network that acts, at the end."
)
UNKNOWN_DROP = (
    "What set and rigl of the published table exchanged at first is not known: 0.1 is the default of JaxPruner's"
    " program; a line of its gin file says 0.3, but it is commented out, and misspelt."
)

CELL = {"game": "group", "algorithm": "name", "sparsity": "sparsity", "width": "width"}
# Of the episodes that ended since the row before, while exploring; at the end zeros in the weight matrices of the
# network that acts and of the target network, and the mean return of the evaluation.
NUMBERS = {
    "episodes": int,
    "training_return": float,
    "online_sparsity": float,
    "target_sparsity": float,
    "final_return": float,
}
FINAL = Measure("return", last("final_return"), has_interval=True)


def layout(
    record: Record,
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
        title: Title of its report.
        about: What was trained.
        changes: Environment steps of the first and the last mask change.
        deviations: What differs from the papers' settings.
        beside: Numbers of a paper that stand beside ours relative to dense training.
        published: Numbers of a paper that stand beside our returns.
        further: What else the report says.
    """
    settings = record["settings"]
    every = grid(settings["algorithms"], settings["sparsities"], settings["games"], settings.get("width", (1,)))
    return Layout(
        title=title,
        about=about,
        cell=CELL,
        numbers=NUMBERS,
        cells=tuple(every),
        seeds=tuple(settings["seeds"]),
        step="step",
        step_label="environment step",
        is_last=lambda row: bool(row.failure) or row.final_return is not None,
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
