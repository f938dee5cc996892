"""How the comparison with Dopamine is read."""

import itertools
import statistics
from collections.abc import Sequence

from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.tables import markdown_table
from experiments.harness.tables.outcomes import Outcome
from experiments.harness.tables.statistics import difference
from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, SIDES, TASKS

RETURN = Measure("return", last("last_return"), has_interval=True)
PACE = Measure("agent steps per cpu-second", last("steps_per_cpu_second"), digits=0)
ABOUT = (
    "Return is the mean of the episodes that ended in the last fifth of training, exploration included. Agent steps per"
    " cpu-second include learning and leave compiling out; ours are those of all seeds, which one process computes"
    " together. Dopamine plays Gymnasium's CartPole and MinAtar's Breakout, our side those of gymnax. Dopamine's replay"
    ' leaves out the transition that ends an episode; "last transitions kept" has it.'
)


def layout(record: Record) -> Layout:
    """The layout of the comparison.

    Args:
        record: What its `config.json` holds.
    """
    settings = record["settings"]
    return Layout(
        title="DQN by Dopamine and by `rl.FusedTrainer`, with equal settings",
        about=ABOUT,
        cell={"task": "group", "side": "name"},
        numbers={"last_return": float, "steps_per_cpu_second": float},
        groups={name: task.game for name, task in TASKS.items()},
        cells=tuple(Cell(TASKS[task].game, side) for task, side in itertools.product(settings["tasks"], SIDES)),
        seeds=tuple(settings["seeds"]),
        step="episodes",
        step_label="episode",
        is_last=lambda row: row.last_return is not None,
        scores=(RETURN, PACE),
        sparsity=None,
        curve=None,
        notes="Brackets are 95 % intervals of a bootstrap over seeds.",
        sections=differences,
    )


def differences(found: Sequence[Outcome]) -> list[str]:
    """How our returns differ from those of Dopamine, with intervals, and how our pace does."""
    by_place = {(outcome.cell.group, outcome.cell.label): outcome for outcome in found if outcome.finished}
    lines = []
    for (game, side), theirs in by_place.items():
        if side != OURS and (ours := by_place.get((game, OURS))) is not None:
            pace = statistics.median(ours.values(PACE)) / statistics.median(theirs.values(PACE))
            less, (low, high) = difference(ours.values(RETURN), theirs.values(RETURN))
            lines.append((f"{game}, {side}", f"{less:+.2f} ({low:+.2f} to {high:+.2f})", f"{pace:.1f}"))
    header = ("", "our return less this", "our agent steps per cpu-second / these")
    return [f"## Ours beside {DOPAMINE.capitalize()}", markdown_table(header, lines)] if lines else []
