"""Parameters that carry their mask: pruned is exactly 0, in use never is."""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import InZeros, map_pruned, unpack


@jax.jit
def mark_in_use(params: Any, masks: Any) -> Any:
    """Parameters of which none that is in use is 0.

    Args:
        params: Parameter tree, 0 outside the masks.
        masks: Mask tree at rest; layers that stay dense are in use as a whole.

    Returns:
        The parameters; what is 0, or so small that hardware may take it for 0, becomes the smallest normal number.
        Integers stay as they are.

    Example:
        >>> params, masks = {"w": jnp.array([0.0, 0.0, 2.0])}, {"w": jnp.array([1, 0, 1], jnp.uint8)}
        >>> (mark_in_use(params, masks)["w"] != 0).tolist()
        [True, False, True]
    """

    def beside_zero(param: jax.Array) -> jax.Array:
        if not jnp.issubdtype(param.dtype, jnp.floating):
            return param
        tiny = jnp.finfo(param.dtype).tiny
        return jnp.where(jnp.abs(param) < tiny, jnp.copysign(tiny, param), param)

    def inside(param: jax.Array, mask: Any) -> jax.Array:
        # An updater whose masks are the zeros of the parameters sees to that itself.
        return param if isinstance(mask, InZeros) else jnp.where(unpack(mask, param.shape), beside_zero(param), param)

    return map_pruned(inside, params, masks, otherwise=beside_zero)


def broadcast_masks(params: Any) -> Any:
    """What the parameters of a broadcast say is in use.

    Args:
        params: Parameter tree as the server sends it.

    Returns:
        Tree of bool arrays: True where a parameter is not 0, and everywhere in one that is 0 as a whole.

    Example:
        >>> masks = broadcast_masks({"w": jnp.array([3.0, 0.0]), "b": jnp.zeros(2)})
        >>> masks["w"].tolist(), masks["b"].tolist()
        ([True, False], [True, True])
    """

    def mask(param: Any) -> jax.Array:
        nonzero = jnp.asarray(param) != 0
        return nonzero | ~jnp.any(nonzero)

    return jax.tree.map(mask, params)
