"""How the study of hostile clients is read."""

from collections.abc import Mapping
from typing import Any

from experiments.record.layout import Layout, Measure, last
from experiments.supervised import layout as supervised


def layout(record: Mapping[str, Any]) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    return supervised.layout(record, Measure("test accuracy, %", last("score"), 100), "round")
