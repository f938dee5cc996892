"""Which weights lead into a unit and which lead out of it.

A layer is called by the path of its parameters: 'params/Conv_0' owns 'params/Conv_0/kernel' and 'params/Conv_0/bias'.
Its outputs lie along the last axis of each of them, its inputs along the last but one of its kernels (Flax, Haiku).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["Layers", "Links", "find_links"]

Layers = Mapping[str, Sequence[str]]


class Links(NamedTuple):
    """The weights of some units.

    Attributes:
        into: Tree of bool arrays of the parameters' shapes: what leads into them, biases included.
        out_of: The same: what leads out of them.
    """

    into: PyTree
    out_of: PyTree


def find_links(params: PyTree, units: Mapping[str, jax.Array], next_layers: Layers) -> Links:
    """The weights of some units of each layer.

    Args:
        params: Parameter tree; shapes are read only.
        units: bool[units] by layer. Layers that are not in `next_layers` are left alone.
        next_layers: By layer the layers that read it and nothing else. A dense layer may read feature maps laid out
            flat, with channels as their last axis (NHWC).

    Returns:
        `Links(into, out_of)`.

    Raises:
        ValueError: If a layer is unknown or has another number of units, or a next layer's inputs are no multiple of
            them.

    Example:
        >>> params = {"map": {"w": jnp.ones((1, 1, 3, 2))}, "out": {"w": jnp.ones((4, 1))}}
        >>> find_links(params, {"map": jnp.array([False, True])}, {"map": ["out"]}).out_of["out"]["w"][:, 0].tolist()
        [False, True, False, True]
    """
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name.rpartition("/")[0], []).append(i)
    _check_known([*units, *next_layers, *(reader for readers in next_layers.values() for reader in readers)], members)
    into, out_of = ([jnp.zeros(leaf.shape, jnp.bool_) for leaf in leaves] for _ in range(2))
    for layer in (layer for layer in next_layers if layer in units):
        for i in members[layer]:
            into[i] |= _by_output(units[layer], leaves[i].shape, names[i])
        for i in (i for reader in next_layers[layer] for i in members[reader] if leaves[i].ndim > 1):
            out_of[i] |= _by_input(units[layer], leaves[i].shape, names[i])
    unflatten = jax.tree.structure(params).unflatten
    return Links(unflatten(into), unflatten(out_of))


def _check_known(layers: Sequence[str], members: Mapping[str, list[int]]) -> None:
    for layer in layers:
        if layer not in members:
            raise ValueError(f"there is no layer {layer!r}; layers are paths of parameters, here {list(members)}.")


def _by_output(units: jax.Array, shape: tuple[int, ...], name: str) -> jax.Array:
    if not shape or shape[-1] != jnp.size(units):
        raise ValueError(
            f"parameter {name!r} has shape {shape}, with outputs along its last axis, and {jnp.size(units)} units were "
            "given for its layer; measure the activations of this very network."
        )
    return jnp.broadcast_to(jnp.asarray(units, jnp.bool_), shape)


def _by_input(units: jax.Array, shape: tuple[int, ...], name: str) -> jax.Array:
    inputs, count = shape[-2], max(jnp.size(units), 1)
    if inputs % count or (len(shape) > 2 and inputs != count):
        raise ValueError(
            f"parameter {name!r} has shape {shape} and so reads {inputs} inputs, which do not come from the "
            f"{jnp.size(units)} units of the layer before alone; leave that layer out of next_layers."
        )
    # What is flattened has its channels last, so map c gives the inputs c, c + channels, c + 2 channels, ...
    return jnp.broadcast_to(jnp.tile(jnp.asarray(units, jnp.bool_), inputs // count)[:, None], shape)
