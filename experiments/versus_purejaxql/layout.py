"""How the comparison with purejaxql is read."""

import itertools

from experiments.common.agents.versus import versus_layout
from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Record

OURS, THEIRS = "sparse-plugins", "purejaxql"
SIDES = (OURS, THEIRS)
ABOUT = (
    "Return is the mean of whole episodes of the greedy policy after training, played by the same function for both"
    " sides. Agent steps per cpu-second are those of all seeds, which a program computes together on either side;"
    " compiling is left out. Games are gymnax's, without sticky actions. Equal are networks, initial weights,"
    " optimizer, rates, exploration and returns; not equal are random numbers, and that an episode which a time limit"
    " cuts off is worth nothing afterwards in purejaxql, but what its last observation is said to be here."
)


def layout(record: Record) -> Layout:
    """The layout of the comparison.

    Args:
        record: What its `config.json` holds.
    """
    settings = record["settings"]
    return versus_layout(
        record,
        "PQN by purejaxql and by `rl.FusedTrainer`, with equal settings",
        f"{settings['steps']:,} environment steps a seed. {ABOUT}",
        cells=[Cell(game, side) for game, side in itertools.product(settings["games"], SIDES)],
        group="game",
        score="evaluated_return",
        step=("step", "environment step"),
        ours=OURS,
        theirs=THEIRS,
    )
