"""Which masks a reply may have: what the server asked for, whatever the client sends."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.trees import aligned, leaf_names
from sparse_plugins.wire.trees import PyTree

__all__ = ["Check", "as_many_as", "exactly", "growth_of"]

# From the parameters' tree and the masks of a message to the name of the first layer that was not asked for so.
Check = Callable[[Any, Any], str | None]


def exactly(masks: PyTree) -> Check:
    """Asks for these masks, as of clients that train inside those of the broadcast.

    Example:
        >>> check = exactly({"w": np.array([1, 0], np.uint8)})
        >>> like = {"w": np.zeros(2)}
        >>> check(like, {"w": np.array([1, 0], np.uint8)}), check(like, {"w": np.array([0, 1], np.uint8)})
        (None, 'w')
    """
    return _each(masks, lambda mask, asked: np.array_equal(mask != 0, asked != 0))


def as_many_as(masks: PyTree) -> Check:
    """Asks for masks that keep as many weights of each layer, as of clients with masks of their own.

    Example:
        >>> check = as_many_as({"w": np.array([1, 0], np.uint8)})
        >>> like = {"w": np.zeros(2)}
        >>> check(like, {"w": np.array([0, 1], np.uint8)}), check(like, {"w": np.array([1, 1], np.uint8)})
        (None, 'w')
    """
    return _each(masks, lambda mask, asked: np.count_nonzero(mask) == np.count_nonzero(asked))


def growth_of(settled: PyTree, counts: PyTree | None = None) -> Check:
    """Asks for gradients of weights that may be grown.

    Args:
        settled: uint8 masks of the weights that nobody is asked about; nothing is asked of layers without.
        counts: How many each layer may name; None: all others than the settled ones, and no fewer.

    Example:
        >>> like, settled = {"w": np.zeros(3)}, {"w": np.array([1, 0, 0], np.uint8)}
        >>> check = growth_of(settled, {"w": 1})
        >>> [check(like, {"w": np.array(places, np.uint8)}) for places in ([0, 1, 0], [1, 0, 0], [0, 1, 1])]
        [None, 'w', 'w']
    """
    settled = jax.tree.map(np.asarray, settled)

    def check(like: PyTree, masks: PyTree) -> str | None:
        most = [None for _ in leaf_names(like)] if counts is None else aligned(like, counts, "counts")
        columns = zip(
            leaf_names(like), aligned(like, masks, "masks"), aligned(like, settled, "masks"), most, strict=True
        )
        return next((name for name, *asked in columns if not _was_asked(*asked)), None)

    return check


def _was_asked(mask: Any, settled: PyTree, most: Any) -> bool:
    if not is_pruned(mask):
        return False
    if not is_pruned(settled):
        return not mask.any()
    pruned = settled == 0
    if most is None:
        return np.array_equal(mask != 0, pruned)
    return not np.any((mask != 0) & ~pruned) and np.count_nonzero(mask) <= most


def _each(masks: PyTree, is_alike: Callable[[Any, Any], bool]) -> Check:
    masks = jax.tree.map(np.asarray, masks)

    def check(like: PyTree, sent: PyTree) -> str | None:
        columns = zip(leaf_names(like), aligned(like, sent, "masks"), aligned(like, masks, "masks"), strict=True)
        return next((name for name, mask, asked in columns if not _are_alike(mask, asked, is_alike)), None)

    return check


def _are_alike(mask: Any, asked: Any, is_alike: Callable[[Any, Any], bool]) -> bool:
    if is_pruned(mask) and is_pruned(asked):
        return is_alike(mask, asked)
    return is_pruned(mask) == is_pruned(asked)
