"""Structures by the short names that configurations and rules use."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_plugins.core.path_rules import read_rule
from sparse_plugins.core.structures import (
    Block,
    ByPath,
    Channel,
    ChannelGroups,
    ConstantFanIn,
    NByM,
    Structure,
    Unstructured,
)

__all__ = ["parse_structure"]


def parse_structure(structure: Any) -> Structure | ByPath:
    """A structure from its short name, or structures by path.

    Args:
        structure: A structure or `ByPath`; 'unstructured', 'nm_2,4' or '2:4', 'block_4,4' or '4x4', 'channel', 'heads',
            'fan_in', or 'channel_-1', 'fan_in_-1' with an axis; or a sequence of pairs (regular expression, one of
            these).

    Returns:
        The structure.

    Raises:
        ValueError: For any other name.

    Example:
        >>> parse_structure("2:4"), parse_structure([("head/.*", "4x4")]).rules
        (NByM(n=2, m=4, axis=None), (('head/.*', Block(block_shape=(4, 4), use_avg_pooling=True)),))
    """
    if isinstance(structure, Structure | ByPath):
        return structure
    if isinstance(structure, Sequence) and not isinstance(structure, str):
        rules = [read_rule(rule, "structure", "('head/.*', '2:4')") for rule in structure]
        return ByPath([(pattern, _by_name(name)) for pattern, name in rules])
    return _by_name(structure)


_SHORT_NAMES: Mapping[str, Structure] = {
    "unstructured": Unstructured(),
    "channel": Channel(),
    "heads": Channel(whole_heads=True),
    "fan_in": ConstantFanIn(),
}


def _by_name(structure: Any) -> Structure:
    if isinstance(structure, Structure):
        return structure
    name, _, numbers = str(structure).rpartition("_")
    try:
        if structure in _SHORT_NAMES:
            return _SHORT_NAMES[structure]
        if name == "channel":
            return Channel(int(numbers))
        if name == "fan_in":
            return ConstantFanIn(int(numbers))
        if name == "nm" or (not name and ":" in numbers):
            n, m = map(int, numbers.replace(":", ",").split(","))
            return NByM(n, m)
        if name == "block" or (not name and "x" in numbers):
            return Block(tuple(map(int, numbers.replace("x", ",").split(","))))
    except ValueError as error:
        if "NByM" in str(error) or "Block" in str(error):
            raise
    if structure is ChannelGroups:
        raise ValueError(
            "ChannelGroups is a class: give core.ChannelGroups(core.channel_graph(apply, params, *inputs))."
        )
    near = difflib.get_close_matches(str(structure), [*_SHORT_NAMES, "2:4", "4x4"], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"structure {structure!r} is unknown; allowed are a structure such as NByM(2, 4), or 'unstructured', '2:4' (or "
        f"'nm_2,4'), '4x4' (or 'block_4,4'), 'channel', 'heads', 'fan_in', 'channel_-1', 'fan_in_-1'.{hint}"
    )
