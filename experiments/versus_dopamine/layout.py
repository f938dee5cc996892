"""How the comparison with Dopamine is read."""

import itertools

from experiments.common.agents.versus import versus_layout
from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Record
from experiments.versus_dopamine.outcomes import DOPAMINE, OURS, SIDES, TASKS

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
    return versus_layout(
        record,
        "DQN by Dopamine and by `rl.FusedTrainer`, with equal settings",
        ABOUT,
        cells=[Cell(TASKS[task].game, side) for task, side in itertools.product(record["settings"]["tasks"], SIDES)],
        group="task",
        score="last_return",
        step=("episodes", "episode"),
        ours=OURS,
        theirs=DOPAMINE.capitalize(),
        groups={name: task.game for name, task in TASKS.items()},
    )
