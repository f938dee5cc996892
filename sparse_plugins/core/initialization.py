"""Initial weights for layers that are sparse from the start."""

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import kept, map_pruned
from sparse_plugins.core.trees import PyTree

__all__ = ["rescale_to_fan_in"]


def rescale_to_fan_in(params: PyTree, masks: PyTree, output_axis: int = -1) -> PyTree:
    """Initial parameters as if every output had been drawn for the number of inputs it keeps.

    An initializer of variance c / fan_in gives a sparse layer too little: of `fan_in` inputs only some are left. Each
    output is scaled by sqrt(fan_in / inputs kept), which restores the variance of what it computes.

    Args:
        params: Initial parameters, drawn for dense layers.
        masks: Initial masks, for example `updater.init_state(params).masks`.
        output_axis: Axis of a kernel along which its outputs lie; -1 for Flax and Haiku, 0 for Equinox.

    Returns:
        Parameters on their masks; leaves that stay dense are unchanged. An output without inputs is 0.

    Example:
        >>> masks = {"w": jnp.array([[1, 1], [0, 1], [0, 1], [0, 1]], jnp.uint8)}
        >>> rescale_to_fan_in({"w": jnp.ones((4, 2))}, masks)["w"].tolist()
        [[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]

    Source: Evci et al., Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win (2022).
    """

    def rescaled(param: jax.Array, mask: jax.Array) -> jax.Array:
        used = kept(param, mask)
        axes = tuple(axis for axis in range(param.ndim) if axis != output_axis % param.ndim)
        inputs = jnp.sum(used, axis=axes, keepdims=True, dtype=jnp.float32)
        fan_in = param.size / max(param.shape[output_axis], 1)
        scale = jnp.sqrt(fan_in / jnp.maximum(inputs, 1.0))
        return jnp.where(used, param * scale.astype(param.dtype), jnp.zeros((), param.dtype))

    return map_pruned(rescaled, params, masks, otherwise=lambda param: param)
