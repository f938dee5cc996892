"""A node's own mask: what SET and RigL make of that of the broadcast, in NumPy, to the entry. Needs no JAX."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparse_plugins.wire import SeededMasks
from sparse_plugins.wire.markers import is_pruned
from sparse_plugins.wire.seeded_masks import Key, fold_in, leaf_scores

__all__ = ["changed_mask", "key_of_node", "largest", "personal_masks"]

NDArray = np.ndarray[Any, Any]


def key_of_node(words: Key, node: int) -> Key:
    """The words of the key from which a node draws, as `sparse_federated_averaging` gives clients theirs.

    Args:
        words: Those of the server's key.
        node: The node's number.
    """
    return fold_in(words, zlib.crc32(repr(node).encode()))


def personal_masks(
    values: Mapping[str, NDArray],
    masks: Mapping[str, Any],
    counts: Mapping[str, int],
    source: SeededMasks | Mapping[str, NDArray],
) -> dict[str, Any]:
    """The masks inside which a node is to train.

    Args:
        values: Weights of the broadcast.
        masks: uint8 masks of the broadcast; `core.NOT_PRUNED` where an array stays dense.
        counts: How many weights of each array are replaced.
        source: What they are grown by: a seed, or gradients.

    Returns:
        uint8 masks that keep as many. If no gradient of a pruned weight says anything, those of the broadcast.
    """
    if not isinstance(source, SeededMasks) and not _is_heard(source, masks):
        return dict(masks)
    scores = {
        name: leaf_scores(source.key(name), mask.size).reshape(mask.shape)
        if isinstance(source, SeededMasks)
        else np.abs(source[name])
        for name, mask in masks.items()
        if is_pruned(mask)
    }
    return {
        name: changed_mask(values[name], mask, scores[name], counts[name]) if is_pruned(mask) else mask
        for name, mask in masks.items()
    }


def _is_heard(grads: Mapping[str, NDArray], masks: Mapping[str, Any]) -> bool:
    return any(np.any((mask == 0) & (grads[name] != 0)) for name, mask in masks.items() if is_pruned(mask))


def changed_mask(value: NDArray, mask: NDArray, scores: NDArray, count: int) -> NDArray:
    """Drops the smallest weights and grows those of the highest scores among all that did not survive.

    Scores that are not finite grow nothing; weights that can't be replaced stay.

    Args:
        value: Weights.
        mask: uint8 mask of them.
        scores: By which weights are grown; real numbers or integers.
        count: How many are replaced, at most.

    Returns:
        uint8 mask with as many entries.

    Example:
        >>> value, scores = np.array([1.0, 2.0, 0.0, 0.0]), np.array([0.0, 0.0, 5.0, 9.0])
        >>> changed_mask(value, np.array([1, 1, 0, 0], np.uint8), scores, 1).tolist()
        [0, 1, 0, 1]
    """
    active, can_grow = mask.ravel() != 0, np.isfinite(scores).ravel()
    kept = int(np.count_nonzero(active))
    replaceable = kept if np.count_nonzero(can_grow) >= kept else int(np.count_nonzero(can_grow & ~active))
    survivors = kept - min(count, replaceable)
    stay = largest(np.abs(value).astype(np.float32).ravel(), active, survivors)
    grown = largest(scores.ravel(), can_grow & ~stay, kept - survivors)
    return (stay | grown).astype(np.uint8).reshape(mask.shape)


def largest(scores: NDArray, candidates: NDArray, count: int) -> NDArray:
    """Which candidates have the largest scores; of equal ones those of lower index.

    Args:
        scores: Finite numbers, [n].
        candidates: bool[n].
        count: How many, at most.

    Returns:
        bool[n].

    Example:
        >>> largest(np.array([9.0, 3.0, 3.0, 1.0]), np.array([False, True, True, True]), 1).tolist()
        [False, True, False, False]
    """
    chosen, places = np.zeros(scores.size, bool), np.flatnonzero(candidates)
    count = min(count, places.size)
    if count > 0:
        among = scores[places]
        least = np.partition(among, -count)[-count]
        above = among > least
        equal = np.flatnonzero(among == least)[: count - np.count_nonzero(above)]
        chosen[places[above]] = chosen[places[equal]] = True
    return chosen
