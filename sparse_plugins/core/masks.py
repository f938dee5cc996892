"""Masks at rest and in use: the only file that knows how they are stored and what marks a leaf as not pruned.

In use a mask is an array of its parameter's shape, 1 = kept. At rest it is that array as uint8, or eight entries to a
byte. Eight neighbours along one axis share a byte, so the packed array has the parameter's rank and all its other
axes, unpacking is an AND and a compare that fuse into whatever reads it, and a sharding carries over. Which of the
two a stored mask is follows from its shape alone. A third way stores nothing: the zeros of the parameter are the mask.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparse_plugins.core.trees import PyTree, aligned_columns, exportable, leaf_names
from sparse_plugins.wire.markers import NOT_PRUNED, NotPruned, is_pruned

__all__ = [
    "IN_ZEROS",
    "MARKERS",
    "NOT_PRUNED",
    "InZeros",
    "apply_mask",
    "apply_masks",
    "check_stored",
    "is_pruned",
    "kept",
    "map_pruned",
    "pack",
    "pack_masks",
    "packed_shape",
    "store_masks",
    "unpack",
    "unpack_masks",
    "visible_leaves",
]


exportable("NotPruned")(NotPruned)


@exportable("InZeros")
class InZeros(NamedTuple):
    """Stands in a mask tree for a mask that is not stored: a weight is kept where it is not 0."""


IN_ZEROS = InZeros()


MARKERS = (NotPruned, type(None), optax.MaskedNode)  # what `is_pruned` tells from masks


def map_pruned(function: Callable, params: PyTree, masks: PyTree, *rest: PyTree, otherwise: Callable) -> PyTree:
    """Maps over parameters and masks.

    Args:
        function: Called as `function(param, mask, *rest)` where the leaf is pruned.
        params: Parameter tree.
        masks: Mask tree (or any tree with markers) of the same structure.
        *rest: Further trees of the same structure.
        otherwise: Called as `otherwise(param, *rest)` where it is not.

    Returns:
        A tree with the structure of `params`.

    Raises:
        ValueError: If a tree has another structure.
    """
    leaves, treedef = jax.tree.flatten(params)
    columns = aligned_columns(params, [masks, *rest], ["masks", *["the other tree"] * len(rest)])
    mapped = [
        otherwise(param, *others) if isinstance(mask, MARKERS) else function(param, mask, *others)
        for param, mask, *others in zip(leaves, *columns, strict=True)
    ]
    return jax.tree.unflatten(treedef, mapped)


# Inlined into a program around them; without any, one compilation for a shape in place of one for each operation.
@functools.partial(jax.jit, inline=True)
def pack(mask: jax.Array) -> jax.Array:
    """Stores a mask as bits.

    Args:
        mask: Array of any shape, nonzero = kept.

    Returns:
        uint8 array of the same rank; bit j of the entry i along the packed axis is entry 8 i + j.

    Example:
        >>> pack(jnp.array([1, 0, 1, 1])).tolist()
        [13]
    """
    mask = mask.astype(jnp.bool_).astype(jnp.uint8)
    if mask.ndim == 0:
        return mask
    axis = _packed_axis(mask.shape)
    padding = [(0, -length % 8 if a == axis else 0) for a, length in enumerate(mask.shape)]
    octets = jnp.pad(mask, padding).reshape(*mask.shape[:axis], -1, 8, *mask.shape[axis + 1 :])
    return jnp.sum(octets * _bits(octets.ndim, axis + 1), axis=axis + 1, dtype=jnp.uint8)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def unpack(stored: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Reads a stored mask, packed or not.

    Args:
        stored: uint8 array as `pack` returns it, or of shape `shape`.
        shape: Shape of the parameter.

    Returns:
        bool array of `shape`, True = kept.

    Raises:
        ValueError: If `stored` is no mask for that shape.

    Example:
        >>> unpack(jnp.array([13], jnp.uint8), (4,)).tolist()
        [True, False, True, True]
    """
    if stored.shape == shape:
        return stored.astype(jnp.bool_)
    check_stored(stored, shape)
    axis = _packed_axis(shape)
    octets = jnp.expand_dims(stored, axis + 1)
    # Wider than a byte, which costs nothing: jaxlib 0.10 cannot load eight bytes for all lanes on some AMD processors.
    kept = (octets.astype(jnp.uint32) & _bits(octets.ndim, axis + 1).astype(jnp.uint32)) != 0
    return lax.slice_in_dim(kept.reshape(*shape[:axis], -1, *shape[axis + 1 :]), 0, shape[axis], axis=axis)


def kept(param: jax.Array, stored: Any) -> jax.Array:
    """Reads the mask of a parameter, however it is stored.

    Args:
        param: The parameter, on its mask.
        stored: Its mask at rest.

    Returns:
        bool array of the parameter's shape, True = kept.

    Raises:
        ValueError: If `stored` is no mask for that shape.

    Example:
        >>> kept(jnp.array([0.5, 0.0]), IN_ZEROS).tolist()
        [True, False]
    """
    return param != 0 if isinstance(stored, InZeros) else unpack(stored, param.shape)


def check_stored(stored: Any, shape: tuple[int, ...], name: str = "", how: bool | str | None = None) -> None:
    """Raises ValueError if a stored mask cannot be that of a parameter called `name`.

    Args:
        stored: The mask.
        shape: Shape of the parameter.
        name: Path of the parameter, for the message.
        how: What `use_packed_masks` asks for: True, False or 'zeros'; None takes any.
    """
    nothing, packed = "no mask at all", packed_shape(shape)
    found = nothing if isinstance(stored, InZeros) else jnp.shape(stored)
    allowed: dict[Any, list] = {
        True: [packed],
        False: [shape],
        "zeros": [nothing, packed],
        None: [shape, packed, nothing],
    }
    if found not in allowed[how]:
        raise ValueError(
            f"the mask of parameter {name!r} has shape {found}; for a parameter of shape {shape} it has to be "
            f"{' or '.join(map(str, allowed[how]))}. A mask of another model, a parameter that changed its shape after "
            "init, or one that use_packed_masks stores otherwise (convert with pack_masks or unpack_masks)?"
        )


@functools.lru_cache(maxsize=1 << 12)
def packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the packed mask of a parameter of `shape`."""
    if not shape:
        return shape
    axis = _packed_axis(shape)
    return (*shape[:axis], -(-shape[axis] // 8), *shape[axis + 1 :])


@functools.lru_cache(maxsize=1 << 12)
def _packed_axis(shape: tuple[int, ...]) -> int:
    """The axis that wastes least on padding; not the fastest-varying one if another does as well."""
    waste = lambda axis: -(-shape[axis] // 8) * 8 / max(shape[axis], 1)  # noqa: E731
    return min(range(len(shape)), key=lambda axis: (waste(axis), axis == len(shape) - 1, -axis))


def _bits(ndim: int, axis: int) -> jax.Array:
    """1, 2, 4, ..., 128 along one axis."""
    places = lax.broadcasted_iota(jnp.uint8, (*[1] * axis, 8, *[1] * (ndim - axis - 1)), axis)
    return jnp.uint8(1) << places


def visible_leaves(params: PyTree, masks: PyTree) -> PyTree:
    """The parameters that an optimizer inside `optax.masked` or `partition` was shown.

    Args:
        params: All parameters, or any tree of their structure.
        masks: Mask tree of that optimizer, in which `optax.MaskedNode` stands for what it was not shown.

    Returns:
        `params` with `optax.MaskedNode` at the same places.
    """
    hidden = lambda mask: isinstance(mask, optax.MaskedNode)  # noqa: E731
    stops = lambda node: hidden(node) or isinstance(node, (NotPruned, InZeros))  # noqa: E731
    return jax.tree.map(lambda mask, node: mask if hidden(mask) else node, masks, params, is_leaf=stops)


def pack_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Packs every mask of a tree; markers stay."""
    return map_pruned(lambda p, m: pack(kept(p, m)), params, masks, otherwise=lambda p: NOT_PRUNED)


def unpack_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Masks as arrays of the parameters' shapes.

    Args:
        params: Parameter tree; only shapes are read, except of parameters whose zeros are their mask.
        masks: Mask tree at rest.

    Returns:
        uint8 masks, 1 = kept; `NOT_PRUNED` where a leaf stays dense.

    Example:
        >>> unpack_masks({"w": jnp.zeros(4)}, {"w": jnp.array([13], jnp.uint8)})["w"].tolist()
        [1, 0, 1, 1]
    """
    return map_pruned(lambda p, m: kept(p, m).astype(jnp.uint8), params, masks, otherwise=lambda p: NOT_PRUNED)


def store_masks(params: PyTree, masks: PyTree, packed: bool) -> PyTree:
    """Masks of any form as they are kept in a state.

    Args:
        params: Parameter tree; only shapes are read.
        masks: Mask tree, packed or not, of any dtype; None and `NOT_PRUNED` stand for a leaf that stays dense.
        packed: Whether eight entries share a byte.

    Returns:
        uint8 masks and `NOT_PRUNED`. What has that form already is returned as it is.

    Raises:
        ValueError: If a mask has neither form.

    Example:
        >>> store_masks({"w": jnp.ones(4)}, {"w": jnp.array([True, False, True, True])}, packed=True)["w"].tolist()
        [13]
    """

    def stored(param: Any, mask: Any, place: int) -> jax.Array:
        at_rest = packed_shape(param.shape)
        if mask.shape not in (param.shape, at_rest):
            check_stored(mask, param.shape, leaf_names(params)[place])
        if mask.dtype == jnp.uint8 and mask.shape == (at_rest if packed else param.shape):
            return mask
        return pack(unpack(mask, param.shape)) if packed else unpack(mask, param.shape).astype(jnp.uint8)

    treedef = jax.tree.structure(params)
    places = jax.tree.unflatten(treedef, range(treedef.num_leaves))
    return map_pruned(stored, params, masks, places, otherwise=lambda p, place: NOT_PRUNED)


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Parameters with every pruned entry exactly 0, whatever was there (NaN and infinities too).

    The gradient passes straight through: growth and straight-through estimation need it at pruned entries.

    Args:
        params: Parameter tree.
        masks: Mask tree at rest.

    Returns:
        Tree of the same structure, shapes and dtypes.

    Example:
        >>> apply_masks({"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([1, 0], jnp.uint8)})["w"].tolist()
        [1.0, 0.0]
    """
    return map_pruned(apply_mask, params, masks, otherwise=lambda p: p)


def apply_mask(param: jax.Array, stored: Any) -> jax.Array:
    """One parameter with every pruned entry exactly 0; see `apply_masks`."""
    return _zero_outside(param, kept(param, stored))


@jax.custom_jvp
def _zero_outside(param: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, param, jnp.zeros((), param.dtype))


@_zero_outside.defjvp
def _straight_through(primals: tuple, tangents: tuple) -> tuple:
    return _zero_outside(*primals), tangents[0]
