"""Channels that some of their makers have pruned and others keep, which cannot leave, and masks without any."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGraph, ChannelGroup, Member
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, unpack_masks
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["channels_left", "half_pruned", "nothing_leaves", "whole_channels", "words_of_half_pruned"]


def channels_left(group: ChannelGroup, masks: Sequence[Any]) -> np.ndarray:
    """int[channels left]: those of which some maker keeps anything.

    Raises:
        ValueError: If there is none.
    """
    makers = _kept_by_makers(group, masks)
    left = np.flatnonzero(np.any(makers, axis=0)) if makers else np.arange(group.size)
    if not len(left):
        raise ValueError(
            f"all {group.size} channels of {group.name!r} are pruned: keep some, for without them nothing is computed."
        )
    return left


def half_pruned(graph: ChannelGraph, masks: Sequence[Any]) -> dict[str, np.ndarray]:
    """By group int[channels]: those that some makers have pruned whole and others keep; groups without any left out."""
    found = {}
    for name, group in graph.groups.items():
        if makers := _kept_by_makers(group, masks):
            channels = np.flatnonzero(np.any(makers, axis=0) & ~np.all(makers, axis=0))
            if len(channels):
                found[name] = channels
    return found


def whole_channels(graph: ChannelGraph, params: PyTree, masks: PyTree) -> PyTree:
    """The nearest masks in which no channel is half pruned.

    A channel that some of its makers have pruned and others keep goes where they keep less than half of its entries
    (those without a mask keep all), and comes back where they keep half or more. All other channels stay as they are,
    and a group keeps at least the channel of which most is kept.

    Args:
        graph: The network's groups.
        params: Its parameters, or their shapes.
        masks: Their masks.

    Returns:
        Tree of uint8 masks, `NOT_PRUNED` where a parameter has none and loses no channel.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 4)), "bias": jnp.ones(4), "b": jnp.ones((4, 2))}
        >>> apply = lambda params, x: jnp.tanh(x @ params["a"] + params["bias"][None]) @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
        >>> masks = {"a": jnp.array([[0, 1, 1, 1]] * 3), "bias": jnp.array([1, 0, 1, 1]), "b": core.NOT_PRUNED}
        >>> whole = core.whole_channels(graph, params, masks)
        >>> whole["a"][0].tolist(), whole["bias"].tolist()
        ([0, 1, 1, 1], [0, 1, 1, 1])
    """
    given = aligned(graph.params, unpack_masks(params, masks), "masks")
    made: dict[int, np.ndarray] = {}

    def mask_of(leaf: int) -> np.ndarray:
        if leaf not in made:
            shape = jax.tree.leaves(graph.params)[leaf].shape
            made[leaf] = np.array(given[leaf], np.uint8) if is_pruned(given[leaf]) else np.ones(shape, np.uint8)
        return made[leaf]

    for name, channels in half_pruned(graph, given).items():
        group = graph.groups[name]
        makers = [member for member in group.members if member.makes]
        counts = [_entries(group, member, mask_of(member.leaf)) for member in makers]
        kept, all_of_it = np.sum([kept for kept, _ in counts], axis=0), np.sum([whole for _, whole in counts], axis=0)
        untouched = np.setdiff1d(channels_left(group, given), channels)
        goes = channels[2 * kept[channels] < all_of_it[channels]]
        if len(goes) == len(channels) and not len(untouched):
            goes = np.delete(goes, np.argmax(kept[goes] / all_of_it[goes]))
        for member, (held, _) in zip(makers, counts, strict=True):
            mask = np.moveaxis(mask_of(member.leaf), member.axis, 0)
            mask[np.isin(member.labels, goes)] = 0
            mask[np.isin(member.labels, np.setdiff1d(channels[held[channels] == 0], goes))] = 1
    result = [jnp.asarray(made[leaf]) if leaf in made else mask for leaf, mask in enumerate(given)]
    return jax.tree.unflatten(jax.tree.structure(graph.params), [m if is_pruned(m) else NOT_PRUNED for m in result])


def words_of_half_pruned(graph: ChannelGraph, half: Mapping[str, np.ndarray]) -> str:
    """How many there are, and the way to whole ones: '4 of 8 of 'a' (a, bias)'."""
    found = []
    for name, channels in half.items():
        makers = ", ".join(member.path for member in graph.groups[name].members if member.makes)
        found.append(f"{len(channels)} of {graph.groups[name].size} of {name!r} ({makers})")
    return "; ".join(found)


def nothing_leaves(graph: ChannelGraph, masks: Sequence[Any]) -> str:
    """Why no channel can leave, group by group where there are any."""
    if not graph.groups:
        return f"no channel can leave this network, whatever is pruned:\n{graph}"
    half = half_pruned(graph, masks)
    reason = (
        f"only by some of their makers: {words_of_half_pruned(graph, half)}"
        if half
        else "masks of single weights leave some of each"
    )
    nearest = " The nearest whole ones are core.whole_channels(graph, params, masks)." if half else ""
    return (
        f"no channel is pruned as a whole ({reason}): nothing can leave. Prune channels as wholes, with "
        "sparsity_type=core.ChannelGroups(graph), whose masks agree in all members of a group: print(graph) shows them."
        f"{nearest}"
    )


def _kept_by_makers(group: ChannelGroup, masks: Sequence[Any]) -> list[np.ndarray]:
    """For each maker that has a mask bool[channels]: of which channels it keeps anything."""
    makers = [member for member in group.members if member.makes and is_pruned(masks[member.leaf])]
    return [_entries(group, member, np.asarray(masks[member.leaf]) != 0)[0] > 0 for member in makers]


def _entries(group: ChannelGroup, member: Member, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int[channels], twice: how many entries of each channel a mask keeps, and how many there are."""
    others = tuple(axis for axis in range(mask.ndim) if axis != member.axis)
    inside = member.labels >= 0
    along, each = np.count_nonzero(mask, axis=others), mask.size // max(len(member.labels), 1)
    kept = np.bincount(member.labels[inside], np.atleast_1d(along)[inside], group.size)
    return kept, each * np.bincount(member.labels[inside], minlength=group.size)
