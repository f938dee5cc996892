"""The branch that keeps a mask change off the ordinary step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparse_plugins.core.trees import PyTree

__all__ = ["fresh_if"]


def fresh_if(due: Any, fresh: Callable[[], PyTree], stale: PyTree) -> PyTree:
    """`fresh()` where due, else `stale`.

    Args:
        due: bool, concrete or traced bool[]. Under `vmap` it may differ by lane; the branch is then taken for all
            lanes when any is due, so that a guard shared by all lanes stays a branch and never becomes a select.
        fresh: Makes the new tree.
        stale: The tree of the same structure, shapes and dtypes to keep otherwise.

    Returns:
        One of the two trees.

    Example:
        >>> fresh_if(False, lambda: {"mask": 1}, {"mask": 0})
        {'mask': 0}
    """
    if not isinstance(due, jax.core.Tracer):  # known already: an eager loop must not compile a branch at every step
        return fresh() if due else stale

    def chosen() -> PyTree:
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), fresh(), stale)

    return lax.cond(_any_lane(due), chosen, lambda: stale)


@jax.custom_batching.custom_vmap
def _any_lane(due: jax.Array) -> jax.Array:
    return due


@_any_lane.def_vmap
def _reduce_lanes(axis_size: int, in_batched: list, due: jax.Array) -> tuple[jax.Array, bool]:
    return _any_lane(jnp.any(due)), False
