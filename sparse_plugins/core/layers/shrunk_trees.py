"""What is left of parameters, masks and trees like them once channels are gone, and the way back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGraph, Channels
from sparse_plugins.core.masks import NOT_PRUNED, apply_mask, is_pruned, map_pruned
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = [
    "compiled_once",
    "entries_left",
    "part_left",
    "put_back",
    "smaller",
    "taken",
    "taken_along",
    "taken_masks",
]


def taken(graph: Channels, kept: Mapping[str, np.ndarray], tree: PyTree) -> PyTree:
    """What is left of a tree laid out like the parameters.

    Args:
        graph: The network's groups.
        kept: For each group that loses channels those that are left, int[channels left].
        tree: The tree, of the full shapes.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
        >>> jax.tree.map(jnp.shape, taken(graph, {"a": np.array([0, 2])}, params))
        {'a': (3, 2), 'b': (2, 2)}
    """
    leaves, treedef = jax.tree.flatten(tree)
    columns = zip(leaves, jax.tree.leaves(graph.params), entries_left(graph, kept), strict=True)
    return jax.tree.unflatten(treedef, [part_left(_of_shape(leaf, like.shape), its) for leaf, like, its in columns])


def taken_along(graph: ChannelGraph, kept: Mapping[str, np.ndarray], tree: PyTree, optimized: str | None) -> PyTree:
    """The same of a tree beside the parameters, which may hold the optimized part of them alone; by name."""
    columns = zip(leaf_names(graph.params), jax.tree.leaves(graph.params), entries_left(graph, kept), strict=True)
    known = {name: (like.shape, its) for name, like, its in columns}
    (leaves, treedef), names = jax.tree.flatten(tree), leaf_names(tree)
    if {*names} != {*known} and optimized is not None:
        start = f"{optimized}/"
        known = {name.removeprefix(start): row for name, row in known.items() if name.startswith(start)}
    if differing := sorted({*names} ^ {*known}):
        raise ValueError(
            f"a tree in `also` is laid out otherwise than the parameters: they differ in {', '.join(differing)}. Give "
            "trees with an array for each parameter, or for each of the part that `optimized` names."
        )
    rows = [known[name] for name in names]
    small = [part_left(_of_shape(leaf, shape), its) for leaf, (shape, its) in zip(leaves, rows, strict=True)]
    return jax.tree.unflatten(treedef, small)


def _of_shape(leaf: Any, shape: tuple[int, ...]) -> Any:
    if jnp.shape(leaf) != shape:
        raise ValueError(f"an array has shape {jnp.shape(leaf)}, and the parameter in its place has {shape}.")
    return leaf


def put_back(graph: Channels, kept: Mapping[str, np.ndarray], tree: PyTree) -> PyTree:
    """A tree of what is left in the full shapes, 0 where channels are gone; see `taken`."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = zip(leaves, jax.tree.leaves(graph.params), entries_left(graph, kept), strict=True)
    full = [
        leaf if its is None else _put_back(_of_shape(leaf, tuple(map(len, its))), like.shape, its)
        for leaf, like, its in columns
    ]
    return jax.tree.unflatten(treedef, full)


def _put_back(leaf: Any, shape: tuple[int, ...], entries: list[np.ndarray]) -> jax.Array:
    if isinstance(leaf, jax.core.Tracer):
        return jnp.zeros(shape, leaf.dtype).at[jnp.ix_(*entries)].set(leaf)
    full = np.zeros(shape, leaf.dtype)  # eight times as fast on CPUs as the same scatter by XLA
    full[np.ix_(*entries)] = leaf
    return jnp.asarray(full)


def entries_left(graph: Channels, kept: Mapping[str, np.ndarray]) -> list[list[np.ndarray] | None]:
    """For each parameter that shrinks the entries left along every axis."""
    flags: list[list[np.ndarray] | None] = [None] * len(jax.tree.leaves(graph.params))
    for leaf, like in enumerate(jax.tree.leaves(graph.params)):
        flags[leaf] = [np.ones(length, bool) for length in like.shape]
    is_touched = [False] * len(flags)
    for name, left in kept.items():
        group = graph.groups[name]
        stays = np.append(np.isin(np.arange(group.size), left), True)  # the last for entries of no channel
        for member in group.members:
            flags[member.leaf][member.axis] &= stays[member.labels]  # type: ignore[index]
            is_touched[member.leaf] = True
    return [
        [np.flatnonzero(axis) for axis in axes or []] if touched else None
        for axes, touched in zip(flags, is_touched, strict=True)
    ]


def part_left(leaf: Any, entries: list[np.ndarray] | None) -> Any:
    """What is left of an array, by its `entries_left`."""
    shorter = {axis: its for axis, its in enumerate(entries or []) if len(its) < leaf.shape[axis]}
    if not shorter or not is_at_hand(leaf):
        return _part(leaf, shorter) if shorter else leaf
    part = np.asarray(leaf)
    for axis, its in shorter.items():
        part = np.take(part, its, axis)
    return jnp.asarray(part)


def is_at_hand(leaf: Any) -> bool:
    """Whether NumPy reads an array where it lies, which takes the time of a copy, and XLA's that of compiling first."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return isinstance(leaf, np.ndarray)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return not is_key and [device.platform for device in leaf.devices()] == ["cpu"]


@jax.jit
def _part(leaf: jax.Array, entries: dict[int, np.ndarray]) -> jax.Array:
    for axis, its in entries.items():
        leaf = jnp.take(leaf, its, axis=axis, mode="clip")  # all are inside, so that nothing is filled in
    return leaf


def taken_masks(graph: Channels, kept: Mapping[str, np.ndarray], params: PyTree, masks: PyTree) -> PyTree:
    """Masks of what is left; `core.NOT_PRUNED` where a parameter has none. See `taken`."""
    left = [
        part_left(mask, entries) if is_pruned(mask) else NOT_PRUNED
        for mask, entries in zip(aligned(params, masks, "masks"), entries_left(graph, kept), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), left)


def smaller(
    graph: ChannelGraph, params: PyTree, masks: PyTree, kept: Mapping[str, np.ndarray]
) -> tuple[PyTree, PyTree]:
    """What is left of parameters, on the masks that are left, and these; nothing of the full size is copied."""

    def both(params: PyTree, masks: PyTree) -> tuple[PyTree, PyTree]:
        left = taken_masks(graph, kept, params, masks)
        return map_pruned(_on_mask, taken(graph, kept, params), left, otherwise=lambda p: p), left

    is_here = all(map(is_at_hand, jax.tree.leaves((params, masks))))
    return (both if is_here else compiled_once(both))(params, masks)  # else one program for all shapes


def _on_mask(param: Any, mask: Any) -> Any:
    if not is_at_hand(param):
        return apply_mask(param, mask)
    array = np.asarray(param)
    return jnp.asarray(np.where(np.asarray(mask) != 0, array, np.zeros((), array.dtype)))


def compiled_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled for one call or two; on CPUs, compiling it well would take longer than they do."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)
