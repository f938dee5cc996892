"""Initial weights for layers that are sparse from the start."""

import functools

import jax
import jax.numpy as jnp

from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.masks import kept, map_pruned
from sparse_plugins.core.selection.structured_topk import MaskRule
from sparse_plugins.core.structures import ConstantFanIn
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["rescale_to_fan_in"]


def rescale_to_fan_in(
    params: PyTree, masks: PyTree, output_axis: int | None = None, *, layers: Layers | None = None
) -> PyTree:
    """Initial parameters as if every output had been drawn for the number of inputs it keeps.

    An initializer of variance c / fan_in gives a sparse layer too little: of `fan_in` inputs only some are left. Each
    output is scaled by sqrt(fan_in / inputs kept), which restores the variance of what it computes.

    Args:
        params: Initial parameters, drawn for dense layers.
        masks: Initial masks, for example `updater.init_state(params).masks`.
        output_axis: Axis of a kernel along which its outputs lie: 0 for Equinox. None is the last, as in Flax and
            Haiku, or all outputs where layers are given.
        layers: What axes are, from `core.trace_layers` or `core.describe_layers`.

    Returns:
        Parameters on their masks; leaves that stay dense are unchanged. An output without inputs is 0.

    Raises:
        ValueError: Where it is not known which axes are outputs.

    Example:
        >>> masks = {"w": jnp.array([[1, 1], [0, 1], [0, 1], [0, 1]], jnp.uint8)}
        >>> rescale_to_fan_in({"w": jnp.ones((4, 2))}, masks)["w"].tolist()
        [[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]

    Source: Evci et al., Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win (2022).
    """
    names = leaf_names(params)
    axes = [None] * len(names) if layers is None else layers.of(params)
    by_output = ConstantFanIn(output_axis)
    rules = [
        MaskRule(by_output, jnp.shape(leaf), known, name)
        for name, leaf, known in zip(names, jax.tree.leaves(params), axes, strict=True)
    ]

    def rescaled(param: jax.Array, mask: jax.Array, rule: MaskRule) -> jax.Array:
        return rule.view.mapped(functools.partial(_scaled, rule.place), param, kept(param, mask))

    beside = jax.tree.unflatten(jax.tree.structure(params), rules)
    return map_pruned(rescaled, params, masks, beside, otherwise=lambda param, rule: param)


# Inlined into a program around it; without any, one compilation for a shape in place of one for each operation.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _scaled(output: int, layer: jax.Array, used: jax.Array) -> jax.Array:
    others = tuple(place for place in range(layer.ndim) if place != output)
    inputs = jnp.sum(used, axis=others, keepdims=True, dtype=jnp.float32)
    fan_in = layer.size / max(layer.shape[output], 1)
    scale = jnp.sqrt(fan_in / jnp.maximum(inputs, 1.0))
    return jnp.where(used, layer * scale.astype(layer.dtype), jnp.zeros((), layer.dtype))
