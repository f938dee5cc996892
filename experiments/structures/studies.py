"""What is asked of structures, and what was expected."""

from experiments.common.supervised.studies import structure_cells
from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.study import Question

STUDIES = {
    "federated": Question(
        "Structures at one half in federated averaging",
        "unstructured and 2:4 level with dense, 4x4 blocks behind them, channels last; bytes about half of dense, and"
        " the fewer the larger the units, because masks of blocks and channels cost next to nothing.",
        structure_cells(()),
        {"short": {}, "long": {"rounds": 1000}},
    ),
    "rl": Question(
        "Structures at one half in a DQN on CartPole",
        "no difference between any of them and dense: the network has room to spare.",
        structure_cells(()),
        {"short": {"seeds": tuple(range(10))}},
    ),
}
_SCORES = {
    "federated": (Measure("test accuracy, %", last("score"), 100), "round"),
    "rl": (Measure("return", last("score")), "environment step"),
}


def layout(record: Record) -> Layout:
    """How rows of both are read."""
    return variants.layout(record, *_SCORES[record["study"]], questions=STUDIES)
