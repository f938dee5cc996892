"""How a study of T5 is read."""

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, differences, last
from experiments.harness.tables.published import T5_BASE
from experiments.t5.studies import STUDIES

SCORE = Measure("token accuracy, %", last("score"), 100)
# What the settings of the preset called `paper`, JaxPruner's for T5 base on C4 (Lee et al., 2023), are.
WORDS = {
    "data": "for data",
    "model": "for a model",
    "length": "tokens of a text",
    "batch_size": "texts in a batch",
    "steps": "steps",
    "learning_rate": "as the peak of the learning rate",
    "distribution": "for the sparsity over the layers",
}


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    paper = STUDIES["algorithms"].presets["paper"]
    deviations = [
        "Published losses are those of T5's word pieces, ours those of bytes: they are not on one scale.",
        *differences(record["settings"], {name: (paper[name], text) for name, text in WORDS.items()}),
        "Gradients are clipped by their norm; in the paper's program each entry is, at 1.",
    ]
    published = T5_BASE if record["study"] == "algorithms" else None
    return variants.layout(record, SCORE, questions=STUDIES, published=published, deviations=deviations)
