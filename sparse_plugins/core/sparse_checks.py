"""Whether parameters are on their masks, and what keeps them from being."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import InZeros, is_pruned, kept
from sparse_plugins.core.transform.state import find_sparse_state
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["check_sparse", "outside_masks"]


def check_sparse(params: PyTree, opt_state: PyTree) -> None:
    """Checks that parameters are 0 outside their masks, as after every update of a sparse optimizer.

    One comparison per weight, so do it once after masks have first changed, or as often as a run is evaluated.

    Args:
        params: Concrete parameters, as the loop holds them.
        opt_state: Optimizer state that holds the sparse state.

    Raises:
        ValueError: If they are not; the message names the first such layer, and what the usual causes are.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> params, grads = {"w": jnp.ones((8, 8))}, {"w": jnp.ones((8, 8))}
        >>> tx = optax.chain(core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.5), optax.scale(0.5))
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> core.check_sparse(optax.apply_updates(params, updates), state)
        Traceback (most recent call last):
        ValueError: 32 of the 32 pruned weights of 'w' are not 0, so the model is not as sparse ...
    """
    masks = find_sparse_state(opt_state).masks
    for name, outside, pruned in outside_masks(params, masks):
        if outside:
            raise ValueError(
                f"{outside} of the {pruned} pruned weights of {name!r} are not 0, so the model is not as sparse as its "
                "masks. Either something changes updates or parameters after the sparse optimizer (ema, scale, clip, "
                "add_decayed_weights behind it in a chain; lookahead or schedule_free around it; an average of "
                "parameters that is not masked): put the sparse optimizer last. Or training began with dense "
                "parameters, and no update has been applied yet: begin with core.start(tx, params), or with "
                "updater.pre_forward_update(params, state)."
            )


def outside_masks(params: PyTree, masks: PyTree) -> list[tuple[str, int, int]]:
    """How many weights outside the masks are not 0.

    Args:
        params: Concrete parameters.
        masks: Their masks, packed or not.

    Returns:
        For each pruned leaf its path, that number, and the number of entries outside.

    Example:
        >>> outside_masks({"w": jnp.ones(4)}, {"w": jnp.array([1, 1, 1, 0], jnp.uint8)})
        [('w', 1, 1)]
    """
    columns = zip(leaf_names(params), jax.tree.leaves(params), aligned(params, masks, "masks"), strict=True)
    stored = [column for column in columns if is_pruned(column[2]) and not isinstance(column[2], InZeros)]
    counts = jax.device_get([_counts(param, mask) for _, param, mask in stored])
    return [(name, int(outside), int(pruned)) for (name, *_), (outside, pruned) in zip(stored, counts, strict=True)]


@jax.jit
def _counts(param: jax.Array, mask: Any) -> Sequence[jax.Array]:
    pruned = ~kept(param, mask)
    return jnp.count_nonzero(pruned & (param != 0)), jnp.count_nonzero(pruned)
