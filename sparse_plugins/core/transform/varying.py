"""Values inside `jax.shard_map`, whose types say over which axes of the mesh they differ from device to device.

What is made of constants alone differs over none, and neither a loop nor a branch may mix it with what does.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from sparse_plugins.core.masks import NOT_PRUNED, map_pruned
from sparse_plugins.core.trees import PyTree

__all__ = ["masks_varying_with", "varying_with"]


def varying_with(value: jax.Array, *others: Any) -> jax.Array:
    """The same value, of a type that varies over every axis over which one of the others does.

    Args:
        value: Any array.
        *others: Arrays it is going to meet in a loop or a branch.

    Returns:
        The value itself outside of `jax.shard_map`.

    Example:
        >>> import jax.numpy as jnp
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> over_data = jax.sharding.PartitionSpec("data")
        >>> add = lambda shard: shard + varying_with(jnp.zeros(2), shard)
        >>> jax.shard_map(add, mesh=mesh, in_specs=over_data, out_specs=over_data)(jnp.ones(2)).tolist()
        [1.0, 1.0]
    """
    if not (axes := _axes(others)):
        return value
    missing = axes - _axes([value])
    # Sorted, because all processes of a mesh have to trace the same program.
    return lax.pcast(value, tuple(sorted(missing, key=str)), to="varying") if missing else value


def _axes(values: Sequence[Any]) -> frozenset:
    """The axes of the mesh over which one of the values varies."""
    found: frozenset = frozenset()
    for value in values:
        found |= jax.typeof(value).manual_axis_type.varying
    return found


def masks_varying_with(params: PyTree, masks: PyTree) -> PyTree:
    """Masks that vary as their parameters do; markers stay."""
    if not _axes(jax.tree.leaves(params)):
        return masks
    return map_pruned(lambda p, m: varying_with(m, p), params, masks, otherwise=lambda p: NOT_PRUNED)
