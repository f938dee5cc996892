"""Fresh optimizer moments for re-grown weights, for any optax state.

An optimizer state is searched by structure, never by type: any part of it that is laid out like the parameters (first
and second moments, traces, slow weights, accumulated gradients, ...) is parameter-shaped state. In the place of a
parameter may stand an array of its shape, one with leading axes (a history of updates), or several of them. Statistics
that a parameter's weights share (factored moments, one number per layer) go on when a weight is re-grown.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.masks import MARKERS, is_pruned, unpack
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["check_inner", "check_restartable", "owners", "reset_pruned"]


def reset_pruned(state: PyTree, fresh: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """Optimizer state whose entries for pruned weights are as after init.

    Done before every update, it makes a re-grown weight start from fresh moments without the mask update having to
    touch the optimizer state.

    Args:
        state: State of an optax transformation.
        fresh: State of the same transformation right after init.
        params: Parameter tree.
        masks: Mask tree, packed or not.

    Returns:
        A state of the same structure, shapes and dtypes. Parts that are not parameter-shaped (counts, factored moments
        of Adafactor) and parts that are not there after init (measurements) are returned as they are.

    Example:
        >>> params, masks = {"w": jnp.ones(2)}, {"w": jnp.array([1, 0], jnp.uint8)}
        >>> state = optax.TraceState(trace={"w": jnp.array([3.0, 4.0])})
        >>> reset_pruned(state, optax.trace(0.9).init(params), params, masks).trace["w"].tolist()
        [3.0, 0.0]
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    mask_leaves = aligned(params, masks, "masks")
    start = dict(jax.tree_util.tree_flatten_with_path(fresh)[0])
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)

    def reset(path: Any, leaf: Any, owner: int | None) -> Any:
        if owner is None or path not in start or isinstance(mask_leaves[owner], MARKERS):
            return leaf
        if not _has_entry_per_weight(jnp.shape(leaf), shapes[owner]):  # a row that kept weights share is theirs, too
            return leaf
        kept = unpack(mask_leaves[owner], shapes[owner]).reshape(_without_history(jnp.shape(leaf), shapes[owner]))
        return jnp.where(kept, leaf, jnp.asarray(start[path], jnp.result_type(leaf)))

    pairs = zip(leaves, owners(state, params), strict=True)
    return treedef.unflatten([reset(path, leaf, owner) for (path, leaf), owner in pairs])


def check_inner(restarts: bool, init: Callable[[PyTree], PyTree], state: PyTree, params: PyTree, masks: PyTree) -> None:
    """Checks, when a sparse state is made, that the optimizer inside can be supported.

    Args:
        restarts: Whether re-grown weights are to start from fresh moments.
        init: The optimizer's init.
        state: What it gave for `params`.
        params: Parameter tree.
        masks: Mask tree, packed or not.

    Raises:
        TypeError: If the optimizer works on pairs of parameters.
        ValueError: If moments of re-grown weights cannot be restarted.
    """
    is_pair = lambda node: isinstance(node, optax.LookaheadState)  # noqa: E731
    if any(map(is_pair, jax.tree.leaves(state, is_leaf=is_pair))):
        raise TypeError(
            "optax.lookahead works on pairs of fast and slow parameters, an updater on parameters: it can stand "
            "neither inside wrap_optax nor around it. Give the fast optimizer alone; optax.contrib.schedule_free "
            "averages parameters too and can stand inside."
        )
    if restarts:
        check_restartable(init, state, params, masks)


def check_restartable(init: Callable[[PyTree], PyTree], state: PyTree, params: PyTree, masks: PyTree) -> None:
    """Checks that all state which an optimizer keeps for pruned weights is found by `reset_pruned`.

    Only structures and sizes are looked at: a part of the state that gets larger when pruned parameters do has to hold
    one entry per weight, in the parameters' layout, or fewer that are shared along whole axes.

    Args:
        init: The optimizer's init.
        state: What it gave for `params`.
        params: Parameter tree.
        masks: Mask tree, packed or not.

    Raises:
        ValueError: If a part of the state is neither.

    Example:
        >>> params, masks = {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3), jnp.uint8)}
        >>> tx = optax.flatten(optax.trace(0.9))
        >>> check_restartable(tx.init, tx.init(params), params, masks)
        Traceback (most recent call last):
        ValueError: the optimizer keeps state 'trace' of shape (6,) for pruned weights, ...
    """
    weights, treedef = jax.tree.flatten(params)
    pruned = [is_pruned(mask) for mask in aligned(params, masks, "masks")]
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)

    def is_odd(shape: tuple[int, ...], owner: int | None) -> bool:
        if owner is None:
            return shape != ()
        param_shape = jnp.shape(weights[owner])
        return pruned[owner] and not _has_entry_per_weight(shape, param_shape) and not _is_shared(shape, param_shape)

    owned = zip(leaves, owners(state, params), strict=True)
    odd = [i for i, ((_, leaf), owner) in enumerate(owned) if is_odd(jnp.shape(leaf), owner)]
    if not odd:
        return

    def init_wider(wider: dict[int, jax.Array]) -> PyTree:
        return init(treedef.unflatten([wider.get(i, weight) for i, weight in enumerate(weights)]))

    # State that does not grow with the pruned parameters holds nothing for each of their weights.
    double = lambda p: jax.ShapeDtypeStruct([2 * length for length in p.shape], jnp.result_type(p))  # noqa: E731
    grown = jax.tree.leaves(jax.eval_shape(init_wider, {i: double(p) for i, p in enumerate(weights) if pruned[i]}))
    for i in odd:
        path, leaf = leaves[i]
        if grown[i].shape != jnp.shape(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the optimizer keeps state {name!r} of shape {jnp.shape(leaf)} for pruned weights, so those that are "
                "re-grown could not start from fresh moments: it has to hold one entry per weight, laid out like the "
                "parameters, or entries shared along whole axes. Take out what lays parameters out anew "
                "(optax.flatten) or mixes weights (optax.contrib.galore), or choose an updater that never brings "
                "weights back, such as MagnitudePruning."
            )


def owners(state: PyTree, params: PyTree) -> list[int | None]:
    """Which parameter every leaf of an optimizer state stands for; the smallest part laid out like all of them says.

    Args:
        state: Any optimizer state, or a part of one.
        params: Parameter tree.

    Returns:
        For each leaf of `state` the number of its parameter among the leaves of `params`, or None.

    Example:
        >>> params = {"b": jnp.ones(2), "w": jnp.ones((2, 3))}
        >>> owners(optax.adam(0.1).init(params), params)  # count, mu, nu
        [None, 0, 1, 0, 1]
    """
    structures = jax.tree.structure(state), jax.tree.structure(params)
    try:
        hash(structures)
    except TypeError:  # a node cannot be hashed
        return _owners(state, params)
    return list(_owners_by_structure(*structures))


@functools.lru_cache(maxsize=1 << 8)
def _owners_by_structure(state: Any, params: Any) -> list[int | None]:
    """`owners` of trees of these structures, found once."""
    return _owners(*(structure.unflatten(range(structure.num_leaves)) for structure in (state, params)))


def _owners(state: PyTree, params: PyTree) -> list[int | None]:
    children = jax.tree.leaves(state, is_leaf=lambda child: child is not state)
    if len(children) == 1 and children[0] is state:
        return [0 if jax.tree_util.all_leaves([params]) else None]
    below = [owner for child in children for owner in _owners(child, params)]
    if type(state) is not type(params) or any(owner is not None for owner in below):
        return below
    parts = _parts(state, params)
    return below if parts is None else [i for i, part in enumerate(parts) for _ in jax.tree.leaves(part)]


def _parts(node: PyTree, params: PyTree) -> list[Any] | None:
    """What stands in `node` for each parameter, or None if it is laid out otherwise."""
    treedef: Any = jax.tree.structure(params)
    try:
        return treedef.flatten_up_to(node)
    except (ValueError, TypeError, KeyError):
        is_hidden = lambda part: isinstance(part, optax.MaskedNode)  # noqa: E731
        if not any(map(is_hidden, jax.tree.leaves(node, is_leaf=is_hidden))):
            return None
    try:
        return aligned(params, node, "the optimizer's state")  # whole branches may be hidden behind one node
    except ValueError:
        return None


def _without_history(shape: tuple[int, ...], param_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a leaf that belong to the weights of a parameter; any axes before them hold its history."""
    return shape[-len(param_shape) :] if shape[-len(param_shape) :] == param_shape else shape


def _has_entry_per_weight(shape: tuple[int, ...], param_shape: tuple[int, ...]) -> bool:
    """Axes of length 1 do not count: where a parameter is a column, its factored moments are its moments."""
    long_axes = lambda axes: [length for length in axes if length != 1]  # noqa: E731
    return long_axes(_without_history(shape, param_shape)) == long_axes(param_shape)


def _is_shared(shape: tuple[int, ...], param_shape: tuple[int, ...]) -> bool:
    """Whether axes of the parameter are left out, in order, or shrunk to one entry."""
    axes = iter(param_shape)
    return math.prod(shape) < math.prod(param_shape) and all(length in axes for length in shape if length != 1)
