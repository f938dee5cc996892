"""The studies of image classifiers.

Presets: `short` takes minutes on two cores; `long` is the same data, larger and longer, for an accelerator; `paper` has
JaxPruner's settings (Lee et al., 2023) on ImageNet, but no dropout. Its batches of 4096 are more than one accelerator
holds: `--batch-size 256 --learning-rate 0.1 --steps 499200` is the same run of ResNet-50 there, for mask changes are
placed by fractions of the steps.
"""

import functools

from experiments.common.supervised.probes import memory, spectra
from experiments.common.supervised.studies import (
    DENSE_CELL,
    algorithm_cells,
    presets,
    storage_cells,
    structure_cells,
    with_masked_gradients,
)
from experiments.harness.study import Question, Variants

HEAD = "head/kernel"

_RESNET = {
    "model": "resnet20",
    "image_size": 14,
    "learning_rate": 0.3,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "evaluations": 5,
}
_VIT = {"model": "vit_small", "image_size": 20, "learning_rate": 5e-3, "steps": 600}
_LONG = {"image_size": 28, "steps": 6_000, "batch_size": 128, "seeds": (0, 1, 2, 3, 4), "evaluations": 30}
_RESNET50 = {
    **{"data": "imagenet2012", "image_size": 224, "model": "resnet50", "optimizer": "sgd", "learning_rate": 1.6},
    **{"batch_size": 4096, "steps": 31_200, "warmup": 0.05, "weight_decay": 1e-4, "clip": 0.0},
    "distribution": "uniform",
    **{"change_from": 10_000 / 31_200, "change_until": 25_000 / 31_200, "changes": 15, "evaluations": 50},
}
_VIT_B16 = {
    **{"data": "imagenet2012", "image_size": 224, "model": "vit_b16", "learning_rate": 3e-3, "distribution": "erk"},
    **{"batch_size": 4096, "steps": 28_080, "warmup": 10_000 / 28_080, "weight_decay": 0.3, "clip": 1.0},
    **{"change_from": 10_000 / 28_080, "change_until": 20_000 / 28_080, "changes": 10, "evaluations": 50},
}
_PUBLISHED = ("magnitude", "global_magnitude", "saliency", "rigl", "set", "static_sparse", "random")


_resnet = functools.partial(presets, _RESNET, _LONG, _RESNET50)
_vit = functools.partial(presets, _VIT, _LONG, _VIT_B16)


_DISTRIBUTIONS: Variants = {
    f"{prefix}{distribution}": {"algorithm": algorithm, "dist_type": distribution}
    for algorithm, prefix in (("magnitude", ""), ("static_sparse", "static "))
    for distribution in ("uniform", "erk")
}


STUDIES = {
    "resnet": Question(
        "Algorithms on residual networks",
        "the published order for ResNet-50 at 80 % (JaxPruner: dense 76.7, magnitude and global magnitude 75.5,"
        " saliency 74.9, rigl 74.8, set 74.6, static 71.3, random 70.2): dense first, the pruners by magnitude or"
        " saliency within a point or two of it, then rigl and set, static and random last; wider gaps than published,"
        " as training is short. Added after a first run, where random ended at 46 %: with masked gradients it reaches"
        " static, for the gradients of the pruned four fifths shrink a clipped step to less than half; magnitude gains"
        " less than a point.",
        with_masked_gradients(algorithm_cells(_PUBLISHED), ["magnitude", "random"]),
        _resnet(),
    ),
    "ste": Question(
        "Straight-through estimation on vision Transformers",
        "as published for ViT-B/16 at 80 % (JaxPruner, 90 epochs: magnitude_ste 74.2, dense 74.0, magnitude 72.9,"
        " static 64.6): magnitude_ste level with dense, magnitude a little below, static far below.",
        algorithm_cells(("magnitude", "magnitude_ste", "static_sparse")),
        _vit(distribution="erk"),
    ),
    "structures-resnet": Question(
        "Structures at one half on residual networks",
        "unstructured and 2:4 level with dense, 4x4 blocks behind them, channels last. Added after a first run, where"
        " channels fell to 36 %: with masked gradients they end half a point to two below the blocks, because gradients"
        " of a channel pruned before BatchNorm, 300 times as large, leave nothing of the clipped norm to the others.",
        with_masked_gradients(structure_cells([(HEAD, None)]), ["channels"]),
        _resnet(sparsity=0.5),
    ),
    "structures-vit": Question(
        "Structures at one half on vision Transformers",
        "unstructured and 2:4 level with dense, 4x4 blocks behind them, channels last.",
        structure_cells([(HEAD, None)]),
        _vit(sparsity=0.5),
    ),
    "distributions": Question(
        "ERK against uniform sparsity on vision Transformers, with the spectra of the kernels",
        "ERK ahead of uniform where masks are random (static), little between them for magnitude; sparse kernels have"
        " a higher stable rank than dense ones of the same layer, because zeros at random places flatten the spectrum,"
        " and most so where least is kept.",
        {**DENSE_CELL, **_DISTRIBUTIONS},
        _vit(sparsity=0.9),
        spectra,
    ),
    "memory": Question(
        "Bytes of masks while training, and of what is exported",
        "masks take 1/4 of their parameters' bytes as uint8, 1/32 packed and nothing as zeros; all three reach the same"
        " weights but for those that stop beside 0; the peak of a step hardly differs. Files hold density plus 1/32 of"
        " the dense bytes; BCOO is no smaller than dense for kernels of four axes at 80 %, with"
        " four indices for every weight that is kept.",
        storage_cells(),
        _resnet(steps=100, evaluations=1),
        memory,
    ),
}
