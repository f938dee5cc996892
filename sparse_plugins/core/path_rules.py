"""Layers chosen by rules on their paths: the first pattern that matches a whole path wins."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["first_match", "read_rule"]


def read_rule(rule: Any, value: str, example: str) -> tuple[str, Any]:
    """Checks the form of one rule.

    Args:
        rule: What a user gave.
        value: What stands beside the regular expression, for the message.
        example: A good rule, for the message.

    Returns:
        The pattern and the value.

    Raises:
        ValueError: If it is no pair, or its first part no regular expression.

    Example:
        >>> read_rule(("head/.*", 0.5), "sparsity", "('head/.*', 0.5)")
        ('head/.*', 0.5)
    """
    try:
        pattern, chosen = rule
        re.compile(pattern)
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"rule {rule!r} is not a pair (regular expression, {value}), e.g. {example}.") from error
    return pattern, chosen


def first_match(patterns: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """Which rule decides about each leaf.

    Args:
        patterns: Regular expressions.
        names: Paths of all leaves, 'a/b/kernel'.

    Returns:
        Per name the index of the first pattern that matches the whole of it, or None.

    Raises:
        ValueError: If a pattern decides about no leaf: it is misspelt, or earlier ones match all its leaves.

    Example:
        >>> first_match(["head/.*", ".*/w"], ["body/w", "body/b", "head/w"])
        [1, None, 0]
    """
    compiled = [re.compile(pattern) for pattern in patterns]
    chosen = [next((i for i, pattern in enumerate(compiled) if pattern.fullmatch(name)), None) for name in names]
    for i, pattern in enumerate(compiled):
        if i not in chosen and names:  # optax maps over states by showing an empty tree
            _refuse_unused(pattern, names)
    return chosen


def _refuse_unused(pattern: re.Pattern, names: Sequence[str]) -> None:
    shadowed = any(pattern.fullmatch(name) for name in names)
    near = difflib.get_close_matches(pattern.pattern.replace("\\", ""), names, n=3)
    reason = "is never used: earlier rules match all its leaves" if shadowed else "matches no leaf"
    is_of_box = any(pattern.fullmatch(f"{name}/value") for name in names)
    hint = " Leave out '/value': it is in the paths of boxed parameters of Flax Linen alone." if is_of_box else ""
    raise ValueError(
        f"rule {pattern.pattern!r} {reason}. Rules are regular expressions for a whole path; "
        f"{'close: ' if near else 'the paths are '}{near or list(names)}.{hint}"
    )
