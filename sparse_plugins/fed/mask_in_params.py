"""Parameters that carry their mask: inactive weights are exactly 0, kept ones never are.

That leaves a layer which is 0 as a whole: a bias before the first round is trained, a layer that was pruned whole is
not. The second has a negative zero as its first entry, which is exactly 0 like the others, and no initial value.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins import core
from sparse_plugins.core.masks import InZeros, is_pruned, kept, map_pruned
from sparse_plugins.core.transform.state import find_sparse_state
from sparse_plugins.core.trees import aligned
from sparse_plugins.wire.trees import PyTree

__all__ = ["broadcast_masks", "first_broadcast", "mark_in_use", "sparse_broadcast"]


@jax.jit
def mark_in_use(params: PyTree, masks: PyTree) -> PyTree:
    """Parameters of which none that is in use is 0, and whose layers say so if none of their weights is in use.

    Args:
        params: Parameter tree.
        masks: Mask tree at rest; layers that stay dense are in use as a whole.

    Returns:
        The parameters; what is in use and 0, or so small that hardware may take it for 0, becomes the smallest normal
        number, and what is pruned 0, also if it was NaN or infinite, which no update that is added can change. The
        first entry of a layer that is pruned whole becomes a negative zero. Integers stay as they are, and so does
        everything if no layer has a mask.

    Example:
        >>> params = {"a": jnp.array([0.0, 0.0, 2.0]), "b": jnp.zeros(2)}
        >>> marked = mark_in_use(params, {"a": jnp.array([1, 0, 1], jnp.uint8), "b": jnp.zeros(2, jnp.uint8)})
        >>> (marked["a"] != 0).tolist(), marked["b"].tolist()
        ([True, False, True], [-0.0, 0.0])
    """
    if not any(map(is_pruned, aligned(params, masks, "masks"))):
        return params

    def beside_zero(param: jax.Array) -> jax.Array:
        if not jnp.issubdtype(param.dtype, jnp.floating):
            return param
        tiny = jnp.finfo(param.dtype).tiny
        return jnp.where(jnp.abs(param) < tiny, jnp.copysign(tiny, param), param)

    def inside(param: jax.Array, mask: Any) -> jax.Array:
        in_use = kept(param, mask)
        # An updater whose masks are the zeros of the parameters sees to it itself that none in use is 0.
        pruned = jnp.zeros((), param.dtype)
        marked = param if isinstance(mask, InZeros) else jnp.where(in_use, beside_zero(param), pruned)
        if not param.size or not jnp.issubdtype(param.dtype, jnp.floating):
            return marked
        return jnp.where(jnp.any(in_use), marked, marked.at[(0,) * param.ndim].set(-0.0))

    return map_pruned(inside, params, masks, otherwise=beside_zero)


def sparse_broadcast(updater: core.BaseUpdater, params: PyTree, opt_state: PyTree) -> PyTree:
    """What a server sends first if it is to start from sparse parameters: they carry their mask.

    Later broadcasts of `sparse_server_optimizer` do so anyway.

    Args:
        updater: The server's updater.
        params: Initial parameters.
        opt_state: State of the server's optimizer for them.

    Returns:
        The parameters on the updater's first masks; kept weights are not 0.

    Example:
        >>> import functools
        >>> import optax
        >>> from sparse_plugins import fed
        >>> updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75))
        >>> params = {"w": jnp.ones((2, 2))}
        >>> server_optimizer = fed.sparse_server_optimizer(optax.sgd(1.0), updater)
        >>> int((fed.sparse_broadcast(updater, params, server_optimizer.init(params))["w"] != 0).sum())
        1
    """
    return mark_in_use(updater.pre_forward_update(params, opt_state), find_sparse_state(opt_state).masks)


def first_broadcast(updater: core.BaseUpdater, params: PyTree, opt_state: PyTree) -> PyTree:
    """What a server broadcasts first: the parameters to begin with, their masks in them.

    Args:
        updater: The server's updater.
        params: Initial parameters.
        opt_state: State of its optimizer, fresh from `init`.

    Returns:
        Parameters on the first masks, rescaled if the updater's `rescale` says so, and not 0 inside.

    Example:
        >>> import functools
        >>> import optax
        >>> half = functools.partial(core.uniform, sparsity=0.5)
        >>> updater = core.StaticRandomSparse(sparsity_distribution_fn=half, rescale=True)
        >>> params = {"w": jnp.ones((8, 1))}
        >>> first = first_broadcast(updater, params, updater.wrap_optax(optax.sgd(1.0)).init(params))
        >>> round(float(jnp.square(first["w"]).sum()), 3)
        8.0
    """
    return mark_in_use(updater.first_params(params, opt_state), find_sparse_state(opt_state).masks)


def broadcast_masks(params: PyTree) -> PyTree:
    """What the parameters of a broadcast say is in use.

    Args:
        params: Parameter tree as the server sends it.

    Returns:
        Tree of bool arrays: True where a parameter is not 0, and everywhere in one that is 0 as a whole, unless a
        negative zero in it says that it was pruned whole.

    Example:
        >>> masks = broadcast_masks({"w": jnp.array([3.0, 0.0]), "b": jnp.zeros(2), "gone": jnp.array([-0.0, 0.0])})
        >>> masks["w"].tolist(), masks["b"].tolist(), masks["gone"].tolist()
        ([True, False], [True, True], [False, False])
    """

    def mask(param: Any) -> jax.Array:
        param = jnp.asarray(param)
        nonzero = param != 0
        is_signed = jnp.issubdtype(param.dtype, jnp.floating)
        says_something = nonzero | jnp.signbit(param) if is_signed else nonzero
        return nonzero | ~jnp.any(says_something)

    return jax.tree.map(mask, params)
