"""From what a server is given, an updater that counts rounds."""

from collections.abc import Mapping
from typing import Any

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_from
from sparse_plugins.fed.mask_change import check_counts_rounds

__all__ = ["updater_in_rounds"]


def updater_in_rounds(updater: AnyUpdater, rounds: int | None, words: Mapping[str, Any]) -> BaseUpdater:
    """The updater of a server, which counts rounds.

    Args:
        updater: An updater, or an algorithm by its name or class.
        rounds: Length of the run. Algorithms that change masks while they train need it, unless the schedule is given.
        words: What else `core.sparsify` takes with an algorithm.

    Returns:
        The updater.

    Raises:
        TypeError: If it is neither an updater nor an algorithm, or the words count steps.
        ValueError: If the words do not make one, or its schedule does not count rounds.

    Example:
        >>> updater_in_rounds("rigl", 1000, {"sparsity": 0.9}).describe_schedule()
        'masks change 76 times, every 10 rounds from round 0 to 750'
    """
    if "total_steps" in words:
        raise TypeError("a server counts rounds: give rounds=... for the length of the run, not total_steps.")
    made = updater_from(updater, total_steps=rounds, length_word="rounds", step_unit="round", **words)
    check_counts_rounds(made)
    return made
