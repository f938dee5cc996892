"""Channels that several parameters make together: scores pooled over all of these, masks spread over each.

A group couples leaves. Its scores are one vector [channels], the sum over all entries that make a channel; what is
selected of it is the mask of every leaf that makes the group, along the axis on which its channels lie. The mask of a
leaf with channels of several groups, such as attention heads and the entries of each, is the product.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, unpack
from sparse_plugins.core.selection.exact_sums import exact_sum
from sparse_plugins.core.structures import ChannelGroups, Structure

__all__ = ["AxisOfChannels", "ChannelPools", "ChannelUnits", "channels_of_leaves", "common_targets", "spread"]


@dataclasses.dataclass(frozen=True, eq=False)
class AxisOfChannels:
    """Channels of a group along an axis of a parameter that makes them.

    What programs index by is int32: an int64 array of NumPy that was traced without 64-bit types once is int32 for JAX
    from then on, and indexing by it fails where they are allowed later.

    Attributes:
        group: Name of the group.
        size: How many channels it has.
        axis: Number of the axis.
        labels: int32[length of the axis]: the channel of every entry, -1 where it belongs to none of the group.
        is_layer: Whether the parameter is a layer, and no bias or scale.
        together: Number of the groups that have one target with it.
    """

    group: str
    size: int
    axis: int
    labels: np.ndarray
    is_layer: bool
    together: int

    @functools.cached_property
    def places(self) -> np.ndarray:
        """int32[channels, entries of the largest]: places along the axis, its length where a channel has fewer."""
        order = np.argsort(self.labels, kind="stable")[np.count_nonzero(self.labels < 0) :]
        counts = np.bincount(self.labels[order], minlength=self.size)
        places = np.full((self.size, max(counts, default=0)), len(self.labels), np.int32)
        places[np.arange(places.shape[1]) < counts[:, None]] = order
        return places


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelUnits:
    """What stands for an array of a parameter once its groups are pooled: a leaf of a tree, and no tree itself.

    Attributes:
        shape: Shape of the parameter.
        units: For each of its axes of channels an array [channels].
    """

    shape: tuple[int, ...]
    units: tuple[jax.Array, ...]


def spread(channels: Sequence[AxisOfChannels], shape: tuple[int, ...], units: Sequence[Any]) -> jax.Array:
    """The uint8 mask of a parameter from those of its channels.

    Example:
        >>> axis = AxisOfChannels("a", 2, 1, np.array([0, 0, 1, -1], np.int32), True, 1)
        >>> spread([axis], (1, 4), [jnp.array([0, 1], jnp.uint8)]).tolist()
        [[0, 0, 1, 1]]
    """
    mask = jnp.ones((), jnp.uint8)
    for axis, kept in zip(channels, units, strict=True):
        along = jnp.append(jnp.asarray(kept, jnp.uint8), jnp.uint8(1))[axis.labels]
        mask = mask * jnp.expand_dims(along, [other for other in range(len(shape)) if other != axis.axis])
    return jnp.broadcast_to(mask, shape)


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelPools:
    """The groups of a tree, and what makes them.

    Attributes:
        groups: By name of the group, the leaves that make it: number of the leaf, and the axis.
    """

    groups: Mapping[str, Sequence[tuple[int, AxisOfChannels]]]

    @classmethod
    def of(cls, channels: Sequence[Sequence[AxisOfChannels]]) -> "ChannelPools":
        """The groups of leaves with these axes of channels."""
        groups: dict[str, list[tuple[int, AxisOfChannels]]] = {}
        for leaf, axes in enumerate(channels):
            for axis in axes:
                groups.setdefault(axis.group, []).append((leaf, axis))
        return cls(groups)

    def summed(self, leaves: Sequence[Any]) -> dict[str, jax.Array]:
        """By group float32[channels], the sum of the scores of all that makes a channel, in any order of addition."""
        pooled = {}
        for group, members in self.groups.items():
            sums = [_sums(axis, leaves[leaf]) for leaf, axis in members]
            pooled[group] = exact_sum(jnp.stack(sums), (0,)) if len(sums) > 1 else sums[0]
        return pooled

    def active(self, masks: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> dict[str, jax.Array]:
        """By group bool[channels]: whether anything that makes a channel is kept; all, where something stays dense.

        Args:
            masks: Of every leaf, packed or not; `NOT_PRUNED` where it stays dense.
            shapes: Of every leaf.
        """
        pooled = {}
        for group, members in self.groups.items():
            if not all(is_pruned(masks[leaf]) for leaf, _ in members):
                pooled[group] = jnp.ones(members[0][1].size, bool)
                continue
            kept = [_sums(axis, unpack(masks[leaf], shapes[leaf]).astype(jnp.float32)) > 0 for leaf, axis in members]
            pooled[group] = functools.reduce(jnp.logical_or, kept)
        return pooled

    def units(self, rule: Any, by_group: Mapping[str, jax.Array]) -> ChannelUnits:
        """What a leaf has of the groups; `rule` is its `MaskRule`."""
        return ChannelUnits(rule.shape, tuple(by_group[axis.group] for axis in rule.channels))


def _sums(axis: AxisOfChannels, scores: jax.Array) -> jax.Array:
    """float32[channels]: the sum over everything along an axis that makes a channel."""
    scores = jnp.moveaxis(scores, axis.axis, 0)
    if len(axis.labels) != axis.size or not np.array_equal(axis.labels, np.arange(axis.size)):
        scores = jnp.pad(scores, [(0, 1), *[(0, 0)] * (scores.ndim - 1)])[axis.places]
    return exact_sum(scores, tuple(range(1, scores.ndim)))


def channels_of_leaves(
    structures: Sequence[Structure], names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[Structure], list[tuple[AxisOfChannels, ...]]]:
    """Which channels every leaf makes, by the groups of all layers that have `ChannelGroups`.

    Args:
        structures: The structure of every leaf.
        names: Its path.
        shapes: Its shape.

    Returns:
        The structures, with that of its group for a bias or a scale; and for every leaf its axes of channels.

    Raises:
        ValueError: If the graph is of other parameters, or some of a group's makers are missing or differ.
    """
    structures = list(structures)
    channels: list[list[AxisOfChannels]] = [[] for _ in names]
    for asked in dict.fromkeys(structure for structure in structures if isinstance(structure, ChannelGroups)):
        paths = {path: leaf for leaf, path in enumerate(_paths_in(asked.graph, names))}
        found = dict(_groups_of(asked, paths, structures))
        like = jax.tree.leaves(asked.graph.params)
        for number, together in enumerate(_joined(found), start=1):
            for group, (leaf, member, is_layer) in [(name, made) for name in together for made in found[name]]:
                if shapes[leaf] != like[member.leaf].shape:
                    raise ValueError(
                        f"the graph knows {member.path!r} of shape {like[member.leaf].shape}, and parameter "
                        f"{names[leaf]!r} has shape {shapes[leaf]}: make a graph of these parameters, "
                        "core.channel_graph(apply, params, *inputs)."
                    )
                structures[leaf] = asked
                size = asked.graph.groups[group].size
                its = member.labels.astype(np.int32)
                channels[leaf].append(AxisOfChannels(group, size, member.axis, its, is_layer, number))
    return structures, list(map(tuple, channels))


def _paths_in(graph: Any, names: Sequence[str]) -> list[str]:
    """What the parameters are called in a graph of all variables of a model, or of a part of the parameters."""
    known = list(graph.layers)
    if set(names) <= set(known):
        return list(names)
    # The graph knows all variables of a model, whose paths begin with a collection; the optimizer has the parameters.
    outer = [path.removesuffix(names[0]) for path in known if path.endswith("/" + names[0])]
    for prefix in sorted(outer, key=len):
        if {prefix + name for name in names} <= set(known):
            return [prefix + name for name in names]
    # Or the graph is of a part. The other parameters get paths that begin with '/', as no path in it does.
    inner = [name.removesuffix(known[0]) for name in names if name.endswith("/" + known[0])]
    for prefix in sorted(inner, key=len):
        if {prefix + path for path in known} <= set(names):
            return [name.removeprefix(prefix) if name.startswith(prefix) else f"/{name}" for name in names]
    raise ValueError(
        f"the graph is of other parameters: it knows {known[:3]}, and the optimizer's are {list(names)[:3]}. Make a "
        "graph of these, core.channel_graph(apply, params, *inputs), or name the part that it is of with a rule."
    )


def _groups_of(
    asked: ChannelGroups, paths: Mapping[str, int], structures: Sequence[Structure]
) -> Iterator[tuple[str, list[tuple[int, Any, bool]]]]:
    """Groups that a structure was asked for, with the leaves that make them: number, member, whether it is a layer."""
    graph = asked.graph
    collections = {path.split("/")[0] for path in paths}  # where they are nested: running statistics are elsewhere
    for name, group in graph.groups.items():
        makers = [member for member in group.members if member.makes]
        layers = [member for member in makers if graph.layers[member.path].is_layer] or makers
        here = [member for member in layers if member.path in paths]
        wants = [structures[paths[member.path]] == asked for member in here]
        if not any(wants):
            continue
        missing = [
            maker.path
            for maker in makers
            if maker.path not in paths
            and (maker in layers or "/" not in maker.path or maker.path.split("/")[0] in collections)
        ]
        if missing:
            raise ValueError(
                f"the channels of {name!r} are made by {', '.join(missing)} as well, which this optimizer does not "
                "see: give one updater all that makes a group (print(graph) shows it), or leave these layers dense."
            )
        if not all(wants):
            others = {member.path: structures[paths[member.path]] for member in here}
            raise ValueError(
                f"all layers that make the channels of {name!r} need the same structure, and they have {others}: give "
                "each of them this ChannelGroups, or none."
            )
        yield name, [(paths[m.path], m, m in layers) for m in makers if m.path in paths]


def _joined(groups: Mapping[str, Sequence[tuple[int, Any, bool]]]) -> list[list[str]]:
    """Groups put together with those that a leaf makes beside them."""
    joined: list[tuple[set[int], list[str]]] = []
    for name, members in groups.items():
        leaves, names = {leaf for leaf, _, _ in members}, [name]
        for other in [other for other in joined if other[0] & leaves]:
            joined.remove(other)
            leaves, names = leaves | other[0], other[1] + names
        joined.append((leaves, names))
    return [names for _, names in joined]


def common_targets(targets: Sequence[Any], rules: Sequence[Any]) -> list[Any]:
    """Target sparsities in which all that makes a group has the same; see `ChannelGroups`.

    Args:
        targets: By leaf a number, a tuple of one per layer of a stack, or `NOT_PRUNED`.
        rules: By leaf its `MaskRule`.

    Returns:
        By leaf a number, or `NOT_PRUNED`. Leaves of another structure keep what they have.
    """
    layers: dict[int, list[int]] = {}  # biases and scales have no say, for they leave with the channels of their layer
    for leaf, rule in enumerate(rules):
        if any(axis.is_layer for axis in rule.channels):
            layers.setdefault(rule.channels[0].together, []).append(leaf)
    means = {
        together: _mean([targets[i] for i in its], [rules[i].shape for i in its]) for together, its in layers.items()
    }
    common = list(targets)
    for leaf, rule in enumerate(rules):
        if isinstance(rule.structure, ChannelGroups):
            common[leaf] = means[rule.channels[0].together] if rule.channels else NOT_PRUNED
    return common


def _mean(targets: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Any:
    """The mean, weighted by entries; `NOT_PRUNED` if some are not to be pruned."""
    if not all(map(is_pruned, targets)):
        return NOT_PRUNED
    means = [float(np.mean(target)) for target in targets]
    weights = [float(math.prod(shape)) for shape in shapes]
    return means[0] if len(set(means)) == 1 else float(np.average(means, weights=weights))
