"""Which attacks meet which defences, and what was expected."""

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.study import Question, Variants

ATTACKS = ("signs", "labels")
DEFENCES = ("mean", "clipped mean", "median", "trimmed mean", "Krum", "multi-Krum")


def cells() -> Variants:
    """Every defence without an attack, and against one and two hostile clients of either kind."""
    found: Variants = {}
    for defence in DEFENCES:
        found[f"{defence}, no attack"] = {"defence": defence, "attack": None, "count": 0}
        for attack in ATTACKS:
            for count, number in ((1, "one"), (2, "two")):
                cell = {"defence": defence, "attack": attack, "count": count}
                found[f"{defence}, {number} turning {attack}"] = cell
    return found


STUDIES = {
    "clients": Question(
        "Hostile clients in sparse federated averaging",
        "without an attack median, trimmed mean and multi-Krum within 3 points of the mean, the clipped mean level with"
        " it, Krum 5 to 15 below. Turned signs, sent tenfold: the mean falls to chance with one client of ten, let"
        " alone two; the clipped mean loses up to 3 points, median, trimmed mean and multi-Krum up to 3 with one and 6"
        " with two, Krum nothing. Turned labels, sent tenfold: the mean falls below 10 %, the others lose as little as"
        " against turned signs.",
        cells(),
        {"short": {}, "long": {"rounds": 200}},
    ),
}


def layout(record: Record) -> Layout:
    """How its rows are read."""
    return variants.layout(record, Measure("test accuracy, %", last("score"), 100), "round", questions=STUDIES)
