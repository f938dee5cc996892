"""How a study of image classifiers is read."""

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, differences, last
from experiments.harness.tables.published import RESNET50, VIT_B16_90
from experiments.vision.studies import STUDIES

SCORE = Measure("test accuracy, %", last("score"), 100)
PAPERS = {"resnet": RESNET50, "ste": VIT_B16_90}
# What the settings of the preset called `paper`, JaxPruner's on ImageNet (Lee et al., 2023), are.
WORDS = {
    "data": "for data",
    "image_size": "pixels of each side",
    "batch_size": "images in a batch",
    "model": "for a model",
    "steps": "steps",
    "learning_rate": "as the peak of the learning rate",
    "clip": "as the largest norm of all gradients (0: they are not clipped)",
    "distribution": "for the sparsity over the layers",
}


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    study = record["study"]
    published, deviations = PAPERS.get(study), ["No dropout."] if study == "ste" else []
    if published:
        paper = {name: (STUDIES[study].presets["paper"][name], text) for name, text in WORDS.items()}
        deviations = [*differences(record["settings"], paper), *deviations]
    return variants.layout(record, SCORE, questions=STUDIES, published=published, deviations=deviations)
