"""How the comparison with Dopamine is read."""

import functools
import itertools

from experiments.common.agents.versus import PACE, differences
from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, SIDES, TASKS

RETURN = Measure("return", last("last_return"), has_interval=True)
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
        sections=functools.partial(differences, OURS, DOPAMINE.capitalize(), RETURN),
    )
