"""Where a server that grows weights by their gradients gets them from."""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins import core
from sparse_plugins.core.masks import is_pruned, unpack
from sparse_plugins.core.trees import aligned


def grows_by_gradient(updater: core.BaseUpdater) -> bool:
    """Whether an updater grows weights by their gradients, so that its server needs them for pruned weights.

    Example:
        >>> grows_by_gradient(core.RigL()), grows_by_gradient(core.SET())
        (True, False)
    """
    return isinstance(updater, core.RigL)


def check_signal(updater: core.BaseUpdater, state: core.SparseState, grads: Any) -> None:
    """Checks that weights about to be grown by their gradients have gradients.

    Args:
        updater: The server's updater.
        state: Its state before the round's update.
        grads: What it is going to rank by. Nothing is checked if these are being traced.

    Raises:
        ValueError: If masks change now, there are pruned weights, and all their gradients are 0.
    """
    if not grows_by_gradient(updater) or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, grads))):
        return
    if updater.use_packed_masks == "zeros" or not bool(updater.is_refresh_due(state.count)):
        return
    pruned, heard = _pruned_and_heard(state.masks, grads)
    if pruned and not heard:
        raise ValueError(
            f"round {int(state.count)} is to grow weights by gradients, but all gradients of pruned weights are 0: "
            "clients that train inside the mask send none, and masks would never move. Use core.SET, which grows at "
            "random, let clients train densely with an ordinary client optimizer, or use "
            "fed.sparse_federated_averaging(growth='topk'), whose clients send the few gradients that are needed."
        )


@jax.jit
def _pruned_and_heard(masks: Any, grads: Any) -> tuple[jax.Array, jax.Array]:
    """Whether there is any pruned weight, and any with a gradient."""
    pruned, heard = jnp.zeros((), jnp.bool_), jnp.zeros((), jnp.bool_)
    for grad, mask in zip(jax.tree.leaves(grads), aligned(grads, masks, "masks"), strict=True):
        if is_pruned(mask):
            outside = ~unpack(mask, grad.shape)
            pruned |= jnp.any(outside)
            heard |= jnp.any(outside & (grad != 0))
    return pruned, heard
