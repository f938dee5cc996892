"""Masks of a tree made one leaf after another, so that the leaves can share one piece of memory.

XLA's CPU compiler would first write out the scores of all leaves, as much memory as the parameters take. Nothing but
data can tell it to wait: what a leaf's scores are made of is made to depend on the mask of the leaf before.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.selection.topk import is_single_cpu

__all__ = ["in_turns"]

_LARGE = 1 << 16  # below that a wait costs more than the memory is worth
_PROBED = 16


def in_turns(make_mask: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function to map over the leaves of a tree, that starts on a large leaf when the one before is done.

    Args:
        make_mask: From arrays (and anything else) of one leaf to its uint8 mask. What it computes from their values
            waits; what was computed before it is called does not.

    Returns:
        The function, for one pass over a tree. It changes no value, and nothing at all on accelerators and where
        there are several devices.

    Example:
        >>> masks = lambda *scores: list(map(in_turns(lambda s: (s > 0).astype(jnp.uint8)), scores))
        >>> [int(mask.sum()) for mask in jax.jit(masks)(jnp.ones(100_000), -jnp.ones(100_000))]
        [100000, 0]
    """
    if not is_single_cpu():
        return make_mask
    done: list[jax.Array] = []

    def make(*leaf: Any) -> jax.Array:
        traced = [part for part in leaf if isinstance(part, jax.core.Tracer)]
        if max(map(jnp.size, traced), default=0) < _LARGE:
            return make_mask(*leaf)
        if done:
            leaf = tuple(_after(done[-1], part) if isinstance(part, jax.core.Tracer) else part for part in leaf)
        mask = make_mask(*leaf)
        done.append(jnp.sum(mask.reshape(-1)[:_PROBED], dtype=jnp.int32))
        # Else the old mask may be probed after the new one is in its place, for which the compiler copies all masks.
        return _after(done[-1], mask)

    return make


def _after(probed: jax.Array, array: jax.Array) -> jax.Array:
    """The array, once something else is done."""
    is_done = probed <= _PROBED  # always, but the compiler does not know
    return jnp.where(is_done, array, jnp.zeros((), array.dtype))
