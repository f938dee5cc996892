"""What is asked of channels that leave, what was expected, and how rows are read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.harness import variants
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.study import Question, Variants

GROUPS, NARROW, PER_LAYER = "channel groups, shrunk", "dense, narrow", "channels per layer"
# Clients with a part of the channels of a server that keeps them all, by how these are chosen.
WIDTHS: Variants = {
    f"clients at half width, {channels}": {"channels": channels} for channels in ("nested", "rolling", "largest")
}
# Zeros that a structure can have, where it cannot have any; and what is shown at one width.
ONLY_AT: Mapping[str, float] = {"2:4": 0.5, **dict.fromkeys(WIDTHS, 0.5)}
_MASKED: dict[str, Any] = {"algorithm": "magnitude", "dist_type": "uniform"}
_WHOLE: dict[str, Any] = {**_MASKED, "is_sparse_gradients": True}  # why: see structures-resnet of the study of images
CELLS: Variants = {
    variants.DENSE: {"algorithm": "no_prune"},
    "unstructured": {**_MASKED, "sparsity_type": "unstructured"},
    "2:4": {**_MASKED, "sparsity_type": "2:4"},
    "4x4 blocks": {**_MASKED, "sparsity_type": "4x4"},
    PER_LAYER: {**_WHOLE, "sparsity_type": "channel_-1"},
    GROUPS: _WHOLE,
    NARROW: {"algorithm": "no_prune"},
}
_IMAGES = {"image_size": 14, "evaluations": 5}
_RESNET = {"model": "resnet20", "learning_rate": 0.3, "optimizer": "sgd", "weight_decay": 5e-4, **_IMAGES}
_VIT = {"model": "vit_small", "learning_rate": 5e-3, "steps": 600, **_IMAGES, "image_size": 20}
_LONG = {"image_size": 28, "steps": 6_000, "batch_size": 128, "seeds": (0, 1, 2, 3, 4), "evaluations": 30}
PREDICTION = (
    "at half of the channels unstructured, 2:4 and blocks within a point of dense at its time (a round of 1.0 to 1.15"
    " of dense's) and 0.55 of its bytes; channel groups, shrunk, two points below dense at half of its time, as"
    " messages, the first layer's pixels and batches do not halve, and 0.27 of its bytes each way, channels per layer"
    " as good at 0.52 of the bytes and dense's time; the narrow network from scratch within a point of the shrunk one,"
    " with less sent over the whole run. At 25 % all within a point of dense. At 75 % groups and narrow six to ten"
    " points below, unstructured two; a round of 0.35 of dense's. Clients at half width, with the server's model"
    " whole, are as fast and as small as the narrow network: nested as accurate as it, for its other half never"
    " learns; largest the same; rolling below both, as every channel is trained in half of the rounds, each time"
    " beside others."
)

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
    "federated": Question(
        "Channels that leave federated averaging",
        PREDICTION,
        {**CELLS, **WIDTHS},
        {
            "short": {
                **{"steps": 150, "batch_size": 24, "evaluations": 10, "seeds": (0, 1, 2, 3, 4)},
                **{"change_from": 1 / 5, "change_until": 3 / 5, "changes": 20},
            }
        },
    ),
}
_SCORES = {
    "resnet": (Measure("test accuracy, %", last("score"), 100), "step"),
    "vit": (Measure("test accuracy, %", last("score"), 100), "step"),
    "rl": (Measure("return", last("score")), "environment step"),
    "federated": (Measure("test accuracy, %", last("score"), 100), "round"),
}
COSTS = (
    Measure("cpu time of a step, of dense's", last("cpu_share")),
    Measure("stored, kB", last("kilobytes"), digits=1),
)


_TRAFFIC = ("up_share", "down_share", "run_share")
TRAFFIC = tuple(
    Measure(label, last(column), digits=3)
    for label, column in zip(("bytes up, of dense's", "down", "of the whole run"), _TRAFFIC, strict=True)
)
_TRAFFIC_NOTE = (
    " Bytes up and down are those of the last round, as the ledger has them, beside one of dense training; of the whole"
    " run, all of its bytes both ways."
)


def layout(record: Record) -> Layout:
    """How rows of all of them are read.

    Args:
        record: What its `config.json` holds.
    """
    study = record["study"]
    made = variants.layout(record, *_SCORES[study], questions=STUDIES)
    others = (Measure("wall time", last("wall_share")), Measure("parameters that are not 0, %", last("kept"), 100))
    traffic = TRAFFIC if study == "federated" else ()
    columns = ("cpu_share", "wall_share", "kilobytes", "kept", *_TRAFFIC[: len(traffic)])
    step = "round" if traffic else "step"
    time = COSTS[0]._replace(label=f"cpu time of a {step}, of dense's") if traffic else COSTS[0]
    return dataclasses.replace(
        made,
        cell={"cell": "name", "target": "sparsity"},
        cells=None,
        numbers={**made.numbers, **dict.fromkeys(columns, float)},
        scores=(*made.scores, time, others[0], *traffic, COSTS[1], others[1]),
        costs=(time, traffic[0] if traffic else COSTS[1]),
        target=None,
        notes=f"{made.notes} Times are of a {step} after the last mask change against one of dense training, medians of"
        f" interleaved {step}s in one process; what is stored is the file of `core.export.save_sparse`; parameters that"
        f" are not 0 are a share of the dense network's.{_TRAFFIC_NOTE if traffic else ''}",
    )
