"""Whether a network without channels computes what the masked one does, and what stands in the way."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.layers.channel_groups import ChannelGraph, followed
from sparse_plugins.core.layers.narrowed import run_narrow, sizes_left
from sparse_plugins.core.layers.shrunk_trees import compiled_once, entries_left, part_left, smaller
from sparse_plugins.core.masks import apply_masks, is_pruned
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["differences", "rounding", "why_not_the_same"]


def differences(
    graph: ChannelGraph, params: PyTree, masks: PyTree, kept: Mapping[str, np.ndarray], small: PyTree
) -> float:
    """How far outputs differ once channels are gone, as a share of the largest."""
    inputs = jax.tree.map(_example, graph.inputs)
    network, entries = followed(graph.apply, graph.params, inputs), entries_left(graph, kept)
    columns = [(params, small, inputs)]
    drawn = _drawn_for_zeros(graph, params, masks, kept)
    if drawn or any(map(_is_zero, jax.tree.leaves(inputs))):
        narrower = {leaf: part_left(value, entries[leaf]) for leaf, value in drawn.items()}
        others = jax.tree.map(lambda leaf: _draws(leaf) if _is_zero(leaf) else leaf, inputs)
        columns.append((_with_leaves(params, drawn), _with_leaves(small, narrower), others))
    masked = compiled_once(lambda params, masks, *inputs: graph.apply(apply_masks(params, masks), *inputs))
    before = [jax.tree.leaves(masked(params, masks, *inputs)) for params, _, inputs in columns]
    del masked  # and with it its program, before there is another
    narrow = compiled_once(functools.partial(run_narrow, network, sizes_left(graph, kept, network.operands)))
    found = []
    for outputs, (_, small, inputs) in zip(before, columns, strict=True):
        pairs = zip(outputs, network.renewed, strict=True)
        whole = [old if leaf is None else part_left(old, entries[leaf]) for old, leaf in pairs]
        found.append(_largest_share(whole, jax.tree.leaves(narrow(small, *inputs)), network.renewed))
    return found[0] if np.isnan(found[-1]) else max(found)  # not every function takes what is drawn


def _largest_share(before: Sequence[Any], after: Sequence[Any], renewed: Sequence[int | None]) -> float:
    """The largest difference of two lists of arrays, as a share of the largest entry; NaN if some are not finite.

    What is laid out like parameters is measured by at least a thousandth of the largest entry of all that is: the
    gradient of the bias of keys is 0 but for rounding.
    """
    rows = []
    for old, new, leaf in zip(before, after, renewed, strict=True):
        if jnp.size(old) and jnp.issubdtype(old.dtype, jnp.inexact):
            wide = np.asarray(old, np.float64), np.asarray(new, np.float64)
            rows.append((np.max(np.abs(wide[0] - wide[1])), np.max(np.abs(wide[0])), leaf is not None))
    floor = 1e-3 * max((largest for _, largest, is_renewed in rows if is_renewed), default=0.0)
    shares = [0.0, *(float(off / (max(largest, floor * is_renewed) or 1.0)) for off, largest, is_renewed in rows)]
    return max(shares) if all(map(np.isfinite, shares)) else float("nan")


def _drawn_for_zeros(
    graph: ChannelGraph, params: PyTree, masks: PyTree, kept: Mapping[str, np.ndarray]
) -> dict[int, np.ndarray]:
    """By number of the parameter: numbers in place of nothing but zeros, behind which all channels look alike.

    Many a last layer begins at 0. What makes channels that leave and has no mask stays as it is.
    """
    makers = {member.leaf for name in kept for member in graph.groups[name].members if member.makes}
    drawn: dict[int, np.ndarray] = {}
    columns = zip(jax.tree.leaves(params), aligned(params, masks, "masks"), strict=True)
    for leaf, (param, mask) in enumerate(columns):
        if (is_pruned(mask) or leaf not in makers) and _is_zero(param):
            drawn[leaf] = _draws(param) * (np.asarray(mask).astype(param.dtype) if is_pruned(mask) else 1)
    return drawn


def _is_zero(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.size(leaf) > 0 and not np.any(np.asarray(leaf))


def _draws(leaf: Any) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(jnp.shape(leaf))).astype(jnp.result_type(leaf))


def _with_leaves(tree: PyTree, others: Mapping[int, Any]) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [others.get(number, leaf) for number, leaf in enumerate(leaves)])


def rounding(graph: ChannelGraph) -> float:
    """What sums in another order may change outputs by."""
    outputs = jax.tree.leaves(jax.eval_shape(graph.apply, graph.params, *graph.inputs))
    return max(
        [1e-4, *(8 * float(jnp.finfo(out.dtype).eps) for out in outputs if jnp.issubdtype(out.dtype, jnp.inexact))]
    )


def _example(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)


def why_not_the_same(
    graph: ChannelGraph,
    params: PyTree,
    masks: PyTree,
    kept: Mapping[str, np.ndarray],
    difference: float,
    tolerance: float,
) -> str:
    """Names a group without which outputs differ, and what to do."""

    def without(names: Sequence[str]) -> float:
        part = {name: kept[name] for name in names}
        return differences(graph, params, masks, part, smaller(graph, params, masks, part)[0])

    names = list(kept)
    while len(names) > 1:  # halves of them, for each comparison compiles the network again
        first, second = names[: len(names) // 2], names[len(names) // 2 :]
        names = second if without(first) <= tolerance else first
    (name,) = names
    alone = without(names)
    makers = ", ".join(member.path for member in graph.groups[name].members if member.makes)
    return (
        f"without the channels of {name!r} outputs differ by {alone:.1e} of the largest (all groups: "
        f"{difference:.1e}; allowed: {tolerance:.0e}). A pruned channel must be 0 for all that read it: prune its bias "
        f"and its scale and shift of a norm as well ({makers}), and keep channels whose statistics, sigmoid or softmax "
        "others see."
    )
