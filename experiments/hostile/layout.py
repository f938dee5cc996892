"""How the study of hostile clients is read."""

from collections.abc import Mapping
from typing import Any

from experiments.common.supervised import layout as supervised
from experiments.harness.layout import Layout, Measure, last


def layout(record: Mapping[str, Any]) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    return supervised.layout(record, Measure("test accuracy, %", last("score"), 100), "round")
