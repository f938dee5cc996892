"""Two programs that train the same agent: how far their returns differ, and their pace."""

import functools
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.tables import markdown_table
from experiments.harness.tables.outcomes import Outcome
from experiments.harness.tables.statistics import difference

PACE = Measure("agent steps per cpu-second", last("steps_per_cpu_second"), digits=0)


def versus_layout(
    record: Record,
    title: str,
    about: str,
    *,
    cells: Sequence[Cell],
    group: str,
    score: str,
    step: tuple[str, str],
    ours: str,
    theirs: str,
    **further: Any,
) -> Layout:
    """The layout of a comparison, whose cells are sides by what they train.

    Args:
        record: What its `config.json` holds.
        title: Title of its report.
        about: What was trained.
        cells: Its cells, named after the sides.
        group: Column of what was trained.
        score: Column of the return.
        step: Column that counts steps, and what a step is.
        ours: Name of our side.
        theirs: Name of the program that it is compared with, for a heading.
        **further: More of `Layout`.
    """
    returns = Measure("return", last(score), has_interval=True)
    return Layout(
        title=title,
        about=about,
        cell={group: "group", "side": "name"},
        numbers={score: float, "steps_per_cpu_second": float},
        cells=tuple(cells),
        seeds=tuple(record["settings"]["seeds"]),
        step=step[0],
        step_label=step[1],
        is_last=lambda row: getattr(row, score) is not None,
        scores=(returns, PACE),
        sparsity=None,
        curve=None,
        notes="Brackets are 95 % intervals of a bootstrap over seeds.",
        sections=functools.partial(differences, ours, theirs, returns),
        **further,
    )


def differences(ours: str, theirs: str, measure: Measure, found: Sequence[Outcome]) -> list[str]:
    """How our returns differ from those of the others, with intervals, and how our pace does.

    Args:
        ours: Name of our cells.
        theirs: The same of the program that it is compared with.
        measure: The return.
        found: Outcomes of the study.
    """
    by_place = {(outcome.cell.group, outcome.cell.label): outcome for outcome in found if outcome.finished}
    lines = []
    for (game, side), other in by_place.items():
        if side != ours and (our := by_place.get((game, ours))) is not None:
            pace = statistics.median(our.values(PACE)) / statistics.median(other.values(PACE))
            less, (low, high) = difference(our.values(measure), other.values(measure))
            lines.append((f"{game}, {side}", f"{less:+.2f} ({low:+.2f} to {high:+.2f})", f"{pace:.1f}"))
    header = ("", "our return less this", "our agent steps per cpu-second / these")
    return [f"## Ours beside {theirs}", markdown_table(header, lines)] if lines else []
