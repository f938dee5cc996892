"""How a study of T5 is read."""

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, differences, last
from experiments.harness.tables.published import T5_BASE
from experiments.t5.studies import STUDIES

SCORE = Measure("token accuracy, %", last("score"), 100)
# JaxPruner's study of T5 base on C4 (Lee et al., 2023), of which the preset called `paper` has the settings.
PAPER = {
    "data": ("c4", "for data"),
    "model": ("base", "for a model"),
    "length": (568, "tokens of a text"),
    "batch_size": (256, "texts in a batch"),
    "steps": (100_000, "steps"),
    "learning_rate": (1e-4, "as the peak of the learning rate"),
    "distribution": ("erk", "for the sparsity over the layers"),
}


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    deviations = [
        "Published losses are those of T5's word pieces, ours those of bytes: they are not on one scale.",
        *differences(record["settings"], PAPER),
        "Gradients are clipped by their norm; in the paper's program each entry is, at 1.",
    ]
    published = T5_BASE if record["study"] == "algorithms" else None
    return variants.layout(record, SCORE, questions=STUDIES, published=published, deviations=deviations)
