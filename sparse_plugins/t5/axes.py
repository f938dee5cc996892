"""Logical axes of an optimizer state, from those of the parameters.

The state is read by structure, never by type, so that no table has to know it: whatever stands in the place of a
parameter takes over the names of the axes that it shares with it.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sparse_plugins.core.transform.moments import owners
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["state_axes"]


def state_axes(state: PyTree, params: PyTree, param_axes: PyTree, devices: int | None = None) -> PyTree:
    """How to partition an optimizer state whose parameters are partitioned by named axes.

    Masks, dense weights and moments follow their parameters. A packed mask is shorter along one axis, where eight
    entries share a byte; that axis is left whole unless every mesh that divides the parameter there divides the mask,
    too. Factored moments follow the axes they were not averaged over, if lengths alone tell which those are.
    Everything else, counts and keys among it, is on every device.

    Args:
        state: State of any optimizer; arrays, or anything with a shape.
        params: The parameters it belongs to; only shapes are read.
        param_axes: `PartitionSpec` of axis names for every parameter, or None; same structure.
        devices: How many devices meshes are made of; None for those there are.

    Returns:
        Tree of the structure of `state` with a `PartitionSpec`, or None for replication, in place of every array.

    Raises:
        ValueError: If `param_axes` is laid out otherwise than `params`.

    Example:
        >>> import optax
        >>> params, axes = {"w": jnp.ones((16, 6))}, {"w": PartitionSpec("embed", "mlp")}
        >>> tuple(state_axes(optax.adam(0.1).init(params), params, axes)[0].mu["w"])
        ('embed', 'mlp')
        >>> packed_mask = {"w": jnp.ones((2, 6), jnp.uint8)}
        >>> [tuple(state_axes(packed_mask, params, axes, devices)["w"]) for devices in (2, 4)]
        [('embed', 'mlp'), (None, 'mlp')]
    """
    shapes = [jnp.shape(param) for param in jax.tree.leaves(params)]
    names = aligned(params, param_axes, "logical axes")
    leaves, treedef = jax.tree.flatten(state)
    devices = jax.device_count() if devices is None else devices

    def of_leaf(leaf: jax.Array, owner: int | None) -> PartitionSpec | None:
        if owner is None or names[owner] is None:
            return None
        return _shared_axes(jnp.shape(leaf), shapes[owner], tuple(names[owner]), devices)

    return treedef.unflatten([of_leaf(*pair) for pair in zip(leaves, owners(state, params), strict=True)])


def _shared_axes(
    shape: tuple[int, ...], param_shape: tuple[int, ...], names: Sequence[str | None], devices: int
) -> PartitionSpec | None:
    """Names of the axes of `shape` that are axes of the parameter."""
    names = (*names, *[None] * (len(param_shape) - len(names)))
    leading = len(shape) - len(param_shape)
    if leading >= 0:
        triples = zip(shape[leading:], param_shape, names, strict=True)
        return PartitionSpec(*[None] * leading, *[n if _divides_as(a, b, devices) else None for a, b, n in triples])
    chosen = itertools.combinations(range(len(param_shape)), len(shape))
    ways = [way for way in chosen if shape == tuple(param_shape[i] for i in way)]
    return PartitionSpec(*[names[i] for i in ways[0]]) if len(ways) == 1 else None


def _divides_as(length: int, whole: int, devices: int) -> bool:
    """Whether an axis stands for one of length `whole` and any mesh axis that divides that one divides it, too."""
    return length == whole or (length > 0 and whole % length == 0 and length % math.gcd(whole, devices) == 0)
