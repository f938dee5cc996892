"""Two programs that train the same agent: how far their returns differ, and their pace."""

import statistics
from collections.abc import Sequence

from experiments.harness.layout import Measure, last
from experiments.harness.tables import markdown_table
from experiments.harness.tables.outcomes import Outcome
from experiments.harness.tables.statistics import difference

PACE = Measure("agent steps per cpu-second", last("steps_per_cpu_second"), digits=0)


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
