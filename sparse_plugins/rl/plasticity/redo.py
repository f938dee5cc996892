"""Recycling of dormant units with masks: inside their sparse fan-in, or by handing their connections to growth.

What belongs to a unit is found by path (see `rl.links`), where an optimizer keeps its moments by structure, so that
both functions work with any optimizer that a sparse one can be made of, and with a dense one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.initialization import rescale_to_fan_in
from sparse_plugins.core.masks import (
    NOT_PRUNED,
    InZeros,
    apply_masks,
    is_pruned,
    kept,
    map_pruned,
    pack,
    visible_leaves,
)
from sparse_plugins.core.selection.random_scores import key_words, leaf_keys, random_score
from sparse_plugins.core.selection.structured_topk import rank_active_first, regrow_mask
from sparse_plugins.core.structures import Unstructured
from sparse_plugins.core.transform.implicit_masks import beside_zero
from sparse_plugins.core.transform.moments import reset_pruned
from sparse_plugins.core.transform.state import SparseState, find_sparse_state, holds_sparse_state, map_sparse_states
from sparse_plugins.core.trees import PyTree, aligned, leaf_names
from sparse_plugins.rl.plasticity.links import Layers, Links, find_links

__all__ = ["Recycled", "check_growable", "recycle_inside_mask", "recycle_into_growth"]


class Recycled(NamedTuple):
    """Parameters and optimizer state after recycling.

    Attributes:
        params: Parameter tree, on its masks.
        opt_state: Optimizer state.
    """

    params: PyTree
    opt_state: PyTree


def recycle_inside_mask(
    params: PyTree,
    opt_state: PyTree,
    dormant: Mapping[str, jax.Array],
    next_layers: Layers,
    *,
    fresh_params: PyTree,
    optimizer: optax.GradientTransformation,
) -> Recycled:
    """Gives dormant units a new start on the connections they have; masks stay as they are.

    What leads into a dormant unit is drawn anew for the number of inputs it keeps, its bias and the like are as after
    init, what leads out of it is 0, and the moments of all these weights are as after init. A weight between two
    dormant units counts as one that leads in, else the second could never wake up. Straight-through updaters: the
    dense weights behind the mask start anew with the visible ones. The output of the network does not change if the
    dormant units never fire; units that keep no input stay as they are.

    Args:
        params: Parameter tree in use.
        opt_state: State of `optimizer`; the sparse state may be nested in it, and may be missing (a dense network).
        dormant: bool[units] by layer; layers may be left out.
        next_layers: By layer the layers that read it and nothing else: `recyclable(layer_graph(...))`.
        fresh_params: Freshly drawn parameters of the same structure, e.g. `network_def.init(key, state)`.
        optimizer: The optimizer that `opt_state` belongs to, for its init.

    Returns:
        `Recycled(params, opt_state)`; without dormant units both are unchanged, bit-exactly.

    Raises:
        ValueError: If a layer is unknown, `dormant` has another number of units, or a next layer's inputs are no
            multiple of them.

    Example:
        >>> params = {"a": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "out": {"w": jnp.ones((2, 1))}}
        >>> fresh = jax.tree.map(lambda p: 7 * p, params)
        >>> optimizer = optax.adam(0.1)
        >>> new, _ = recycle_inside_mask(params, optimizer.init(params), {"a": jnp.array([False, True])},
        ...                              {"a": ["out"]}, fresh_params=fresh, optimizer=optimizer)
        >>> new["a"]["w"].tolist(), new["out"]["w"].tolist()
        ([[1.0, 7.0], [1.0, 7.0]], [[1.0], [0.0]])

    Source: Sokar et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning (2023), without masks.
    """
    masks = _masks_in_use(params, opt_state)
    nowhere = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bool_), params)
    links = find_links(params, dormant, next_layers)
    return _restart(params, opt_state, masks, links, nowhere, fresh_params, optimizer)


def recycle_into_growth(
    params: PyTree,
    opt_state: PyTree,
    dormant: Mapping[str, jax.Array],
    next_layers: Layers,
    *,
    fresh_params: PyTree,
    optimizer: optax.GradientTransformation,
    updater: BaseUpdater,
    key: jax.Array,
    grads: PyTree | None = None,
) -> Recycled:
    """Gives the connections of dormant units to others: drops them and grows as many in the same layer.

    Grown weights start at 0 with fresh moments, so the output of the network does not change if the dormant units
    never fire, and each layer keeps exactly as many weights as before. The unit itself is given up until growth comes
    back to it. What finds no free place in its layer stays and is recycled inside the mask, and so are the units of
    layers without masks.

    Args:
        params: Parameter tree in use.
        opt_state: State of `optimizer`, with a sparse state anywhere in it.
        dormant: bool[units] by layer; layers may be left out.
        next_layers: By layer the layers that read it and nothing else.
        fresh_params: Freshly drawn parameters of the same structure.
        optimizer: The optimizer that `opt_state` belongs to.
        updater: The updater whose masks these are, for their structure.
        key: JAX key, or int, for random growth.
        grads: Gradients: grow where their absolute value is largest, in place of at random.

    Returns:
        `Recycled(params, opt_state)`.

    Raises:
        ValueError: If masks have a structure, follow dense weights, or do not exist; or as `recycle_inside_mask`.

    Example:
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = core.StaticRandomSparse(
        ...     sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5), use_packed_masks=False)
        >>> params = {"a": {"w": jnp.array([[2.0, 3.0, 0.0, 0.0]])}, "out": {"w": jnp.array([[1.0], [1], [0], [0]])}}
        >>> optimizer = updater.wrap_optax(optax.adam(0.1))
        >>> masks = jax.tree.map(lambda p: (p != 0).astype(jnp.uint8), params)
        >>> new, state = recycle_into_growth(
        ...     params, optimizer.init(params)._replace(masks=masks), {"a": jnp.array([False, True, False, False])},
        ...     {"a": ["out"]}, fresh_params=params, optimizer=optimizer, updater=updater, key=0,
        ...     grads={"a": {"w": jnp.array([[0.0, 9.0, 1.0, 2.0]])}, "out": {"w": jnp.ones((4, 1))}})
        >>> new["a"]["w"].tolist(), state.masks["a"]["w"].tolist()
        ([[2.0, 0.0, 0.0, 0.0]], [[1, 0, 0, 1]])

    Source: after Sokar et al. (2023) and Evci et al., Rigging the Lottery (2020).
    """
    check_growable(params, opt_state, updater)
    masks = _masks_in_use(params, opt_state)
    links = find_links(params, dormant, next_layers)
    sources = leaf_keys(params, key_words(key), 0) if grads is None else grads

    def regrown(param: jax.Array, mask: jax.Array, into: jax.Array, out_of: jax.Array, source: jax.Array) -> jax.Array:
        stays = ~(into | out_of)
        scores = random_score(param, source) if grads is None else jnp.abs(source)
        elsewhere_first = rank_active_first(scores, stays, Unstructured())
        kept_before, survivors = jnp.count_nonzero(mask), jnp.count_nonzero(mask & stays)
        drop_scores = stays.astype(jnp.float32)
        return regrow_mask(mask, drop_scores, elsewhere_first, Unstructured(), kept_before, survivors) != 0

    new_masks = map_pruned(regrown, params, masks, *links, sources, otherwise=lambda *_: NOT_PRUNED)
    is_new = lambda param, new, old: new & ~old  # noqa: E731
    grown = map_pruned(is_new, params, new_masks, masks, otherwise=lambda p, _: jnp.zeros(p.shape, jnp.bool_))
    recycled = _restart(params, opt_state, new_masks, links, grown, fresh_params, optimizer)
    return recycled._replace(opt_state=_with_masks(recycled.opt_state, params, new_masks))


def check_growable(params: PyTree, opt_state: PyTree, updater: BaseUpdater) -> None:
    """Checks, before a run, that `recycle_into_growth` will work.

    Args:
        params: Parameter tree.
        opt_state: Optimizer state.
        updater: The updater whose masks are in it.

    Raises:
        ValueError: If there are no masks, if they have a structure that single weights would break, or if they follow
            dense weights.

    Example:
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = core.SET(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
        >>> params = {"w": jnp.ones((2, 2))}
        >>> check_growable(params, updater.init_state(params), updater)
    """
    if not holds_sparse_state(opt_state):
        find_sparse_state(opt_state)
    if any(map(is_pruned, aligned(params, _stored(params, opt_state, "dense_params"), "dense weights"))):
        raise ValueError(
            f"masks of {type(updater).__name__} follow the dense weights behind them, so that what is grown would be "
            "gone at the next step; use recycle_inside_mask."
        )
    if updater.has_custom_topk:
        raise ValueError(
            f"masks of {type(updater).__name__} come from a topk_fn, which growth of single weights would break; "
            "use recycle_inside_mask, or sparsity_type in place of topk_fn."
        )
    names = leaf_names(params)
    structures = [rule.structure for rule in updater.mask_rules(params)]
    for name, structure, mask in zip(
        names, structures, aligned(params, _stored(params, opt_state, "masks"), "masks"), strict=True
    ):
        if is_pruned(mask) and not isinstance(structure, Unstructured):
            raise ValueError(
                f"the mask of {name!r} is {structure}, and single weights are grown without regard to structures; use "
                "recycle_inside_mask, or Unstructured()."
            )


def _restart(
    params: PyTree,
    opt_state: PyTree,
    masks: PyTree,
    links: Links,
    grown: PyTree,
    fresh_params: PyTree,
    optimizer: optax.GradientTransformation,
) -> Recycled:
    """Weights of dormant units start anew on `masks`, grown ones at 0, and the moments of all of them with them."""
    drawn = jax.tree.unflatten(jax.tree.structure(params), aligned(params, fresh_params, "fresh parameters"))
    on_masks = rescale_to_fan_in(drawn, masks)

    def renewed(current: jax.Array, new: jax.Array, into: jax.Array, out_of: jax.Array, is_new: jax.Array) -> jax.Array:
        silent = jnp.where(out_of | is_new, jnp.zeros((), current.dtype), current)
        return jnp.where(into, new.astype(current.dtype), silent)

    visible = apply_masks(jax.tree.map(renewed, params, on_masks, *links, grown), masks)
    visible = _off_zero(visible, masks, _stored(params, opt_state, "masks"))
    # Where dense weights stand behind the mask, those out of view start anew as well.
    dense = _stored(params, opt_state, "dense_params")
    behind = map_pruned(lambda d, m, v: jnp.where(m, v, d), drawn, masks, on_masks, otherwise=lambda d, v: v)
    latent = map_pruned(lambda p, d: d, params, dense, otherwise=lambda p: p)
    latent = jax.tree.map(renewed, latent, behind, *links, grown)
    latent = map_pruned(lambda v, d, new: new, visible, dense, latent, otherwise=lambda v, new: v)
    untouched = jax.tree.map(lambda into, out_of, is_new: ~(into | out_of | is_new), *links, grown)
    return Recycled(visible, _with_latent(opt_state, params, latent, untouched, optimizer.init(latent)))


def _off_zero(params: PyTree, masks: PyTree, stored: PyTree) -> PyTree:
    """Where masks are the zeros of parameters, kept weights stand beside 0."""

    def off_zero(param: jax.Array, mask: jax.Array, store: Any) -> jax.Array:
        if not isinstance(store, InZeros):
            return param
        return jnp.where(mask, param + beside_zero(param, jnp.zeros_like(param)), param)

    return map_pruned(off_zero, params, masks, stored, otherwise=lambda param, store: param)


# What the sparse states of an optimizer state hold. There may be none, or one for each part of the parameters.


def _is_sparse_state(node: Any) -> bool:
    return isinstance(node, SparseState)


def _stored(params: PyTree, opt_state: PyTree, field: str) -> PyTree:
    """A field of the sparse states, `NOT_PRUNED` where none has anything."""
    states = filter(_is_sparse_state, jax.tree.leaves(opt_state, is_leaf=_is_sparse_state))
    trees = [tree for state in states if (tree := getattr(state, field)) != ()]
    blank = [NOT_PRUNED] * len(jax.tree.leaves(params))
    columns = zip(blank, *(aligned(params, tree, field) for tree in trees), strict=True)
    nodes = [next(filter(is_pruned, column), NOT_PRUNED) for column in columns]
    return jax.tree.unflatten(jax.tree.structure(params), nodes)


def _masks_in_use(params: PyTree, opt_state: PyTree) -> PyTree:
    """Masks as bool arrays of the parameters' shapes."""
    return map_pruned(kept, params, _stored(params, opt_state, "masks"), otherwise=lambda p: NOT_PRUNED)


def _with_masks(opt_state: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """The optimizer state with other masks, stored as before."""

    def like(param: jax.Array, old: Any, new: jax.Array) -> Any:
        if isinstance(old, InZeros):
            return old
        return new.astype(jnp.uint8) if old.shape == param.shape else pack(new)

    def replaced(state: SparseState) -> SparseState:
        visible, new = visible_leaves(params, state.masks), visible_leaves(masks, state.masks)
        return state._replace(masks=map_pruned(like, visible, state.masks, new, otherwise=lambda *_: NOT_PRUNED))

    return map_sparse_states(replaced, opt_state)


def _with_latent(opt_state: PyTree, params: PyTree, latent: PyTree, untouched: PyTree, fresh: PyTree) -> PyTree:
    """The optimizer state with other dense weights, its moments as in `fresh` but for untouched weights."""
    bare = lambda node: node.inner_state if _is_sparse_state(node) else node  # noqa: E731
    moments, fresh_moments = (jax.tree.map(bare, tree, is_leaf=_is_sparse_state) for tree in (opt_state, fresh))

    def put_back(node: Any, inner_state: PyTree) -> Any:
        if not _is_sparse_state(node):
            return inner_state
        if node.dense_params == ():
            return node._replace(inner_state=inner_state)
        visible, new = visible_leaves(params, node.masks), visible_leaves(latent, node.masks)
        dense = map_pruned(lambda p, d, n: n, visible, node.dense_params, new, otherwise=lambda p, n: NOT_PRUNED)
        return node._replace(inner_state=inner_state, dense_params=dense)

    restarted = reset_pruned(moments, fresh_moments, params, untouched)
    return jax.tree.map(put_back, opt_state, restarted, is_leaf=_is_sparse_state)
