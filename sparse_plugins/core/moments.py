"""Fresh optimizer moments for re-grown weights, for any optax state.

An optimizer state is searched by structure, never by type: any part of it that is laid out like the parameters (first
and second moments, traces, slow weights, accumulated gradients, ...) is parameter-shaped state.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import is_pruned, unpack
from sparse_plugins.core.trees import PyTree

__all__ = ["reset_pruned"]


def reset_pruned(state: PyTree, fresh: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """Optimizer state whose entries for pruned weights are as after init.

    Done before every update, it makes a re-grown weight start from fresh moments without the mask change having to
    touch the optimizer state.

    Args:
        state: State of an optax transformation.
        fresh: State of the same transformation right after init.
        params: Parameter tree.
        masks: Mask tree, packed or not.

    Returns:
        A state of the same structure. Parts that are not parameter-shaped (counts, factored moments of Adafactor)
        are returned as they are.

    Example:
        >>> import optax
        >>> params, masks = {"w": jnp.ones(2)}, {"w": jnp.array([1, 0], jnp.uint8)}
        >>> state = optax.TraceState(trace={"w": jnp.array([3.0, 4.0])})
        >>> reset_pruned(state, optax.trace(0.9).init(params), params, masks).trace["w"].tolist()
        [3.0, 0.0]
    """
    treedef: Any = jax.tree.structure(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    mask_leaves = treedef.flatten_up_to(masks)

    def like_params(node: Any) -> bool:
        try:
            parts = treedef.flatten_up_to(node)
        except (ValueError, TypeError, KeyError):
            return False
        return any(
            is_pruned(mask) and jnp.shape(part)[-len(shape) :] == shape
            for part, mask, shape in zip(parts, mask_leaves, shapes, strict=True)
            if isinstance(part, jax.Array)
        )

    def reset(node: Any, fresh_node: Any) -> Any:
        if not like_params(node):
            return node
        columns = (treedef.flatten_up_to(node), treedef.flatten_up_to(fresh_node), mask_leaves, shapes)
        return treedef.unflatten([_reset_leaf(*column) for column in zip(*columns, strict=True)])

    return jax.tree.map(reset, state, fresh, is_leaf=like_params)


def _reset_leaf(value: Any, fresh: Any, mask: Any, shape: tuple[int, ...]) -> Any:
    """A leaf may have leading axes of its own (a history of updates); other shapes are left alone."""
    if not (is_pruned(mask) and isinstance(value, jax.Array) and value.shape[-len(shape) :] == shape):
        return value
    return jnp.where(unpack(mask, shape), value, fresh)
