"""How the studies of structures are read."""

from collections.abc import Mapping
from typing import Any

from experiments.common.supervised import layout as supervised
from experiments.harness.layout import Layout, Measure, last

SCORES = {
    "federated": (Measure("test accuracy, %", last("score"), 100), "round"),
    "rl": (Measure("return", last("score")), "environment step"),
}


def layout(record: Mapping[str, Any]) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    return supervised.layout(record, *SCORES[record["study"]])
