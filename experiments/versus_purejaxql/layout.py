"""How the comparison with purejaxql is read."""

import functools
import itertools

from experiments.common.agents.versus import PACE, differences
from experiments.harness.cells import Cell
from experiments.harness.layout import Layout, Measure, Record, last

OURS, THEIRS = "sparse-plugins", "purejaxql"
SIDES = (OURS, THEIRS)
RETURN = Measure("return", last("evaluated_return"), has_interval=True)
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
    return Layout(
        title="PQN by purejaxql and by `rl.FusedTrainer`, with equal settings",
        about=f"{settings['steps']:,} environment steps a seed. {ABOUT}",
        cell={"game": "group", "side": "name"},
        numbers={"evaluated_return": float, "steps_per_cpu_second": float},
        cells=tuple(Cell(game, side) for game, side in itertools.product(settings["games"], SIDES)),
        seeds=tuple(settings["seeds"]),
        step="step",
        step_label="environment step",
        is_last=lambda row: row.evaluated_return is not None,
        scores=(RETURN, PACE),
        sparsity=None,
        curve=None,
        notes="Brackets are 95 % intervals of a bootstrap over seeds.",
        sections=functools.partial(differences, OURS, THEIRS, RETURN),
    )
