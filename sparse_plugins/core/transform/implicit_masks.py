"""Masks that are not stored: the zeros of the parameters say what is pruned.

For that a kept weight must never be 0, so an update that would take it there stops just beside it. Before the first
step the parameters say nothing yet, and the first masks are made from the seed in the state.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import IN_ZEROS, NOT_PRUNED, kept, map_pruned, pack_masks, packed_shape, unpack
from sparse_plugins.core.selection.topk import varying_with
from sparse_plugins.core.transform.cond import fresh_if, masks_varying_with
from sparse_plugins.core.transform.hooks import UpdaterHooks
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, common_dtype

__all__ = ["beside_zero", "beside_zeros", "forget_masks", "masks_if", "masks_of_step"]


def masks_of_step(
    updater: UpdaterHooks,
    state: SparseState,
    params: PyTree,
    due: Any = False,
    fresh: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
    """The masks in force at a step.

    Args:
        updater: The updater, for its first masks.
        state: Its state, whose masks are `IN_ZEROS`.
        params: Parameters before the step.
        due: Whether masks are updated at this step.
        fresh: From the packed masks before the step to those after.

    Returns:
        bool masks of the parameters' shapes.
    """
    first = state.count == 0
    made = first | due

    def new() -> PyTree:
        masks = fresh_if(first, first_masks, in_zeros())
        return fresh_if(due, lambda: fresh(masks), masks) if fresh else masks

    in_zeros = lambda: pack_masks(params, state.masks)  # noqa: E731
    first_masks = lambda: masks_varying_with(params, pack_masks(params, _first_masks(updater, state, params)))  # noqa: E731
    return masks_if(made, new, params, state.masks)


def masks_if(due: Any, fresh: Callable[[], PyTree], params: PyTree, masks: PyTree) -> PyTree:
    """The masks that are made where due, else those there are, read where they are used.

    Args:
        due: bool, concrete or traced bool[].
        fresh: Makes packed masks.
        params: Parameters, on their masks.
        masks: Their masks, however they are stored.

    Returns:
        bool masks of the parameters' shapes.
    """
    # What is read from the parameters stays outside the branch, where it fuses into whatever uses it.
    blank = lambda p, m: varying_with(jnp.zeros(packed_shape(p.shape), jnp.uint8), p)  # noqa: E731
    bits = fresh_if(due, fresh, map_pruned(blank, params, masks, otherwise=lambda p: NOT_PRUNED))
    choose = lambda p, m, b: jnp.where(due, unpack(b, p.shape), kept(p, m))  # noqa: E731
    return map_pruned(choose, params, masks, bits, otherwise=lambda p, b: NOT_PRUNED)


def _first_masks(updater: UpdaterHooks, state: SparseState, params: PyTree) -> PyTree:
    seeded = copy.copy(updater)
    seeded.rng_seed = state.rng
    hidden = map_pruned(lambda p, m: jnp.zeros(p.shape, jnp.bool_), params, state.masks, otherwise=lambda p: NOT_PRUNED)
    plans = updater.leaf_plans(params)
    return seeded.get_initial_masks(plans.latent_params(params, hidden, state), plans.targets)


def forget_masks(params: PyTree, masks: PyTree) -> PyTree:
    """`IN_ZEROS` for every mask of a tree; markers stay."""
    return map_pruned(lambda p, m: IN_ZEROS, params, masks, otherwise=lambda p: NOT_PRUNED)


def beside_zeros(params: PyTree, updates: PyTree, masks: PyTree) -> PyTree:
    """The updates with which no kept weight lands on 0, from which the next step would read that it is pruned.

    Args:
        params: Parameters before the update.
        updates: What `optax.apply_updates` is going to add.
        masks: The masks that act.
    """
    beside = lambda p, m, u: jnp.where(unpack(m, p.shape), beside_zero(p, u), u)  # noqa: E731
    return map_pruned(beside, params, masks, updates, otherwise=lambda p, u: u)


def beside_zero(param: jax.Array, update: jax.Array) -> jax.Array:
    """The update with which no entry lands on 0.

    Args:
        param: Parameter before the update.
        update: What `optax.apply_updates` is going to add.

    Returns:
        The update; where param + update is 0, the one that lands on the smallest number that rounding and flushing
        of denormals leave alone.

    Example:
        >>> (jnp.array([1.0, 0.0, 2.0]) + beside_zero(jnp.array([1.0, 0.0, 2.0]), jnp.array([-1.0, 0.0, 1.0]))) != 0
        Array([ True,  True,  True], dtype=bool)
    """
    wide = common_dtype(param.dtype, update.dtype)
    limits = jnp.finfo(param.dtype)
    # float16 is computed in float32 or with its denormals, and its smallest normal number is no small weight.
    tiny = limits.smallest_subnormal if param.dtype == jnp.float16 else limits.tiny
    current = param.astype(wide)
    beside = jnp.maximum(jnp.abs(current) * jnp.finfo(wide).eps, jnp.asarray(tiny, wide))
    lost = jnp.abs((current + update.astype(wide)).astype(param.dtype)) < jnp.asarray(tiny, param.dtype)
    return jnp.where(lost, jnp.copysign(beside, current) - current, update.astype(wide))
