"""How a study of image classifiers is read."""

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, differences, last
from experiments.harness.tables.published import RESNET50, VIT_B16_90
from experiments.vision.studies import STUDIES

SCORE = Measure("test accuracy, %", last("score"), 100)
# JaxPruner's studies on ImageNet (Lee et al., 2023), of which the presets called `paper` have the settings.
COMMON = {
    "data": ("imagenet2012", "for data"),
    "image_size": (224, "pixels of each side"),
    "batch_size": (4096, "images in a batch"),
}
PAPERS = {
    "resnet": (
        RESNET50,
        {
            **COMMON,
            "model": ("resnet50", "for a model"),
            "steps": (31_200, "steps"),
            "learning_rate": (1.6, "as the peak of the learning rate"),
            "clip": (0.0, "as the largest norm of all gradients (0: they are not clipped)"),
            "distribution": ("uniform", "for the sparsity over the layers"),
        },
    ),
    "ste": (
        VIT_B16_90,
        {
            **COMMON,
            "model": ("vit_b16", "for a model"),
            "steps": (28_080, "steps"),
            "learning_rate": (3e-3, "as the peak of the learning rate"),
            "clip": (1.0, "as the largest norm of all gradients"),
            "distribution": ("erk", "for the sparsity over the layers"),
        },
    ),
}


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    published, paper = PAPERS.get(record["study"], (None, {}))
    deviations = [*differences(record["settings"], paper), *(["No dropout."] if published is VIT_B16_90 else [])]
    return variants.layout(record, SCORE, questions=STUDIES, published=published, deviations=deviations)
