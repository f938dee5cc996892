"""What is asked of channels that leave, what was expected, and how rows are read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.study import Question, Variants

GROUPS, NARROW = "channel groups, shrunk", "dense, narrow"
# Zeros that a structure can have, where it cannot have any.
ONLY_AT: Mapping[str, float] = {"2:4": 0.5}
_MASKED: dict[str, Any] = {"algorithm": "magnitude", "dist_type": "uniform"}
_WHOLE: dict[str, Any] = {**_MASKED, "is_sparse_gradients": True}  # why: see structures-resnet of the study of images
CELLS: Variants = {
    variants.DENSE: {"algorithm": "no_prune"},
    "unstructured": {**_MASKED, "sparsity_type": "unstructured"},
    "2:4": {**_MASKED, "sparsity_type": "2:4"},
    "4x4 blocks": {**_MASKED, "sparsity_type": "4x4"},
    "channels per layer": {**_WHOLE, "sparsity_type": "channel_-1"},
    GROUPS: _WHOLE,
    NARROW: {"algorithm": "no_prune"},
}
_IMAGES = {"image_size": 14, "evaluations": 5}
_RESNET = {"model": "resnet20", "learning_rate": 0.3, "optimizer": "sgd", "weight_decay": 5e-4, **_IMAGES}
_VIT = {"model": "vit_small", "learning_rate": 5e-3, "steps": 600, **_IMAGES, "image_size": 20}
_LONG = {"image_size": 28, "steps": 6_000, "batch_size": 128, "seeds": (0, 1, 2, 3, 4), "evaluations": 30}

STUDIES = {
    "resnet": Question(
        "Channels that leave residual networks",
        "at half of the channels unstructured, 2:4 and blocks level with dense at its time (a step of 1.0 to 1.2 of"
        " dense's) and a bit more than half of its bytes; channel groups a point or two below dense at 0.4 of its time"
        " and a quarter of its bytes, channels per layer between them at dense's time; the narrow network from scratch"
        " within a point of the shrunk one, at less time over the whole run (as Liu et al., 2019, found for ImageNet):"
        " what pruning finds is the width, hardly the weights. At 25 % all within a point; at 75 % groups and narrow"
        " three to six points below, unstructured still within two.",
        CELLS,
        {"short": _RESNET, "long": {**_RESNET, **_LONG}},
    ),
    "vit": Question(
        "Channels that leave vision Transformers",
        "the order of the residual networks with smaller gaps, because what is read between blocks stays whole (a norm"
        " averages over it): shrunk and narrow at 0.5 of dense's time at half of the channels, within a point of dense"
        " and of each other.",
        CELLS,
        {"short": _VIT, "long": {**_VIT, **_LONG}},
    ),
    "rl": Question(
        "Channels that leave a DQN on CartPole",
        "returns of all within a standard deviation of dense's, as the network has room to spare, but for a quarter of"
        " the units in the narrow one, which learns later; a step of the loop takes 0.9 of dense's at half of them,"
        " because environments and replay take the most of it.",
        CELLS,
        {
            "short": {
                **{"steps": 48_000, "evaluations": 1, "seeds": (0, 1, 2, 3, 4)},
                **{"change_from": 1 / 16, "change_until": 5 / 12, "changes": 34},
            }
        },
    ),
}
_SCORES = {
    "resnet": (Measure("test accuracy, %", last("score"), 100), "step"),
    "vit": (Measure("test accuracy, %", last("score"), 100), "step"),
    "rl": (Measure("return", last("score")), "environment step"),
}
COSTS = (
    Measure("cpu time of a step, of dense's", last("cpu_share")),
    Measure("stored, kB", last("kilobytes"), digits=1),
)


def layout(record: Record) -> Layout:
    """How rows of all of them are read.

    Args:
        record: What its `config.json` holds.
    """
    made = variants.layout(record, *_SCORES[record["study"]], questions=STUDIES)
    others = (Measure("wall time", last("wall_share")), Measure("parameters that are not 0, %", last("kept"), 100))
    return dataclasses.replace(
        made,
        cell={"cell": "name", "target": "sparsity"},
        cells=None,
        numbers={**made.numbers, "cpu_share": float, "wall_share": float, "kilobytes": float, "kept": float},
        scores=(*made.scores, COSTS[0], others[0], COSTS[1], others[1]),
        costs=COSTS,
        target=None,
        notes=f"{made.notes} Times are of a step after the last mask change against one of dense training, medians of"
        " interleaved steps in one process; what is stored is the file of `core.export.save_sparse`; parameters that"
        " are not 0 are a share of the dense network's.",
    )
