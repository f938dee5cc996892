"""The channels of a network that can only leave together, and what keeps the others."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.layers.factors import Axis, Factor, factors, pin, reasons, root
from sparse_plugins.core.layers.jaxpr_walk import Value, Walked, fresh, walk
from sparse_plugins.core.layers.joined_axes import Joined
from sparse_plugins.core.layers.roles import trace_layers, traced_program
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.selection.counts import check_fraction, keep_count
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Channels",
    "Member",
    "Network",
    "channel_graph",
    "channel_masks",
    "followed",
    "labels",
    "movable",
    "squares_of_channels",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a parameter that channels of a group run along.

    Attributes:
        leaf: Number of the parameter among the leaves of the tree.
        path: Its name.
        axis: Number of the axis.
        labels: int[length of the axis]: the channel of every entry, -1 where it belongs to none of the group.
        makes: Whether the parameter makes the channel (as outputs, or as bias or scale of it) instead of reading it.
    """

    leaf: int
    path: str
    axis: int
    labels: np.ndarray
    makes: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that every parameter named here has, and that leave in all of them or in none.

    Attributes:
        name: The parameter that makes them first.
        size: How many there are.
        members: Axes of parameters that they run along.
    """

    name: str
    size: int
    members: tuple[Member, ...]


class Channels(Protocol):
    """Groups of channels of parameters: a `ChannelGraph`, or what somebody wrote down."""

    @property
    def groups(self) -> Mapping[str, ChannelGroup]:
        """The groups, by name."""

    @property
    def params(self) -> PyTree:
        """Shapes and dtypes of the parameters."""


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Groups of channels of a function of parameters and inputs; `print` shows them as a table.

    Attributes:
        apply: The function.
        groups: The groups, by name.
        stays: For each axis of a parameter that cannot shrink, by (path, axis), why.
        layers: The roles of all axes.
        params: Shapes and dtypes of its parameters.
        inputs: The inputs it was traced with.
    """

    apply: Callable[..., Any]
    groups: Mapping[str, ChannelGroup]
    stays: Mapping[tuple[str, int], str]
    layers: Layers
    params: PyTree
    inputs: tuple[PyTree, ...]

    def __str__(self) -> str:
        rows = []
        for group in self.groups.values():
            its = ", ".join(f"{member.path}[{member.axis}]" for member in group.members)
            rows.append(f"{group.name}: {group.size} channels of {its}")
        rows += [f"stays: {path}[{axis}], because of {reason}" for (path, axis), reason in self.stays.items()]
        return "\n".join(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A program, and what a walk through it has joined.

    Attributes:
        program: The closed jaxpr.
        operands: Values of its parameters and inputs.
        walked: What was seen of it.
        result_tree: Structure of what the function returns.
        renewed: For each result the number of the parameter whose new value it is; None if it is none.
    """

    program: Any
    operands: list[Value]
    walked: Walked
    result_tree: Any
    renewed: tuple[int | None, ...]


def followed(apply: Callable[..., Any], params: PyTree, inputs: Sequence[PyTree]) -> Network:
    """Traces a function and joins its axes; what it takes and returns besides parameters is pinned."""
    program, results = traced_program(apply, params, inputs)
    renewed = _renewed(params, results)
    count = len(jax.tree.leaves(params))
    operands = [fresh(variable, place >= count) for place, variable in enumerate(program.jaxpr.invars)]
    is_derivative = 2 * len({*renewed} - {None}) > count  # it gives more than running statistics
    joined = Joined(follows_zeros=not is_derivative)
    walked = walk(joined, program, operands)
    outputs = [value for value, leaf in zip(walked.results, renewed, strict=True) if leaf is None]
    for value, leaf in zip(walked.results, renewed, strict=True):
        if leaf is not None:
            joined.same(value, operands[leaf])
    for reason, values in (("an input", operands[count:]), ("an output", outputs)):
        for value in values:
            for axis in value.axes:
                pin(axis, reason)
    for value in operands[:count]:
        for axis in value.axes:
            _pin_what_repeats(axis)
    joined.settle()
    return Network(program, operands, walked, jax.tree.structure(results), renewed)


def _renewed(params: PyTree, results: PyTree) -> tuple[int | None, ...]:
    """Which results are new values of parameters: running statistics come back under the path they went in by."""
    shapes = {f"/{name}": (leaf, jnp.shape(p)) for leaf, (name, p) in enumerate(_named(params)) if name}
    found: list[int | None] = []
    for name, result in _named(results):
        ends = [name[place:] for place, letter in enumerate(name) if letter == "/"]
        leaf, shape = next((shapes[end] for end in ["/" + name, *ends] if end in shapes), (None, ()))
        found.append(leaf if shape == result.shape else None)
    return tuple(found)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return list(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def _pin_what_repeats(axis: Axis) -> None:
    found = factors(axis)
    for factor in found:
        if found.count(factor) > 1:
            factor.pins.add("channels that an axis holds twice")


def movable(axis: Axis) -> list[Factor]:
    """The factors of an axis, or of the segments that it joins, whose entries may leave."""
    found = []
    for factor in factors(axis):
        if factor.segments:
            found += [part for segment in factor.segments for part in movable(segment)]
        elif factor.size > 1 and not factor.pins:
            found.append(factor)
    return found


def labels(axis: Axis, target: Factor) -> np.ndarray:
    """int[length]: the entry of a factor that every entry of an axis belongs to, -1 where it belongs to none."""
    grid = np.full((), -1)
    for factor in factors(axis):
        if factor.segments:
            its = np.concatenate([labels(segment, target) for segment in factor.segments])
        else:
            its = np.arange(factor.size) if factor is target else np.full(factor.size, -1)
        grid = np.maximum(grid[..., None], its)
    return grid.reshape(-1)


def channel_graph(apply: Callable[..., Any], params: PyTree, *inputs: Any) -> ChannelGraph:
    """The groups of channels that can leave a network, for any function of parameters and inputs.

    What the trace cannot follow keeps its channels, and is named. An output under the path of a parameter is taken for
    its new value, as batch norm's running statistics are in training, and shrinks along.

    Args:
        apply: `(params, *inputs)` to outputs.
        params: Parameter tree; it is not computed with.
        *inputs: Trees of inputs.

    Returns:
        The graph, for `core.shrink` and `core.ChannelGroups`.

    Raises:
        TypeError: If the function cannot be called with these arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> apply = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
        >>> print(channel_graph(apply, params, jnp.ones((4, 3))))
        a: 8 channels of a[1], b[0]
        stays: a[0], because of an input
        stays: b[1], because of an output

    Source: Fang et al., DepGraph: Towards Any Structural Pruning (2023), for modules of PyTorch.
    """
    network = followed(apply, params, inputs)
    layers = trace_layers(apply, params, *inputs)
    names = leaf_names(params)
    members: dict[Factor, list[Member]] = {}
    stays: dict[tuple[str, int], str] = {}
    for leaf, (name, value) in enumerate(zip(names, network.operands, strict=False)):
        for place, axis in enumerate(value.axes):
            roles = {part.role for part in layers[name].axes[place]}
            found = movable(axis)
            if not found and roles != {"space"} and math.prod(f.size for f in axis) > 1:
                stays[name, place] = " and ".join(sorted(reasons(axis)))
            for factor in map(root, found):
                member = Member(leaf, name, place, labels(axis, factor), roles <= {"outputs", "elementwise"})
                members.setdefault(factor, []).append(member)
    groups: dict[str, ChannelGroup] = {}
    for factor, its in members.items():
        first = next((m for m in its if m.makes and layers[m.path].is_layer), its[0])
        name = _new_name(first, groups)
        groups[name] = ChannelGroup(name, int(factor.size), tuple(its))
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)
    return ChannelGraph(apply, groups, stays, layers, shapes, inputs)


def _new_name(member: Member, taken: Mapping[str, ChannelGroup]) -> str:
    """Of a group that a member makes first; several groups may run along one axis."""
    axis = f"{member.path}[{member.axis}]"
    names = itertools.chain([member.path, axis], (f"{axis} ({number})" for number in itertools.count(3)))
    return next(name for name in names if name not in taken)


def channel_masks(graph: ChannelGraph, params: PyTree, sparsity: float) -> PyTree:
    """Masks that keep the strongest channels of every group, whole.

    A channel is as strong as the l2 norm of all that makes it. Parameters that no group has stay unpruned, and at least
    one channel of each group is kept.

    Args:
        graph: The network's groups.
        params: Its parameters.
        sparsity: Fraction of the channels of each group to prune, in [0, 1).

    Returns:
        Tree of uint8 masks, `NOT_PRUNED` where a parameter makes no channel, for `with_masks` of updaters and `shrink`.

    Raises:
        ValueError: If the sparsity is not allowed.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.array([[3.0, 1.0, 2.0, 4.0]]), "b": jnp.ones((4, 2))}
        >>> graph = channel_graph(lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"], params, jnp.ones((1, 1)))
        >>> channel_masks(graph, params, 0.5)["a"].tolist()
        [[1, 0, 0, 1]]
    """
    check_fraction("sparsity", sparsity)
    leaves = [np.asarray(leaf) for leaf in aligned(graph.params, params, "params")]
    masks: dict[int, np.ndarray] = {}
    for group in graph.groups.values():
        makers = [member for member in group.members if member.makes]
        strength = np.sum([squares_of_channels(group, member, leaves[member.leaf]) for member in makers], axis=0)
        order = np.argsort(-strength, kind="stable")
        gone = order[max(1, keep_count(group.size, sparsity)) :]
        for member in makers:
            mask = masks.setdefault(member.leaf, np.ones(leaves[member.leaf].shape, np.uint8))
            np.moveaxis(mask, member.axis, 0)[np.isin(member.labels, gone)] = 0
    made = [jnp.asarray(masks[leaf]) if leaf in masks else NOT_PRUNED for leaf in range(len(leaves))]
    return jax.tree.unflatten(jax.tree.structure(params), made)


def squares_of_channels(group: ChannelGroup, member: Member, leaf: np.ndarray) -> np.ndarray:
    """float64[channels]: the sum of squares of all entries of each channel."""
    along = np.sum(leaf.astype(np.float64) ** 2, axis=tuple(axis for axis in range(leaf.ndim) if axis != member.axis))
    inside = member.labels >= 0
    return np.bincount(member.labels[inside], along[inside], group.size)
