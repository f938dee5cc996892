"""What a rule says about the layers whose paths it matches: their sparsity, structure or algorithm."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.distributions import SHARED
from sparse_plugins.core.path_rules import read_rule
from sparse_plugins.core.registry import ALGORITHMS, known
from sparse_plugins.core.selection.counts import check_fraction
from sparse_plugins.core.structure_names import parse_structure
from sparse_plugins.core.structures import ByPath, NByM, Structure

__all__ = ["LayerRule", "read_layer_rules", "sparsity_of_groups", "structures_by_rule", "without_earlier"]

_KEYS = ("sparsity", "structure", "algorithm")
_EXAMPLE = "('head/.*', None)"


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """A rule, read.

    Attributes:
        pattern: Regular expression for a whole path 'a/b/kernel'.
        sparsity: Target sparsity of each of its layers alone; None leaves them dense, `SHARED` lets the distribution
            decide.
        structure: Structure of their masks; None for that of the other layers.
        algorithm: A name, a class or an updater; None for that of the other layers.
    """

    pattern: str
    sparsity: Any = SHARED
    structure: Structure | None = None
    algorithm: Any = None


def read_layer_rules(rules: Sequence[tuple[str, Any]]) -> list[LayerRule]:
    """Reads rules as users write them.

    Args:
        rules: Pairs (regular expression for a whole path, what), where what is None (dense), 'default' (as the other
            layers, whatever the filter says), a sparsity, a structure or its short name, an algorithm (a name, a class,
            an updater), or a mapping with some of 'sparsity', 'structure' and 'algorithm'.

    Returns:
        One `LayerRule` each, in order.

    Raises:
        ValueError: If a rule is none of these, or names a sparsity that its structure excludes.

    Example:
        >>> [rule] = read_layer_rules([("body/.*", "2:4")])
        >>> rule.sparsity, rule.structure
        (0.5, NByM(n=2, m=4, axis=None))
    """
    return [_read(*read_rule(rule, "what", _EXAMPLE)) for rule in rules]


def _read(pattern: str, what: Any) -> LayerRule:
    if what is None:
        return LayerRule(pattern, sparsity=None)
    given = what if isinstance(what, Mapping) else {_key_of(pattern, what): what}
    for key in given:
        known(f"key of rule {pattern!r}", key, _KEYS)
    structure = parse_structure(given["structure"]) if given.get("structure") is not None else None
    if isinstance(structure, ByPath):
        raise ValueError(f"rule {pattern!r} gives structures by path; write a rule for each.")
    sparsity = given.get("sparsity", SHARED)
    if sparsity is not None and sparsity != SHARED:
        sparsity = check_fraction(f"sparsity of rule {pattern!r}", sparsity)
    if isinstance(structure, NByM):
        sparsity = sparsity_of_groups(structure, sparsity, f"rule {pattern!r}")
    return LayerRule(pattern, sparsity, structure, given.get("algorithm"))


def sparsity_of_groups(structure: NByM, sparsity: Any, where: str) -> float:
    """The sparsity that n of m entries are; ValueError if another is asked for.

    Example:
        >>> sparsity_of_groups(NByM(1, 4), SHARED, "a layer")
        0.75
    """
    fixed = 1.0 - structure.n / structure.m
    if sparsity is not None and sparsity != SHARED and abs(sparsity - fixed) > 1e-6:
        raise ValueError(
            f"{where} asks for sparsity {sparsity} and for {structure.n} of every {structure.m} entries, which is "
            f"sparsity {fixed:g}: leave the sparsity out, or give the n of m that you mean."
        )
    return fixed


def _key_of(pattern: str, what: Any) -> str:
    """Which key of the mapping a single value stands for."""
    if isinstance(what, BaseUpdater) or (isinstance(what, type) and issubclass(what, BaseUpdater)):
        return "algorithm"
    if isinstance(what, Structure):
        return "structure"
    if not isinstance(what, str):
        return "sparsity"
    if what == SHARED:
        return "sparsity"
    if what in ALGORITHMS:
        return "algorithm"
    try:
        parse_structure(what)
    except ValueError as error:
        known(f"rule {pattern!r}:", what, (*ALGORITHMS, "default", "2:4", "4x4", "channel_-1", "fan_in_-1"))
        raise error
    return "structure"


def structures_by_rule(structure: Structure | ByPath, rules: Sequence[LayerRule]) -> Structure | ByPath:
    """One structure, or one by path where a rule names another: then every rule does, so that the first one decides.

    Example:
        >>> structures_by_rule(NByM(2, 4), read_layer_rules([("head/.*", "1:4")])).rules
        (('head/.*', NByM(n=1, m=4, axis=None)),)
    """
    if all(rule.structure is None for rule in rules):
        return structure
    if isinstance(structure, ByPath):
        raise ValueError("structure is a ByPath and rules name structures too; say it with rules alone.")
    return ByPath([(rule.pattern, rule.structure or structure) for rule in rules], structure)


def without_earlier(rules: Sequence[LayerRule], chosen: Callable[[LayerRule], bool]) -> list[tuple[str, LayerRule]]:
    """Patterns of the chosen rules that match only what no earlier rule does.

    Args:
        rules: All rules, of which the first that matches decides.
        chosen: Which of them are wanted.

    Returns:
        Pairs of a pattern and its rule.

    Example:
        >>> import re
        >>> rules = read_layer_rules([("head/w", None), ("head/.*", "set")])
        >>> [(pattern, rule)] = without_earlier(rules, lambda rule: rule.algorithm is not None)
        >>> [bool(re.fullmatch(pattern, path)) for path in ("head/w", "head/v")]
        [False, True]
    """
    pairs = []
    for i, rule in enumerate(rules):
        earlier = [f"(?:{other.pattern})" for other in rules[:i] if not chosen(other)]
        if chosen(rule):
            unless = rf"(?!(?:{'|'.join(earlier)})\Z)(?:{rule.pattern})" if earlier else rule.pattern
            pairs.append((unless, rule))
    return pairs
